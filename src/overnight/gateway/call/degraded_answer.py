"""The end of a call without a provider's answer: an expired answer from the cache, a fixed one, or a failure.

A degraded answer is recorded as the call's answer, so that a restarted agent receives the same one, at no cost and marked as
degraded. It is never cached.
"""

from __future__ import annotations

from typing import Any

import msgspec

from overnight.domain import ErrorFacts, Event, Recorded
from overnight.ledger import (
    MAX_INLINE_CONTENT,
    JobRow,
    KnownContent,
    store_blob,
)
from overnight.providers.error_classes import Failure
from overnight.store import Unit
from overnight.wire_formats import AnswerContext, wire_between
from overnight.wire_formats.request import Request

from ..admission.event_writer import append_at, append_with_request
from ..admission.external_job_lifecycle import close_unattributed
from ..identity import Subject
from ..stored_responses import stored_response_of

DEGRADED = "degraded"
_encode = msgspec.json.Encoder().encode


def fixed_answer(text: str, form: str, asked: AnswerContext) -> bytes | None:
    """The text as a complete answer in a client's format; None if the format has no text answers (embeddings)."""
    wire = wire_between(form, ("chat",))
    if wire is None or wire.client_format.cap_field is None:
        return None
    message = {"role": "assistant", "content": text, "refusal": None}
    completion = {
        "id": asked.answer_id,
        "object": "chat.completion",
        "created": asked.created_at,
        "model": asked.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }
    received = wire.received(_encode(completion), lambda: asked)
    return received.body if received else None


class FinalOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a call without a further attempt: a degraded answer, or a failure.

    Fields:
        event: an event of the call with the fields that all of its events share.
        why: the failures and the skipped targets.
        body: the degraded answer in the client's format; None for a failure.
        kind: of the degraded answer: `answer` (a fixed one) or `cache` (an expired one).
        of: the place of a cached answer in the log.
        failure: the failure returned to the client, if there is no answer.
        answer_id: the id of a fixed answer.
    """

    event: Event
    why: str
    body: bytes | None = None
    kind: str = ""
    of: dict[str, Any] | None = None
    failure: Failure | None = None
    answer_id: str = ""

    def write(self, unit: Unit, job: JobRow, subject: Subject, request: Request, known: KnownContent) -> Recorded:
        """Under the job's lock: record the request and the end of the call, without a reservation or cost."""
        if self.body is None:
            return self._fail(unit, job, subject)
        asked = self._event(DEGRADED, job)
        asked.decision = {"why": self.why, "kind": self.kind}
        asked.detail = {"of": self.of} if self.of else {}
        asked_seq = append_with_request(unit, job, asked, request, known)
        answered = self._event("model_succeeded", job)
        answered.model = answered.provider = DEGRADED
        answered.detail = {DEGRADED: {"kind": self.kind, **({"of": self.of} if self.of else {})}}
        answered.cost_microusd = 0
        content = self.body if len(self.body) <= MAX_INLINE_CONTENT else None
        if content is None:
            answered.output_ref = store_blob(unit, job.tenant_id, self.body, known)
        ended = append_at(unit, job, answered, subject.place, content, subject.fingerprint)
        if self.answer_id and (kept := stored_response_of(request, self.answer_id, asked_seq)):
            kept.write(unit, ended)
        close_unattributed(unit, job, None)
        return ended

    def _fail(self, unit: Unit, job: JobRow, subject: Subject) -> Recorded:
        failure = self.failure
        event = self._event("model_failed", job)
        event.cost_microusd, event.decision = 0, {"why": self.why}
        if failure is not None:
            event.error = ErrorFacts(failure.error_class, failure.message, failure.code, failure.retryable)
        ended = append_at(unit, job, event, subject.place)
        close_unattributed(unit, job, event.error)
        return ended

    def _event(self, name: str, job: JobRow) -> Event:
        event = msgspec.structs.replace(self.event, event=name, decision=None, detail=None)
        event.attempt = job.attempt
        return event
