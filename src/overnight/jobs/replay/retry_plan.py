"""Retry plans: the recorded answers that a retry does not replay, so that their boundaries are re-run. Pure."""

from collections.abc import Collection

import msgspec

from overnight.domain import Recorded

from ..positions import Position
from .history import History, first_seq, is_failure

LASTING = frozenset({"effect", "child", "approval"})
"""Kinds whose unanswered entry outlives the retry of a step: the effect is known by its key, the child is still running, the
question is still open."""


class RetryPlan(msgspec.Struct, frozen=True):
    """The answers that the retry of a job does not replay, as recorded in `answers_dropped`.

    - `seqs`: answers and entries that are dropped.
    - `loose`: answers from this seq on are replayed only as far as the code reaches their boundaries again, because it may
      have reached them through a dropped one.
    """

    seqs: list[int]
    loose: int


def stale_for_retry(history: History) -> RetryPlan:
    """The plan for a failed job: drop the failures that ended it (the last one, if none did) and what is stale in those steps.

    A failure that the code handled is replayed.
    """
    failures = [answer for answer in history.order if is_failure(answer)]
    failures = [answer for answer in failures if answer.seq in history.unhandled] or failures[-1:]
    dropped: set[int] = set()
    for answer in failures:
        place = (answer.path or "", answer.ordinal or 0)
        entry = history.entries.get(place)
        dropped |= {answer.seq} if entry is None or _is_child(entry) else {answer.seq, entry.seq}
        dropped.update(stale_in_step(history, place, (answer.facts.detail or {}).get("unhandled", ())))
    return RetryPlan(sorted(dropped), min((answer.seq for answer in failures), default=history.last_seq + 1))


def stale_in_step(history: History, step: Position, unhandled: Collection[int]) -> list[int]:
    """The stale seqs inside a step: all after its last external effect, and the `unhandled` failures that ended it.

    A failure that the step handled has led to its last effect, so it is not stale.
    """
    inside = history.known(step).values()
    last_effect = max((first_seq(each.answer) for each in inside if each.answer and _is_effect(each.answer)), default=0)
    found: list[int] = []
    for each in inside:
        stale = each.answer is not None and (first_seq(each.answer) > last_effect or each.answer.seq in unhandled)
        if each.answer is not None and stale:
            found.append(each.answer.seq)
        if each.entry is not None and _is_stale(each.entry, answered=each.answer is not None, stale=stale):
            found.append(each.entry.seq)
    return sorted(found)


def _is_stale(entry: Recorded, *, answered: bool, stale: bool) -> bool:
    if not answered:
        return entry.facts.kind not in LASTING
    # A child that failed is retried itself, so that it keeps the results of its effects.
    return stale and not _is_child(entry)


def _is_child(entry: Recorded) -> bool:
    return entry.facts.kind == "child"


def _is_effect(answer: Recorded) -> bool:
    """Whether the answer records an external side effect, of an effect or of a child job."""
    return answer.facts.event == "tool_succeeded" or (answer.facts.event == "child_finished" and not is_failure(answer))
