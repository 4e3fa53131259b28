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


class History(msgspec.Struct):
    """Entries and answers by position; `order` is the answers still to be delivered, by seq."""

    entries: dict[Position, Recorded]
    answers: dict[Position, Recorded]
    last_seq: int = 0

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
    entries: dict[Position, Recorded] = {}
    answers: dict[Position, Recorded] = {}
    by_seq: dict[int, Position] = {}
    last_seq = 0
    for event in events:
        last_seq = event.seq
        if event.facts.event == "answers_dropped":
            dropped: list[int] = (event.facts.detail or {}).get("seqs", [])
            for seq in dropped:
                if (place := by_seq.pop(seq, None)) is not None:
                    answers.pop(place, None)
            continue
        place = position_of(event)
        if place is None:
            continue
        if event.facts.event in ANSWERS:
            answers[place] = event
            by_seq[event.seq] = place
        else:
            entries[place] = event
    return History(entries, answers, last_seq)


def _within(path: str, step: Position) -> bool:
    return step in enclosing(path)


def stale_in_step(history: History, step: Position) -> list[int]:
    """The seqs that a retry of the step must not answer with: all inside it after its last committed effect."""
    inside = [answer for answer in history.answers.values() if answer.path is not None and _within(answer.path, step)]
    last_effect = max((answer.seq for answer in inside if answer.facts.event == "tool_succeeded"), default=0)
    return sorted(answer.seq for answer in inside if answer.seq > last_effect or answer.facts.event in FAILURES)


def stale_for_retry(history: History) -> list[int]:
    """The seqs that a retry of the job must not answer with: failures that nothing followed on their path, and what lies
    inside those steps after their last committed effect. A failure that the code caught and went on from stays."""
    newest: dict[str, Recorded] = {}
    for answer in history.order:
        newest[answer.path or ""] = answer
    dropped: set[int] = set()
    for answer in newest.values():
        if answer.facts.event in FAILURES and answer.ordinal is not None:
            dropped.add(answer.seq)
            dropped.update(stale_in_step(history, (answer.path or "", answer.ordinal)))
    return sorted(dropped)


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
    return {"position": {"path": recorded.path, "ordinal": recorded.ordinal}, "seq": recorded.seq, "changed": changed}
