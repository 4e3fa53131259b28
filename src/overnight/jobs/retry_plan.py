"""What a retry does not answer with: the failures that it is tried again for, and what it asks afresh besides. Pure."""

from collections.abc import Collection

import msgspec

from overnight.domain import Recorded

from .history import History, first_seq, is_failure
from .positions import Position

LASTING = frozenset({"effect", "child", "approval"})
"""Kinds whose unanswered entry outlives the retry of a step: the effect is known by its key, the child is still running, the
question is still open."""


class RetryPlan(msgspec.Struct, frozen=True):
    """What the retry of a job does not replay: `seqs` are given to nobody any more. What was answered from the seq `loose` on
    is replayed only as far as the code comes there again, because it may have come there by one of those."""

    seqs: list[int]
    loose: int


def stale_for_retry(history: History) -> RetryPlan:
    """For the job: the failures that its end came of (the last one, when it came of none), and what is stale inside of those
    steps. A failure that the code went on from stays an answer."""
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
    """For a step: all inside it after the last thing it has done, and the failures that it failed of. One that it went on from
    has led up to what it has done."""
    inside = history.known(step).values()
    last_done = max((first_seq(each.answer) for each in inside if each.answer and _is_deed(each.answer)), default=0)
    found: list[int] = []
    for each in inside:
        stale = each.answer is not None and (first_seq(each.answer) > last_done or each.answer.seq in unhandled)
        if each.answer is not None and stale:
            found.append(each.answer.seq)
        if each.entry is not None and _is_stale(each.entry, answered=each.answer is not None, stale=stale):
            found.append(each.entry.seq)
    return sorted(found)


def _is_stale(entry: Recorded, *, answered: bool, stale: bool) -> bool:
    if not answered:
        return entry.facts.kind not in LASTING
    # A child that failed is tried again itself, so that it keeps what it has done.
    return stale and not _is_child(entry)


def _is_child(entry: Recorded) -> bool:
    return entry.facts.kind == "child"


def _is_deed(answer: Recorded) -> bool:
    """Whether it tells that the world was changed: by an effect, or by a child job."""
    return answer.facts.event == "tool_succeeded" or (answer.facts.event == "child_finished" and not is_failure(answer))
