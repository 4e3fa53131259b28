"""Idle external jobs: the last sign of life, the last outcome, and the end of an abandoned job."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from overnight.domain import ErrorFacts, Event
from overnight.store import Store, Unit

from . import lifecycle
from .rows import SQL, JobRow

IDLE_US = 30 * 60 * 1_000_000
"""The time without an event after which a running external job is shown as idle."""

ABANDONED = "abandoned"
"""The error class of a job whose program reported no end, and whose last outcome is no failure."""

MAX_EVENTS = 20
"""The number of last events that are searched for the last outcome."""

_OLD_WHY = "no call for 30 minutes"
_FAILURES = frozenset(
    {"model_failed", "model_lost", "tool_failed", "tool_unknown", "step_failed", "budget_stopped", "rate_limited"}
)
_OUTCOMES = _FAILURES | {
    "model_succeeded",
    "model_replayed",
    "cache_hit",
    "tool_succeeded",
    "step_committed",
    "loop_stopped",
    "review_decided",
}
_decode = msgspec.json.Decoder(Event).decode


class LastOutcome(msgspec.Struct, frozen=True):
    """The last event of a job that says how its work went. `error_class` is None for an outcome that is no failure."""

    event: str
    at: int
    error_class: str | None = None

    def public(self) -> dict[str, Any]:
        """The outcome as a detail of an event: `event`, `at`, and `class` of a failure."""
        facts: dict[str, Any] = {"event": self.event, "at": self.at}
        return facts | ({"class": self.error_class} if self.error_class else {})

    def text(self) -> str:
        return f"{self.event} ({self.error_class})" if self.error_class else self.event


class Idleness(msgspec.Struct, frozen=True):
    """Since when an external job is idle (microseconds UTC), and its last outcome."""

    since: int
    outcome: LastOutcome | None = None


def is_idle(job: JobRow, now_us: int) -> bool:
    """Whether an external job is running, but has recorded no event for `IDLE_US`."""
    return job.runtime == "foreign" and job.state == "running" and now_us - job.active_at >= IDLE_US


def last_outcome(events: Iterable[tuple[Event, int]]) -> LastOutcome | None:
    """The last outcome among events and their times, newest first."""
    for facts, at in events:
        if facts.event in _FAILURES:
            return LastOutcome(facts.event, at, facts.error.error_class if facts.error else facts.event)
        if facts.event in _OUTCOMES:
            return LastOutcome(facts.event, at)
    return None


async def read_idleness(store: Store, jobs: Sequence[JobRow], now_us: int) -> dict[str, Idleness]:
    """The idle jobs among these, by job id; one query."""
    idle = {job.job_id: job for job in jobs if is_idle(job, now_us)}
    if not idle:
        return {}
    values = {"job_ids": msgspec.json.encode(list(idle)).decode(), "most": MAX_EVENTS}
    events: dict[str, list[tuple[Event, int]]] = {}
    for job_id, at, body in await store.read(SQL["list_last_events"], values):
        events.setdefault(job_id, []).append((_decode(body), at))
    return {each: Idleness(job.active_at, last_outcome(events.get(each, ()))) for each, job in idle.items()}


def abandon(unit: Unit, job: JobRow, hours: int) -> None:
    """End an external job that has recorded nothing for `hours`. Its parent, if any, must be locked too.

    It fails with the class of its last outcome if that is a failure, else as `abandoned`. A further call reopens it.
    """
    rows = unit.query(SQL["read_last_events"], {"job_id": job.job_id, "most": MAX_EVENTS})
    outcome = last_outcome((_decode(body), at) for at, body in rows)
    if outcome is not None and outcome.error_class is not None:
        error = ErrorFacts(outcome.error_class, f"its program reported no end after {outcome.text()}")
    else:
        last = f"; its last outcome is {outcome.text()}" if outcome is not None else ""
        error = ErrorFacts(ABANDONED, f"its program reported no end{last}")
    event = Event("failed", attempt=job.attempt, error=error)
    event.decision = {"why": f"no call for {hours} h"}
    event.detail = {"idle": True, "active_at": job.active_at}
    if outcome is not None:
        event.detail["last_outcome"] = outcome.public()
    lifecycle.finish(unit, job, "failed", event, error=error)


def closed_idle(ended: Event) -> bool:
    """Whether this end of a job was written because no call came. Earlier versions wrote `completed`, at first with the
    reason only."""
    if ended.event not in {"completed", "failed"}:
        return False
    why = (ended.decision or {}).get("why")
    return bool((ended.detail or {}).get("idle")) or (ended.actor is None and why == _OLD_WHY)
