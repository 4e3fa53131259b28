"""Recorded answers given again to a foreign runtime that began anew. It has no positions, so it is matched by request:

the k-th request with a fingerprint in this attempt is answered by the k-th recorded answer with it from older attempts.

Read under the job's lock, and by one admission of a job at a time in each process, so that no answer is given out twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from overnight.domain import Event, Recorded
from overnight.ledger import ATTEMPT_MARK, LEDGER_SQL, JobRow, append, recorded
from overnight.store import Unit, statements

SQL = statements("overnight.gateway")
_READ_ANSWERS, _LIST_MARKED = LEDGER_SQL["read_answers"], SQL["list_marked"]


def give_again(unit: Unit, job: JobRow, fingerprint: str, event: Event) -> Recorded | None:
    """The recorded answer to this request, with `event` (`model_replayed`) written; None when there is none left."""
    marked = [*_marked(unit, job, ATTEMPT_MARK), *_marked(unit, job, fingerprint)]
    answer = next(iter(unused(marked, job.attempt)), None)
    if answer is None:
        return None
    event.attempt, event.cost_microusd = job.attempt, 0
    event.model, event.provider, event.call_id = answer.facts.model, answer.facts.provider, answer.facts.call_id
    event.detail = {"of": answer.seq}
    append(unit, job, event, fingerprint=fingerprint)
    return answer


def note_divergence(unit: Unit, job: JobRow, fingerprint: str, event: Event) -> None:
    """The first request of an attempt that no recorded answer fits, while others are left, is an event (`diverged`)."""
    rows = unit.query(_LIST_MARKED, {"job_id": job.job_id})
    marked = [recorded(job.job_id, row) for row in rows]
    if any(each.facts.event == "diverged" and each.facts.attempt == job.attempt for each in marked):
        return
    left = len(unused(marked, job.attempt))
    if left:
        event.attempt = job.attempt
        event.decision = {"why": "no recorded answer fits this request; it is asked live"}
        event.detail = {"unconsumed": left}
        append(unit, job, event, fingerprint=fingerprint)


def _marked(unit: Unit, job: JobRow, fingerprint: str) -> list[Recorded]:
    rows = unit.query(_READ_ANSWERS, {"job_id": job.job_id, "fingerprint": fingerprint})
    return [recorded(job.job_id, row) for row in rows]


def unused(marked: Iterable[Recorded], attempt: int) -> list[Recorded]:
    """The answers of older attempts that hold in this one and were not given yet, in order. Pure.

    A `retry` attempt lets go of all answers after its `answers_until`, for itself and those after it.
    """
    answers: list[Recorded] = []
    given: set[int] = set()
    cuts: list[tuple[int, int]] = []
    for each in marked:
        facts = each.facts
        detail: dict[str, Any] = facts.detail or {}
        of_attempt = facts.attempt or 1
        if facts.event == "model_succeeded" and of_attempt < attempt and (each.content or facts.output_ref):
            answers.append(each)
        elif facts.event == "model_replayed" and of_attempt == attempt:
            given.add(detail["of"])
        elif facts.event == "attempt_started" and "answers_until" in detail:
            cuts.append((of_attempt, detail["answers_until"]))
    return [
        answer
        for answer in answers
        if answer.seq not in given
        and not any((answer.facts.attempt or 1) < began and answer.seq > until for began, until in cuts)
    ]
