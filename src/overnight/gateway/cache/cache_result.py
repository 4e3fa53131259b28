"""The result of a cache lookup, written in the transaction that admits the call: a hit with its own reference to the answer,
or a miss. Also the comparison of the semantic cache in shadow mode."""

from __future__ import annotations

from typing import Any

import msgspec

from overnight.domain import Event, Recorded
from overnight.ledger import (
    JOB,
    JobRow,
    KnownContent,
    append,
    locked_job,
    store_blob,
)
from overnight.store import Unit
from overnight.wire_formats.request import Request

from ..admission.event_writer import append_at, append_with_request
from ..identity import Subject
from .answer_comparison import Difference
from .rows import ASKED, LookedUpRow
from .statistics import SHARED, Tally, count

NOTHING, REPEATED = "no answer is recorded for this question", "this job has asked the same question before"


class Candidate(msgspec.Struct, frozen=True):
    """A recorded answer found by a cache: `answer` is its event, `body` its JSON in the client's format."""

    kind: str
    answer: Recorded
    body: bytes
    similarity: float | None = None
    single_flight: bool = False


class CacheResult(msgspec.Struct, frozen=True):
    """The result of a cache lookup, applied by the admission of its call.

    Fields:
        mark: the fingerprint of the cache events.
        looked: the kinds of cache that were consulted.
        candidate: the answer found; None for a miss.
        trouble: the reason why a cache could not be consulted.
        spent_microusd: the cost of the embedding of the question.
    """

    mark: str
    looked: tuple[str, ...]
    candidate: Candidate | None
    trouble: str = ""
    spent_microusd: int = 0

    def take(
        self, unit: Unit, job: JobRow, subject: Subject, request: Request, known: KnownContent, called: Event
    ) -> Recorded | None:
        """Under the job's lock: record the hit for this call and return it; None if the call must be made.

        The second occurrence of a question in a job expects a new answer, so it is never a hit.
        """
        key = (job.job_id, self.mark)
        unit.lock([(ASKED, key)])
        repeated = unit.get(ASKED, key) is not None
        unit.cache(ASKED, LookedUpRow(*key))
        candidate = self.candidate
        if candidate is not None and (repeated or candidate.answer.job_id == job.job_id):
            candidate, repeated = None, True
        for kind in self.looked:
            spent = self.spent_microusd if kind in ("semantic", "shadow") else 0
            if spent or not repeated:
                tally = Tally(asked=int(not repeated), spent_microusd=spent)
                count(unit, job.tenant_id, called.agent_id, kind, tally)
        looked = _event(called, "cache_missed" if candidate is None else "cache_hit", job.attempt)
        if candidate is None:
            why = REPEATED if repeated else self.trouble or NOTHING
            looked.decision = {"why": why, "looked": self.looked, "trouble": bool(self.trouble)}
            append(unit, job, looked, fingerprint=self.mark)
            return None
        return self._hit(unit, job, subject, request, known, looked, candidate)

    def _hit(
        self,
        unit: Unit,
        job: JobRow,
        subject: Subject,
        request: Request,
        known: KnownContent,
        looked: Event,
        candidate: Candidate,
    ) -> Recorded:
        origin, saved = candidate.answer, candidate.answer.facts.cost_microusd or 0
        cache: dict[str, Any] = {"kind": candidate.kind, "of": {"job_id": origin.job_id, "seq": origin.seq}}
        cache |= {"age_ms": (unit.now - origin.at) // 1000, "saved_microusd": saved}
        if candidate.similarity is not None:
            cache["similarity"] = candidate.similarity
        if candidate.single_flight:
            cache["single_flight"] = True
        looked.decision = {"why": _WHY[candidate.kind, candidate.single_flight]}
        looked.detail = dict(cache)
        place = subject.place
        if place is not None:
            looked.detail["position"] = {"path": place.path, "ordinal": place.ordinal}
        append_with_request(unit, job, looked, request, known, fingerprint=self.mark)
        kind = SHARED if candidate.single_flight else candidate.kind
        count(unit, job.tenant_id, looked.agent_id, kind, Tally(hits=1, saved_microusd=saved))
        answered = _event(looked, "model_succeeded", job.attempt)
        answered.input_ref, answered.decision, answered.detail = None, None, {"cache": cache}
        answered.model, answered.provider, answered.cost_microusd = origin.facts.model, origin.facts.provider, 0
        # The answer is stored by its hash, so a month has one copy for any number of hits.
        answered.output_ref = store_blob(unit, job.tenant_id, candidate.body, known)
        given = append_at(unit, job, answered, place, fingerprint=subject.fingerprint)
        given.content = candidate.body
        return given


_WHY = {
    ("exact", False): "the same question was answered before",
    ("exact", True): "the same question was in flight; all of its calls share one answer",
    ("semantic", False): "a similar question was answered before",
}


def _event(called: Event, name: str, attempt: int) -> Event:
    event = msgspec.structs.replace(called, event=name, decision=None, detail=None)
    event.attempt, event.cost_microusd = attempt, 0
    if name == "cache_missed":
        event.call_id, event.cost_microusd = None, None
    return event


class RecordShadowComparison(msgspec.Struct, frozen=True):
    """Record the answer of the semantic cache in shadow mode, compared with the actual answer: an event and a count."""

    job_id: str
    event: Event
    would_be: Candidate
    difference: Difference
    saved_microusd: int

    def locks(self) -> list[tuple[Any, Any]]:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> None:
        job = locked_job(unit, self.job_id)
        event, would_be, difference = msgspec.structs.replace(self.event), self.would_be.answer, self.difference
        event.attempt = job.attempt
        event.decision = {"why": "shadow mode: the semantic cache would have returned this answer, and did not"}
        event.detail = {
            "of": {"job_id": would_be.job_id, "seq": would_be.seq},
            "similarity": self.would_be.similarity,
            "same": difference.same,
            "overlap": difference.overlap,
            "agrees": difference.agrees,
            "saved_microusd": self.saved_microusd,
        }
        append(unit, job, event)
        tally = Tally(
            hits=1,
            same=int(difference.same),
            agreed=int(difference.agrees),
            overlap_permille=round(difference.overlap * 1000),
            saved_microusd=self.saved_microusd,
        )
        count(unit, job.tenant_id, event.agent_id, "shadow", tally)
