"""What a job's log answers: the fold of its events. Pure.

An *entry* says that a boundary was reached (and when a timer is due); an *answer* says how it came out. Recovery gives
answers back in the order in which they were committed.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from overnight.domain import Recorded

from .positions import Position, enclosing

ANSWERS = frozenset(
    {
        "step_committed",
        "step_failed",
        "model_succeeded",
        "model_failed",
        "tool_succeeded",
        "tool_failed",
        "timer_fired",
        "value_recorded",
        "review_decided",
        "child_finished",
        "signal_received",
    }
)
FAILURES = frozenset({"step_failed", "model_failed", "tool_failed"})
LASTING = frozenset({"effect", "child"})
"""Kinds whose unanswered entry outlives a retry: the effect is known by its key, the child is still running."""


class History(msgspec.Struct):
    """Entries and answers by position; `order` is the answers still to be delivered, by seq. `failures` counts the tries of a
    step that failed and were to be tried again, in this attempt of the job."""

    entries: dict[Position, Recorded]
    answers: dict[Position, Recorded]
    last_seq: int = 0
    failures: dict[Position, int] = msgspec.field(default_factory=dict[Position, int])

    @property
    def order(self) -> list[Recorded]:
        """The answers that a replay will ask for: those inside of a finished step are not asked again."""
        kept = [
            answer
            for answer in self.answers.values()
            if not any(outer in self.answers for outer in enclosing(answer.path or ""))
        ]
        return sorted(kept, key=lambda answer: answer.seq)


def position_of(event: Recorded) -> Position | None:
    if event.path is None or event.ordinal is None:
        return None
    return (event.path, event.ordinal)


def fold(events: Iterable[Recorded]) -> History:
    """The history of a job from all of its events, in order."""
    history = History({}, {})
    by_seq: dict[int, tuple[dict[Position, Recorded], Position]] = {}
    for event in events:
        history.last_seq = event.seq
        detail = event.facts.detail or {}
        at: dict[str, Any] | None = detail.get("position")
        if event.facts.event == "answers_dropped":
            # A step's live retry knows only what it was answered; the log knows the entries too.
            inside = stale_in_step(history, (at["path"], at["ordinal"])) if at is not None else []
            for seq in {*detail.get("seqs", ()), *inside}:
                kept, place = by_seq.pop(seq, ({}, ("", 0)))
                kept.pop(place, None)
            continue
        if event.facts.event == "attempt_started":
            history.failures.clear()
        if (place := position_of(event)) is None:
            if event.facts.event == "step_failed" and at is not None:
                step = (at["path"], at["ordinal"])
                history.failures[step] = history.failures.get(step, 0) + 1
            continue
        kept = history.answers if event.facts.event in ANSWERS else history.entries
        if (before := kept.get(place)) is not None:
            by_seq.pop(before.seq, None)
        kept[place] = event
        by_seq[event.seq] = (kept, place)
    return history


def _within(path: str, step: Position) -> bool:
    return step in enclosing(path)


def _failed(answer: Recorded) -> bool:
    detail = answer.facts.detail or {}
    return answer.facts.event in FAILURES or (
        answer.facts.event == "child_finished" and detail.get("state") != "succeeded"
    )


def stale_in_step(history: History, step: Position) -> list[int]:
    """The seqs that a retry of the step must not answer with: all inside it after its last committed effect."""
    inside = {place: answer for place, answer in history.answers.items() if _within(place[0], step)}
    last_effect = max((answer.seq for answer in inside.values() if answer.facts.event == "tool_succeeded"), default=0)
    stale = {place: answer.seq for place, answer in inside.items() if answer.seq > last_effect or _failed(answer)}
    entries = [
        entry.seq
        for place, entry in history.entries.items()
        if _within(place[0], step) and (place in stale or (place not in inside and entry.facts.kind not in LASTING))
    ]
    return sorted([*stale.values(), *entries])


def stale_for_retry(history: History) -> list[int]:
    """The seqs that a retry of the job must not answer with: the last failure, every other that the code did not go on from,
    and what lies inside those steps after their last committed effect. A failure that was caught stays an answer.

    The code went on from a failure when a later answer stands on its path or on a path that it branched off from.
    """
    newest: dict[str, int] = {}
    for answer in history.order:
        newest[answer.path or ""] = answer.seq
    failures = [answer for answer in history.order if _failed(answer)]
    dropped: set[int] = set()
    for answer in failures:
        path = answer.path or ""
        gone_past = any(newest.get(outer, 0) > answer.seq for outer in _trunk(path))
        if gone_past and answer is not failures[-1]:
            continue
        place = (path, answer.ordinal or 0)
        dropped.add(answer.seq)
        if (entry := history.entries.get(place)) is not None:
            dropped.add(entry.seq)
        dropped.update(stale_in_step(history, place))
    return sorted(dropped)


def _trunk(path: str) -> list[str]:
    """The path itself and those it branched off from, up to the step it lies in: `/1#0/2/3` gives it, `/1#0/2`, `/1#0`."""
    found = [path]
    while (cut := max(path.rfind("/"), path.rfind("#"))) >= 0 and path[cut] == "/":
        path = path[:cut]
        found.append(path)
    return found


def difference(recorded: Recorded, asked: dict[str, Any]) -> dict[str, Any]:
    """A readable diff of a recorded boundary and the one the code asks for now; empty when they agree."""
    was = {"kind": recorded.facts.kind, "name": recorded.facts.name, "fingerprint": recorded.fingerprint}
    # Who answers from outside (a person, a child job) does not know the fingerprint; the entry has it.
    changed = {
        key: {"recorded": was[key], "asked": value}
        for key, value in asked.items()
        if was[key] is not None and was[key] != value
    }
    if not changed:
        return {}
    here, there = f"{was['kind']} {was['name']}", f"{asked.get('kind')} {asked.get('name')}"
    why = f"the history has {here} here, the code asks for {there}"
    if set(changed) == {"fingerprint"}:
        why = f"{here} is asked with other arguments than recorded"
    place = {"path": recorded.path, "ordinal": recorded.ordinal}
    return {"position": place, "seq": recorded.seq, "boundary": here, "changed": changed, "why": why}
