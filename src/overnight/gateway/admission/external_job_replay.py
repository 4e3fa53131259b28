"""Replay of recorded answers to an external job that was restarted. It has no positions, so requests are matched.

The k-th request with a fingerprint in this attempt receives the k-th answer of the newest older attempt that received one.
If no attempt received a k-th answer, it receives the first recorded answer that no attempt received.

The log is read under the job's lock, by one admission of a job at a time in each process, so that no answer is replayed twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from overnight.budgets import BUDGET_SQL
from overnight.domain import Event, Recorded
from overnight.ledger import (
    ATTEMPT_MARK,
    LEDGER_SQL,
    JobRow,
    append,
    recorded,
)
from overnight.store import Unit, statements

SQL = statements("overnight.gateway.admission")
_READ_ANSWERS, _LIST_MARKED = LEDGER_SQL["read_answers"], SQL["list_marked"]
_COUNT_IN_FLIGHT = BUDGET_SQL["count_in_flight"]


def replay_answer(unit: Unit, job: JobRow, fingerprint: str, event: Event) -> Recorded | None:
    """Write `event` (`model_replayed`) and return the recorded answer to this request; None if none is left."""
    marked = [*_marked(unit, job, ATTEMPT_MARK), *_marked(unit, job, fingerprint)]
    answer = next(iter(unused(marked, job.attempt)), None)
    if answer is None:
        return None
    event.attempt, event.cost_microusd = job.attempt, 0
    event.model, event.provider, event.call_id = answer.facts.model, answer.facts.provider, answer.facts.call_id
    event.detail = {"of": answer.seq}
    append(unit, job, event, fingerprint=fingerprint)
    return answer


def is_in_flight(unit: Unit, job: JobRow, fingerprint: str) -> bool:
    """Whether the same request of an older attempt is in flight, in any process."""
    values = {"job_id": job.job_id, "fingerprint": fingerprint, "attempt": job.attempt}
    return unit.query(_COUNT_IN_FLIGHT, values)[0][0] > 0


def note_divergence(unit: Unit, job: JobRow, fingerprint: str, event: Event) -> None:
    """Write `event` (`diverged`) for the first request of an attempt without a matching answer while other answers are left."""
    rows = unit.query(_LIST_MARKED, {"job_id": job.job_id})
    marked = [recorded(job.job_id, row) for row in rows]
    if any(each.facts.event == "diverged" and each.facts.attempt == job.attempt for each in marked):
        return
    attempts = [each for each in marked if each.fingerprint == ATTEMPT_MARK]
    fingerprints = dict.fromkeys(each.fingerprint for each in marked if each.fingerprint != ATTEMPT_MARK)
    left = sum(
        len(unused([*attempts, *(each for each in marked if each.fingerprint == known)], job.attempt))
        for known in fingerprints
    )
    if left:
        event.attempt = job.attempt
        event.decision = {"why": "no recorded answer matches this request; it is sent to a provider"}
        event.detail = {"unconsumed": left}
        append(unit, job, event, fingerprint=fingerprint)


def _marked(unit: Unit, job: JobRow, fingerprint: str) -> list[Recorded]:
    rows = unit.query(_READ_ANSWERS, {"job_id": job.job_id, "fingerprint": fingerprint})
    return [recorded(job.job_id, row) for row in rows]


class _ReceivedAnswers:
    """The answers that each attempt received for one fingerprint, in order, and those recorded too late for their attempt."""

    def __init__(self, marked: Iterable[Recorded]) -> None:
        self.by_attempt: dict[int, list[Recorded]] = {}
        self.unreceived: list[Recorded] = []
        self.cuts: list[tuple[int, int]] = []
        answers: dict[int, Recorded] = {}
        newest = 0
        for each in sorted(marked, key=lambda one: one.seq):
            facts, of_attempt = each.facts, each.facts.attempt or 1
            detail: dict[str, Any] = facts.detail or {}
            if facts.event == "attempt_started":
                newest = of_attempt
                if "answers_until" in detail:
                    self.cuts.append((of_attempt, detail["answers_until"]))
            elif facts.event == "model_succeeded" and (each.content or facts.output_ref):
                answers[each.seq] = each
                # An attempt that has ended does not receive the answers to its calls in flight.
                found = self.unreceived if of_attempt < newest else self.by_attempt.setdefault(of_attempt, [])
                found.append(each)
            elif facts.event == "model_replayed" and (answer := answers.get(detail["of"])) is not None:
                self.by_attempt.setdefault(of_attempt, []).append(answer)

    def is_valid(self, answer: Recorded) -> bool:
        """Whether no retry has discarded the answer: an attempt of a retry discards all answers after its `answers_until`."""
        of_attempt = answer.facts.attempt or 1
        return not any(of_attempt < began and answer.seq > until for began, until in self.cuts)


def unused(marked: Sequence[Recorded], attempt: int) -> list[Recorded]:
    """The answers that this attempt may still receive, in order. Pure; `marked` are the attempts of a job and the events
    of one fingerprint."""
    received = _ReceivedAnswers(marked)
    own = received.by_attempt.pop(attempt, [])
    older = [
        [answer for answer in received.by_attempt[each] if received.is_valid(answer)]
        for each in sorted(received.by_attempt, reverse=True)
        if each < attempt
    ]
    found: list[Recorded] = []
    for occurrence in range(len(own), max(map(len, older), default=0)):
        found.append(next(answers[occurrence] for answers in older if occurrence < len(answers)))
    seqs = {answer.seq for answers in (own, *older) for answer in answers}
    return found + [each for each in received.unreceived if each.seq not in seqs and received.is_valid(each)]
