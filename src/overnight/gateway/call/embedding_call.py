"""The call that embeds a question for the semantic cache: admitted, metered and recorded in the job like other calls."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from overnight.domain import CallFacts, OvernightError
from overnight.domain.policies import RouteDecision
from overnight.wire_formats import CODECS

from ..cache import Embedded, read_vector
from ..call_context import new_context
from ..identity import Subject
from .pipeline import CallPipeline
from .result import Answered, Failed
from .services import CallServices

_encode = msgspec.json.Encoder().encode
LABEL = "semantic cache"
CODEC = CODECS["embeddings"]
FAILED = "the question could not be embedded"


async def embed(
    services: CallServices,
    decide: Callable[[CallFacts], RouteDecision],
    subject: Subject,
    model: str,
    text: str,
    until: float,
) -> Embedded:
    """Embed a text on behalf of a subject.

    Failures of a provider and budget stops are part of the result: the calling call continues without a cache.

    Args:
        decide: routes the call.
        model: the embedding model.
        until: the deadline of the call, a time of the loop.
    """
    who = msgspec.structs.replace(subject.who, task_id=None)
    auxiliary = msgspec.structs.replace(
        subject, who=who, label=LABEL, place=None, fingerprint=None, is_auxiliary=True, prompts=()
    )
    try:
        request = CODEC.read(_encode({"model": model, "input": text, "encoding_format": "float"}))
        facts = CallFacts(
            model=model,
            agent=who.agent_id,
            has_key=who.key_id is not None,
            key_agent=who.key_scope.agent_id,
            key_workflow=who.key_scope.workflow,
            format=CODEC.name,
        )
        decision = decide(facts)
        pipeline = CallPipeline(services, new_context(auxiliary, request, decision, CODEC))
    except OvernightError as error:
        return Embedded(subject, None, 0, f"{FAILED}: {error}")
    pipeline.deadlines.end_by(until)
    error_text = ""
    try:
        await pipeline.run()
    except OvernightError as error:
        error_text = str(error)
    finally:
        pipeline.release()
    auxiliary = pipeline.context.subject
    if auxiliary.known and not subject.known:
        subject = msgspec.structs.replace(subject, job_id=auxiliary.job_id, ancestors=auxiliary.ancestors, known=True)
    return _embedded(pipeline, subject, error_text)


def _embedded(pipeline: CallPipeline, subject: Subject, error_text: str) -> Embedded:
    cost, result = pipeline.account.cost_microusd, pipeline.result
    if error_text:
        return Embedded(subject, None, cost, f"{FAILED}: {error_text}")
    if not isinstance(result, Answered):
        failure = result.failure if isinstance(result, Failed) else None
        # Without the provider's message, which may quote the question.
        why = f"{failure.error_class}: {failure.code}" if failure is not None else "no answer"
        return Embedded(subject, None, cost, f"{FAILED}: {why}")
    numbers = read_vector(result.reply.body)
    return Embedded(subject, numbers, cost, "" if numbers else f"{FAILED}: the answer contains no vector")
