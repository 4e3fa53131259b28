"""What a job's log answers: the fold of its events. Pure.

An *entry* says that a boundary was reached (and when a timer is due); an *answer* says how it came out. Recovery gives
answers back in the order in which they were committed. What a retry leaves out of that is chosen in `retrying.py`.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from overnight.domain import Recorded

from .positions import Position, enclosing

T = TypeVar("T")
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
FROM_OUTSIDE = frozenset({"review_decided", "child_finished", "signal_received", "tool_succeeded", "tool_failed"})


class Kept(Recorded):
    """An answer of an earlier attempt that was given again: at its new seq. `first` is the one it was first given at."""

    first: int = 0


class Known(msgspec.Struct):
    """What is known of a boundary. `was` is where it stood in an earlier attempt, when that was elsewhere."""

    entry: Recorded | None = None
    answer: Recorded | None = None
    was: Position | None = None


class History(msgspec.Struct):
    """Entries and answers by position.

    What stands `aside` is not replayed; it counts again once the code has come to ask the same. `loose` are the seqs that the
    last retry took over: they are replayed as far as the code comes there again. `unhandled` are the failures that the job's
    end came of. `failures` counts the tries of a step that failed and were to be tried again, in this attempt of the job.
    `arguments` are the digests of what effects were called with.
    """

    entries: dict[Position, Recorded]
    answers: dict[Position, Recorded]
    last_seq: int = 0
    failures: dict[Position, int] = msgspec.field(default_factory=dict[Position, int])
    aside: dict[Position, Known] = msgspec.field(default_factory=dict[Position, Known])
    arguments: dict[Position, str | None] = msgspec.field(default_factory=dict[Position, str | None])
    loose: range = range(0)
    unhandled: Sequence[int] = ()

    @property
    def order(self) -> list[Recorded]:
        """The answers that a replay will ask for, by seq: those inside of a finished step are not asked again."""
        kept = [
            answer
            for answer in self.answers.values()
            if not any(outer in self.answers for outer in enclosing(answer.path or ""))
        ]
        return sorted(kept, key=lambda answer: answer.seq)

    def take(self, event: Recorded) -> None:
        """The next event of the log."""
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
                if (was := detail.get("was")) is not None:
                    self._move((was["path"], was["ordinal"]), place)
                if place in self.aside:
                    if "child_job_id" in detail:  # it has told this attempt of no end yet
                        self.aside[place].answer = None
                    self.keep(place, event.seq if "of" in detail else None)
            case "step_failed" if "retry_in_ms" in detail:
                step = (detail["position"]["path"], detail["position"]["ordinal"])
                self.failures[step] = self.failures.get(step, 0) + 1
            case name if place is not None:
                if name in FROM_OUTSIDE and "replayed" not in detail:
                    self.hear(place, event)
                else:
                    (self.answers if name in ANSWERS else self.entries)[place] = event
                    self.aside.pop(place, None)
                if name == "tool_called":
                    self.arguments[place] = facts.content_sha256
            case _:
                pass

    def hear(self, place: Position, event: Recorded) -> None:
        """An answer that somebody else may have written. The first one counts, for the boundary that stands at its position by
        now; when that one is set aside, then only together with it."""
        known = self.at(place)
        if known.answer is not None or not _fits(event, known.entry):
            return
        if place in self.aside:
            self.aside[place].answer = event
        else:
            self.answers[place] = event

    def at(self, place: Position) -> Known:
        """What is known of the boundary there, whether it stands aside or not."""
        return self.aside.get(place) or Known(self.entries.get(place), self.answers.get(place))

    def known(self, step: Position | None = None) -> dict[Position, Known]:
        """All that is known by position; with `step`, inside of that step."""
        places = {**self.entries, **self.answers, **self.aside}
        return {place: self.at(place) for place in places if step is None or within(place[0], step)}

    # ── what a retry leaves out ──────────────────────────────────────────────────────────────────────────────────────

    def _drop(self, seq: int, detail: dict[str, Any]) -> None:
        at, seqs = detail.get("position"), set(detail.get("seqs", ()))
        step = (at["path"], at["ordinal"]) if at is not None else None
        if "since" in detail:
            self.set_aside(detail["since"], seqs, step)
        elif "loose" in detail:
            self.set_aside(seq, seqs)
            self.loose = range(detail["loose"], seq)
        else:  # as earlier versions wrote it
            for place, each in self.known(step).items():
                _put(self.entries, place, _fresh(each.entry, seqs))
                _put(self.answers, place, _fresh(each.answer, seqs))

    def set_aside(self, since: int, stale: Collection[int] = (), step: Position | None = None) -> None:
        """Forget the stale seqs, and set aside what was answered from `since` on and what was not answered; with `step`, inside
        of that step."""
        known = self.known(step)
        late = {place for place, each in known.items() if place in self.aside or _is_late(each.answer, since, stale)}
        # A step that has ended is not run again for the sake of what it had asked until then.
        ended = {place for place in late if known[place].answer is not None}
        for place, was in known.items():
            aside = place in late or not ended.isdisjoint(enclosing(place[0]))
            each = Known(_fresh(was.entry, stale), _fresh(was.answer, stale))
            _put(self.entries, place, None if aside else each.entry)
            _put(self.answers, place, None if aside else each.answer)
            _put(self.aside, place, each if aside and _can_stand(each) else None)

    def recall(self, place: Position, asked: dict[str, Any]) -> Recorded | None:
        """The answer that stands aside there, when the same is asked. What was asked otherwise is forgotten."""
        if place in self.aside and self.difference(place, asked):
            del self.aside[place]
        return self.aside[place].answer if place in self.aside else None

    def find(self, place: Position, asked: dict[str, Any]) -> None:
        """Nothing of what is asked stands here; when an earlier attempt did the same elsewhere, then that stands here from now
        on. The code came to it by another way this time, and what it did must not be done again."""
        for was, aside in self.aside.items():
            inner = any(self.at(outer).answer is not None for outer in enclosing(was[0]))
            if not inner and _may_move(aside) and not self.difference(was, asked):
                self._move(was, place)
                return

    def _move(self, was: Position, place: Position) -> None:
        """What stands aside at one place stands at another one."""
        if (aside := self.aside.pop(was, None)) is not None:
            moved = {"path": place[0], "ordinal": place[1]}
            entry = aside.entry and msgspec.structs.replace(aside.entry, **moved)
            answer = aside.answer and msgspec.structs.replace(aside.answer, **moved)
            self.aside[place] = Known(entry, answer, aside.was or was)
            self.arguments[place] = self.arguments.get(was)

    def keep(self, place: Position, seq: int | None) -> None:
        """What stands aside there counts again: its entry, and its answer as if it had just been given, at `seq`."""
        aside = self.aside.pop(place)
        answer = aside.answer
        if answer is not None and seq is not None:
            was: dict[str, Any] = msgspec.structs.asdict(answer)
            was.update(seq=seq, first=first_seq(answer))
            answer = Kept(**was)
        _put(self.entries, place, aside.entry)
        _put(self.answers, place, answer)

    def difference(self, place: Position, asked: dict[str, Any]) -> dict[str, Any]:
        """A readable diff of what was recorded there and what the code asks for now; empty when they agree."""
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
    if event.path is None or event.ordinal is None:
        return None
    return (event.path, event.ordinal)


def within(path: str, step: Position) -> bool:
    """Whether a path lies in the step."""
    inside = f"{step[0]}#{step[1]}"
    return path.startswith(inside) and path[len(inside) : len(inside) + 1] in {"", "/", "#"}


def is_failure(answer: Recorded) -> bool:
    """Whether it raises in the code that asked."""
    state = (answer.facts.detail or {}).get("state")
    return answer.facts.event in FAILURES or (answer.facts.event == "child_finished" and state != "succeeded")


def first_seq(answer: Recorded) -> int:
    return answer.first if isinstance(answer, Kept) else answer.seq


def _put(kept: dict[Position, T], place: Position, value: T | None) -> None:
    if value is None:
        kept.pop(place, None)
    else:
        kept[place] = value


def _fresh(event: Recorded | None, stale: Collection[int]) -> Recorded | None:
    return None if event is not None and event.seq in stale else event


def _is_late(answer: Recorded | None, since: int, stale: Collection[int]) -> bool:
    return answer is None or answer.seq >= since or answer.seq in stale


def _can_stand(known: Known) -> bool:
    """A time limit that was running is set anew: what it limits begins anew too."""
    entry = known.entry
    return known.answer is not None or (
        entry is not None and (entry.facts.kind, entry.facts.name) != ("timer", "timeout")
    )


def _may_move(aside: Known) -> bool:
    """Whether it may have changed the world: a step or an effect that came to its end, a child however far it came."""
    if aside.answer is not None and aside.answer.facts.event in {"step_committed", "tool_succeeded"}:
        return True
    return aside.entry is not None and aside.entry.facts.kind == "child"


def _fits(event: Recorded, entry: Recorded | None) -> bool:
    """Whether it answers what was begun there: a question that was dropped may still be decided, a child still end."""
    if entry is None:
        return True
    said, asked = event.facts.detail or {}, entry.facts.detail or {}
    names = [name for name in ("review_id", "child_job_id") if name in said]
    return event.facts.kind == entry.facts.kind and all(said[name] == asked.get(name) for name in names)


def difference(recorded: Recorded, asked: dict[str, Any], arguments: str | None = None) -> dict[str, Any]:
    """A readable diff of a recorded boundary and the one the code asks for now; empty when they agree."""
    facts = recorded.facts
    was = {"kind": facts.kind, "name": facts.name, "fingerprint": recorded.fingerprint, "arguments": arguments}
    # Who answers from outside (a person, a child job) does not know the fingerprint; the entry has it.
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
