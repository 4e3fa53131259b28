"""The history of a job: the fold of its events into entries and answers by position. Pure.

An *entry* records that a boundary was reached, and when a timer is due. An *answer* records how it ended. Recovery replays
answers in the order of their commits. `retry_plan.py` selects the answers that a retry does not replay.
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from overnight.domain import Recorded

from ..positions import Position, enclosing, within

T = TypeVar("T")
ANSWERS = frozenset(
    {
        "step_committed",
        "step_failed",
        "model_succeeded",
        "model_failed",
        "tool_succeeded",
        "tool_failed",
        "tool_refused",
        "timer_fired",
        "value_recorded",
        "review_decided",
        "child_finished",
        "signal_received",
    }
)
FAILURES = frozenset({"step_failed", "model_failed", "tool_failed", "tool_refused"})
FROM_OUTSIDE = frozenset({"review_decided", "child_finished", "signal_received", "tool_succeeded", "tool_failed"})


def arguments_digest(content: bytes | None) -> str | None:
    """The digest of an effect's arguments as JSON; None if they were erased or are stored elsewhere."""
    return None if content is None else hashlib.sha256(content).hexdigest()


def asked_digest(content: bytes | None) -> str | None:
    """The digest of the arguments that an approval was requested for; None if they were erased or are stored elsewhere."""
    return None if content is None else arguments_digest(msgspec.json.decode(content, type=_Asked).arguments)


class _Asked(msgspec.Struct):
    arguments: msgspec.Raw = msgspec.Raw(b"null")


class ReplayedAnswer(Recorded):
    """An answer of an earlier attempt, at the seq of its replay in this one. `first`: its original seq."""

    first: int = 0


class BoundaryState(msgspec.Struct):
    """The entry and the answer of a boundary. `was`: its position in an earlier attempt, if that was another."""

    entry: Recorded | None = None
    answer: Recorded | None = None
    was: Position | None = None


class History(msgspec.Struct):
    """Entries and answers by position.

    - `retained`: boundaries of earlier attempts that are not replayed. They are valid again if the code repeats the request.
    - `loose`: the seqs from which the last retry on replays answers only if the code reaches their boundaries again.
    - `unhandled`: the seqs of the failures that ended the job.
    - `failures`: failed attempts of a step that is to be retried, counted in this attempt of the job.
    - `arguments`: the digests of the arguments of effects.
    """

    entries: dict[Position, Recorded]
    answers: dict[Position, Recorded]
    last_seq: int = 0
    failures: dict[Position, int] = msgspec.field(default_factory=dict[Position, int])
    retained: dict[Position, BoundaryState] = msgspec.field(default_factory=dict[Position, BoundaryState])
    arguments: dict[Position, str | None] = msgspec.field(default_factory=dict[Position, str | None])
    loose: range = range(0)
    unhandled: Sequence[int] = ()

    @property
    def order(self) -> list[Recorded]:
        """The answers that a replay delivers, by seq. Those inside a finished step are not asked for again."""
        outermost = [
            answer
            for answer in self.answers.values()
            if not any(outer in self.answers for outer in enclosing(answer.path or ""))
        ]
        return sorted(outermost, key=lambda answer: answer.seq)

    def at(self, place: Position) -> BoundaryState:
        """The boundary at a position, retained or not."""
        return self.retained.get(place) or BoundaryState(self.entries.get(place), self.answers.get(place))

    def known(self, step: Position | None = None) -> dict[Position, BoundaryState]:
        """All boundaries by position; with `step`, those inside that step."""
        places = {**self.entries, **self.answers, **self.retained}
        return {place: self.at(place) for place in places if step is None or within(place[0], step)}

    # ── taking events ────────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, event: Recorded) -> None:
        """Take the next event of the log."""
        self.last_seq = event.seq
        facts, place, detail = event.facts, position_of(event), event.facts.detail or {}
        match facts.event:
            case "answers_dropped":
                self._drop(event.seq, detail)
            case "attempt_started":
                self.failures.clear()
            case "failed":
                self.unhandled = detail.get("unhandled", ())
            case "boundary_kept" if place is not None:
                self._kept(event.seq, place, detail)
            case "step_failed" if "retry_in_ms" in detail:
                step = (detail["position"]["path"], detail["position"]["ordinal"])
                self.failures[step] = self.failures.get(step, 0) + 1
            case name if place is not None:
                if name in FROM_OUTSIDE and "replayed" not in detail:
                    self.add_external(place, event)
                else:
                    (self.answers if name in ANSWERS else self.entries)[place] = event
                    self.retained.pop(place, None)
                # A person may have edited the arguments: the code asks with its own again.
                if name == "tool_called" and "edited" not in detail:
                    self.arguments[place] = arguments_digest(event.content)
                elif name == "review_requested" and facts.kind == "effect" and detail.get("review") == "approval":
                    self.arguments[place] = asked_digest(event.content)
            case _:
                pass

    def _kept(self, seq: int, place: Position, detail: dict[str, Any]) -> None:
        if (was := detail.get("was")) is not None:
            self._move((was["path"], was["ordinal"]), place)
        if place in self.retained:
            if "child_job_id" in detail:  # its end is not recorded in this attempt yet
                self.retained[place].answer = None
            self.keep(place, seq if "of" in detail else None)

    def add_external(self, place: Position, event: Recorded) -> None:
        """Take an answer that another party may have written. The first one counts, for the boundary at its position."""
        known = self.at(place)
        if known.answer is not None or not _fits(event, known.entry):
            return
        if place in self.retained:
            self.retained[place].answer = event
        else:
            self.answers[place] = event

    def _drop(self, seq: int, detail: dict[str, Any]) -> None:
        at, seqs = detail.get("position"), set(detail.get("seqs", ()))
        step = (at["path"], at["ordinal"]) if at is not None else None
        if "since" in detail:
            self.retain(detail["since"], seqs, step)
        elif "loose" in detail:
            self.retain(seq, seqs)
            self.loose = range(detail["loose"], seq)
        else:  # the form of earlier versions
            for place, each in self.known(step).items():
                _put(self.entries, place, _without_stale(each.entry, seqs))
                _put(self.answers, place, _without_stale(each.answer, seqs))

    # ── retained boundaries ──────────────────────────────────────────────────────────────────────────────────────────

    def retain(self, since: int, stale: Collection[int] = (), step: Position | None = None) -> None:
        """Drop the stale seqs, and retain boundaries answered from the seq `since` on or not at all.

        With `step`, only those inside that step.
        """
        known = self.known(step)
        late = {place for place, each in known.items() if place in self.retained or _is_late(each.answer, since, stale)}
        # A step that has ended is not run again for the boundaries inside it.
        ended = {place for place in late if known[place].answer is not None}
        for place, before in known.items():
            retained = place in late or not ended.isdisjoint(enclosing(place[0]))
            each = BoundaryState(_without_stale(before.entry, stale), _without_stale(before.answer, stale))
            _put(self.entries, place, None if retained else each.entry)
            _put(self.answers, place, None if retained else each.answer)
            _put(self.retained, place, each if retained and _can_be_retained(each) else None)

    def recall(self, place: Position, asked: dict[str, Any]) -> Recorded | None:
        """The retained answer at a position, if the request is the same. Otherwise the retained boundary is dropped."""
        if place in self.retained and self.difference(place, asked):
            del self.retained[place]
        return self.retained[place].answer if place in self.retained else None

    def find(self, place: Position, asked: dict[str, Any]) -> None:
        """Move a retained boundary with the same request from another position to this one.

        The code has reached it by another path, and its effects must not be repeated.
        """
        for was, retained in self.retained.items():
            inner = any(self.at(outer).answer is not None for outer in enclosing(was[0]))
            if not inner and _may_move(retained) and not self.difference(was, asked):
                self._move(was, place)
                return

    def _move(self, was: Position, place: Position) -> None:
        if (retained := self.retained.pop(was, None)) is not None:
            moved = {"path": place[0], "ordinal": place[1]}
            entry = retained.entry and msgspec.structs.replace(retained.entry, **moved)
            answer = retained.answer and msgspec.structs.replace(retained.answer, **moved)
            self.retained[place] = BoundaryState(entry, answer, retained.was or was)
            self.arguments[place] = self.arguments.get(was)

    def keep(self, place: Position, seq: int | None) -> None:
        """Make a retained boundary valid again: its entry, and its answer as replayed at `seq`."""
        retained = self.retained.pop(place)
        answer = retained.answer
        if answer is not None and seq is not None:
            fields: dict[str, Any] = msgspec.structs.asdict(answer)
            fields.update(seq=seq, first=first_seq(answer))
            answer = ReplayedAnswer(**fields)
        _put(self.entries, place, retained.entry)
        _put(self.answers, place, answer)

    def difference(self, place: Position, asked: dict[str, Any]) -> dict[str, Any]:
        """A readable difference between the record at a position and the request of the code; empty if they agree."""
        known, digest = self.at(place), self.arguments.get(place, "unknown")
        for each in (known.entry, known.answer):
            if each is not None and (changed := difference(each, asked, digest)):
                return changed
        return {}


def fold(events: Iterable[Recorded]) -> History:
    """The history of a job from all of its events, in order."""
    history = History({}, {})
    for event in events:
        history.take(event)
    return history


def position_of(event: Recorded) -> Position | None:
    """The position of an event; None for one without."""
    if event.path is None or event.ordinal is None:
        return None
    return (event.path, event.ordinal)


def is_failure(answer: Recorded) -> bool:
    """Whether an answer raises an error in the job code."""
    state = (answer.facts.detail or {}).get("state")
    return answer.facts.event in FAILURES or (answer.facts.event == "child_finished" and state != "succeeded")


def first_seq(answer: Recorded) -> int:
    """The seq at which an answer was delivered first."""
    return answer.first if isinstance(answer, ReplayedAnswer) else answer.seq


def _put(target: dict[Position, T], place: Position, value: T | None) -> None:
    if value is None:
        target.pop(place, None)
    else:
        target[place] = value


def _without_stale(event: Recorded | None, stale: Collection[int]) -> Recorded | None:
    return None if event is not None and event.seq in stale else event


def _is_late(answer: Recorded | None, since: int, stale: Collection[int]) -> bool:
    return answer is None or answer.seq >= since or answer.seq in stale


def _can_be_retained(known: BoundaryState) -> bool:
    """Whether the boundary can be retained. A time limit without an answer cannot: its block starts again."""
    entry = known.entry
    return known.answer is not None or (
        entry is not None and (entry.facts.kind, entry.facts.name) != ("timer", "timeout")
    )


def _may_move(retained: BoundaryState) -> bool:
    """Whether it may have had effects outside: a step or an effect that ended, or any child job."""
    if retained.answer is not None and retained.answer.facts.event in {"step_committed", "tool_succeeded"}:
        return True
    return retained.entry is not None and retained.entry.facts.kind == "child"


def _fits(event: Recorded, entry: Recorded | None) -> bool:
    """Whether an event answers this entry: a dropped question may still be decided, and a child still end."""
    if entry is None:
        return True
    answered, asked = event.facts.detail or {}, entry.facts.detail or {}
    names = [name for name in ("review_id", "child_job_id") if name in answered]
    return event.facts.kind == entry.facts.kind and all(answered[name] == asked.get(name) for name in names)


def difference(recorded: Recorded, asked: dict[str, Any], arguments: str | None = None) -> dict[str, Any]:
    """A readable difference between a recorded boundary and the present request of the code; empty if they agree."""
    facts = recorded.facts
    was = {"kind": facts.kind, "name": facts.name, "fingerprint": recorded.fingerprint, "arguments": arguments}
    # An external answer (a person, a child job) has no fingerprint; the entry has it.
    changed = {
        key: {"recorded": was[key], "asked": value}
        for key, value in asked.items()
        if was[key] is not None and was[key] != value
    }
    if not changed:
        return {}
    here, there = f"{was['kind']} {was['name']}", f"{asked.get('kind')} {asked.get('name')}"
    why = f"the history has {here} here, the code requests {there}"
    if changed.keys() <= {"fingerprint", "arguments"}:
        why = f"the arguments of {here} differ from the recorded ones"
    place = {"path": recorded.path, "ordinal": recorded.ordinal}
    return {"position": place, "seq": recorded.seq, "boundary": here, "changed": changed, "why": why}
