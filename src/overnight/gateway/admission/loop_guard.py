"""Loop guard: stop a job that repeats the same call or makes no progress, until a person decides to continue.

Cheap signs are counted in memory for each call: the same request, or an answer of the same length as one before. Only for a
suspicious job the log is read, and the log decides. So the guard works across processes, and other jobs pay nothing.

A turn makes progress if its last message and its answer (without ids) are new. It also makes progress if, since the turn before,
a step, an effect or a child job was finished, or a signal or a decision of a person arrived.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from overnight.domain import Event, LoopStopped, Recorded
from overnight.domain.policies import Guards
from overnight.ledger import (
    JOB,
    Ledger,
    append,
    locked_job,
    recorded,
)
from overnight.reviews import ReviewRow, list_reviews, request_review
from overnight.store import (
    Store,
    Table,
    Unit,
    statements,
)
from overnight.wire_formats.request import Request

from ..call_deadlines import CallDeadlines, store_answers_by
from ..identity import Subject
from .attempt_result import AttemptResult

SQL = statements("overnight.gateway.admission")
MAX_JOBS, MAX_REQUESTS, MAX_TURNS = 10_000, 256, 64
MAX_REMEMBERED = 200_000
"""Requests and turns of all jobs: about 20 MB. Beyond it the job with the oldest last call is forgotten."""

EVENTS_PER_TURN = 8
_VOLATILE = frozenset(
    {
        "id",
        "tool_call_id",
        "tool_use_id",
        "call_id",
        "item_id",
        "created",
        "created_at",
        "completed_at",
        "model",
        "usage",
    }
    | {"system_fingerprint", "service_tier", "signature", "encrypted_content", "previous_response_id"}
)
_CALL_IDS = (b'"tool_call_id"', b'"tool_use_id"', b'"call_id"')
_PROGRESS = frozenset({"step_committed", "tool_succeeded", "child_finished", "signal_received", "review_decided"})
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="deterministic").encode


class _Watch:
    """The calls and turns of one job in this process, as 64-bit hashes. At the counts `due` and `stale_due` its log is read."""

    __slots__ = ("calls", "due", "since", "stale", "stale_due", "turns")

    def __init__(self, since: int, stale_due: int) -> None:
        self.since = since
        self.calls: Counter[int] = Counter()
        self.due: dict[int, int] = {}
        self.turns: OrderedDict[int, None] = OrderedDict()
        self.stale, self.stale_due = 0, stale_due

    @property
    def size(self) -> int:
        return len(self.calls) + len(self.turns)


class LoopGuard:
    """The loop guard of one process. `request_admitted` and `request_answered` count every call; if `suspects` is true, call
    `check`."""

    def __init__(self, store: Store, guards: Guards) -> None:
        self._store, self._ledger = store, Ledger(store)
        self.configure(guards)
        self._watches: OrderedDict[str, _Watch] = OrderedDict()
        self._remembered = 0

    def configure(self, guards: Guards) -> None:
        """Replace the settings. The counts of running jobs stay."""
        self._same, self._turns = guards.same_call, guards.no_progress_turns
        self._off = not self._same and not self._turns

    def request_admitted(self, subject: Subject) -> None:
        """Count an admitted call of the job."""
        if self._off or subject.unattributed or subject.is_auxiliary:
            return
        watch = self._watches.get(subject.job_id)
        if watch is None:
            watch = self._watches[subject.job_id] = self._fresh(0)
        else:
            self._watches.move_to_end(subject.job_id)
        fingerprint_hash = hash(_fingerprint(subject))
        if fingerprint_hash not in watch.calls:
            if len(watch.calls) >= MAX_REQUESTS:
                self._remembered -= len(watch.calls)
                watch.calls.clear()  # repeated requests will be counted again
                watch.due.clear()
            self._count_remembered()
        watch.calls[fingerprint_hash] += 1

    def request_answered(self, subject: Subject, request: Request, result: AttemptResult) -> None:
        """Count a turn of the job."""
        watch = self._watches.get(subject.job_id)
        if watch is None or result.content is None or subject.is_auxiliary:
            return
        turn = hash((_last_message(request), result.tokens[2]))
        if turn in watch.turns:
            watch.stale += 1
            return
        watch.stale, watch.stale_due = 0, self._first_due()
        watch.turns[turn] = None
        if len(watch.turns) > MAX_TURNS:
            watch.turns.popitem(last=False)
        else:
            self._count_remembered()

    def _count_remembered(self) -> None:
        self._remembered += 1
        while len(self._watches) > MAX_JOBS or (self._remembered > MAX_REMEMBERED and len(self._watches) > 1):
            _, quiet = self._watches.popitem(last=False)
            self._remembered -= quiet.size

    def suspects(self, subject: Subject) -> bool:
        """Whether the job may be in a loop, by the counts of this process."""
        watch = self._watches.get(subject.job_id)
        if watch is None or subject.is_auxiliary:
            return False
        fingerprint_hash = hash(_fingerprint(subject))
        again = self._same > 0 and watch.calls[fingerprint_hash] >= watch.due.get(fingerprint_hash, 1)
        return again or (self._turns > 0 and watch.stale >= watch.stale_due)

    def _fresh(self, since: int) -> _Watch:
        return _Watch(since, self._first_due())

    def _first_due(self) -> int:
        return max(1, self._turns // 8)

    async def check(self, subject: Subject, stopped: Event, deadlines: CallDeadlines) -> None:
        """Read the log. Raises LoopStopped if the job is in a loop, and requests one review.

        Call it for one call of a job at a time. `stopped` is the `loop_stopped` event of the call.
        """
        async with store_answers_by(deadlines.store_deadline()):
            why, seen = await self._verdict(subject)
        if why is not None:
            stop = StopLoop(subject, stopped, why, seen)
            _refuse_if_asked(subject, await self._store.commit(stop, until=deadlines.store_deadline()))

    async def _verdict(self, subject: Subject) -> tuple[str | None, str]:
        """The reason why the job is in a loop, or None; and the id of its last review. Raises LoopStopped."""
        reviews = await list_reviews(self._store, state="", job_id=subject.job_id, most=1000)
        last = next((review for review in reversed(reviews) if review.kind == "loop"), None)
        if last is not None:
            _refuse_if_asked(subject, last)
        since = last.decided_at or 0 if last is not None else 0
        watch = self._watches.get(subject.job_id)
        if watch is None or watch.since != since:
            self._remembered -= watch.size if watch is not None else 0
            watch = self._watches[subject.job_id] = self._fresh(since)
        why = await self._same_call(subject, watch) or await self._no_progress(subject, watch)
        return why, last.review_id if last is not None else ""

    async def _same_call(self, subject: Subject, watch: _Watch) -> str | None:
        if not self._same:
            return None
        fingerprint = _fingerprint(subject)
        fingerprint_hash = hash(fingerprint)
        name = "count_same_at" if subject.place is not None else "count_same"
        values = {"job_id": subject.job_id, "fingerprint": fingerprint, "since": watch.since, "most": self._same * 4}
        rows = await self._store.read(SQL[name], values)
        answers = sum(_event(row[0]).event == "model_succeeded" for row in rows)
        count = max(answers, watch.calls[fingerprint_hash])
        if count >= self._same:
            return f"the job repeated the same call {count} times (guards.same_call: {self._same})"
        watch.due[fingerprint_hash] = watch.calls[fingerprint_hash] + max(1, (self._same - count) // 4)
        return None

    async def _no_progress(self, subject: Subject, watch: _Watch) -> str | None:
        if not self._turns or watch.stale < watch.stale_due:
            return None
        values = {"job_id": subject.job_id, "since": watch.since, "most": self._turns * EVENTS_PER_TURN}
        rows = await self._store.read(SQL["list_latest"], values)
        events = [recorded(subject.job_id, row) for row in reversed(rows)]
        refs = [each.facts.input_ref for each in events if each.facts.event == "model_called" and each.facts.input_ref]
        stale = stale_turns(events, await self._ledger.last_messages(subject.who.tenant_id, refs))
        if stale >= self._turns:
            return (
                f"the last {stale} turns only repeated earlier ones, without a step or an effect in between"
                f" (guards.no_progress_turns: {self._turns})"
            )
        watch.stale_due = watch.stale + max(1, (self._turns - stale) // 2)
        return None


def _fingerprint(subject: Subject) -> str:
    return subject.place.fingerprint if subject.place is not None else subject.fingerprint or ""


def _last_message(request: Request) -> bytes | int:
    """A cheap hash of the last message. With ids of tool calls, which differ each time, only the length is compared."""
    if not request.links:
        return 0
    last = request.links[-1]
    named = any(name in last.body for name in _CALL_IDS)
    return len(last.body) if named else last.message


def _event(body: Any) -> Event:
    return msgspec.json.decode(bytes(body), type=Event)


def _refuse_if_asked(subject: Subject, review: ReviewRow) -> None:
    """Raise LoopStopped while nobody has decided the review, and after a rejection until this attempt of the job ends."""
    if review.state in {"open", "expired"}:
        raise _stopped(subject, review)
    attempt = _decode(review.detail).get("attempt")
    if review.state == "rejected" and attempt == subject.attempt:
        note = f": {review.note}" if review.note else ""
        raise LoopStopped(
            f"{subject.job_id} was stopped as a loop: rejected by {review.decided_by}{note} ({review.review_id})",
            review_id=review.review_id,
            rejected=True,
        )


def _stopped(subject: Subject, review: ReviewRow) -> LoopStopped:
    return LoopStopped(
        f"{subject.job_id} is stopped as a loop. {review.question} See `overnight explain {subject.job_id}`; to continue,"
        f" run `overnight reviews approve {review.review_id}`",
        review_id=review.review_id,
    )


def _job_of(review: ReviewRow) -> str:
    return review.job_id


_READ = SQL["read_last_loop"]
LAST_LOOP: Table[ReviewRow] = Table(51, ReviewRow, _job_of, lock=_READ, insert=_READ, update=_READ)
"""The newest review of a loop of a job, read under the job's lock. The package `reviews` writes it."""


class StopLoop(msgspec.Struct):
    """Write `loop_stopped` and request a review. Returns the review. If another process has requested one since `seen`, that
    one is returned and nothing is written."""

    subject: Subject
    event: Event
    why: str
    seen: str = ""

    def locks(self) -> list[tuple[Any, Any]]:
        return [(JOB, self.subject.job_id), (LAST_LOOP, self.subject.job_id)]

    def decide(self, unit: Unit) -> ReviewRow:
        job = locked_job(unit, self.subject.job_id)
        last = unit.get(LAST_LOOP, job.job_id)
        if last is not None and last.review_id != self.seen:
            return last
        event = msgspec.structs.replace(self.event, attempt=job.attempt)
        event.decision = {"why": self.why}
        append(unit, job, event)
        detail = {"attempt": job.attempt, "call": self.subject.label}
        question = f"Continue? {self.why[0].upper()}{self.why[1:]}."
        review = request_review(unit, job, "loop", question, detail, None)
        unit.cache(LAST_LOOP, review)
        return review


def stale_turns(events: Sequence[Recorded], heads: Mapping[str, bytes]) -> int:
    """The number of last turns that only repeat earlier ones. Pure; `heads` is the last message of each input reference."""
    asked: dict[str, str | None] = {}
    seen: set[bytes] = set()
    stale = 0
    for each in events:
        facts = each.facts
        if facts.event == "model_called" and facts.call_id is not None:
            asked[facts.call_id] = facts.input_ref
        elif facts.event in _PROGRESS:
            stale = 0
        elif facts.event == "model_succeeded":
            message = heads.get(asked.get(facts.call_id or "") or "", b"")
            answer = each.content if each.content is not None else (facts.output_ref or "").encode()
            turn = _digest(message) + _digest(answer)
            stale = stale + 1 if turn in seen else 0
            seen.add(turn)
    return stale


def _digest(body: bytes) -> bytes:
    # A body that is not JSON is a reference, which identifies its content.
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = _encode(_stable(_decode(body)))
    return hashlib.sha256(body).digest()


def _stable(value: Any) -> Any:
    """The value without ids, times and token counts."""
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value)
        return {name: _stable(each) for name, each in entries.items() if name not in _VOLATILE}
    if isinstance(value, list):
        return [_stable(each) for each in cast("list[Any]", value)]
    return value
