"""The HTTP response of a call that has ended, and the headers that explain it."""

from __future__ import annotations

from collections.abc import Iterable

from overnight.domain import Attribution

from .admission.admission_outcomes import CacheHit, Replayed
from .attempt import Attempt
from .call.pipeline import CallPipeline
from .call.result import Answered, DegradedAnswer, Failed
from .error_responses import JSON, Headers, HttpResponse, call_failure_response

MAX_HEADER = 1000
DEFAULT_TENANT = Attribution().tenant_id
_LIMITS = (b"x-ratelimit", b"anthropic-ratelimit-", b"ratelimit")
_MAX_LIMITS = 40
_PLAIN = bytes(each if 32 <= each != 127 else ord("?") for each in range(256))
"""Replaces characters that a header cannot contain: names come from clients' bodies, ids from providers."""


def answer_of(pipeline: CallPipeline, result: Answered | Failed) -> HttpResponse:
    """The HTTP response of a call that was answered or failed."""
    if isinstance(result, Answered):
        answer = HttpResponse(200, [JSON], result.reply.body)
    else:
        target, wire = pipeline.selection.target, pipeline.selection.wire
        where = f"{target.provider} {target.model}"
        same_format = wire.client_format is wire.upstream_format
        answer = call_failure_response(
            result.failure, where, pipeline.attempts, result.body, pipeline.context.client, same_format=same_format
        )
    answer.headers += call_headers(pipeline)
    return answer


def call_headers(pipeline: CallPipeline, *, streams: bool = False) -> Headers:
    """The headers of every response. `streams`: the response is a stream that has not been sent yet."""
    result, context, selection, attempt = pipeline.result, pipeline.context, pipeline.selection, pipeline.attempt
    call_id, model = pipeline.call_id, selection.target.model
    if isinstance(result, Replayed | CacheHit | DegradedAnswer):
        call_id, model = result.recorded.facts.call_id or "", result.recorded.facts.model or ""
    request_id: bytes | None = None
    limits: Headers = []
    if attempt is not None and not isinstance(result, Replayed | CacheHit | DegradedAnswer):
        request_id, limits = _provider_headers(attempt)
        if _account_is_shared(attempt, context.subject.who.tenant_id):
            limits = []
    headers: Headers = [
        (b"x-job-id", context.subject.job_id.encode()),
        (b"x-overnight-call-id", call_id.encode()),
        (b"x-overnight-model", _listed((model,))),
        (context.client.request_id_header, (request_id or call_id.encode()).translate(_PLAIN)),
    ]
    # The cost of a stream is unknown when its headers are sent. The usage chunk reports it.
    account = pipeline.account
    if not streams and result is not None:
        headers.append((b"x-overnight-cost-usd", _usd(account.cost_microusd)))
        if account.bound_microusd:
            headers.append((b"x-overnight-cost-bound-usd", _usd(account.bound_microusd)))
    headers.append((b"x-overnight-overhead-ms", b"%.2f" % pipeline.overhead_ms()))
    if account.remaining_microusd is not None:
        headers.append((b"x-overnight-budget-left-usd", _usd(max(account.remaining_microusd, 0))))
    if attempt is not None:
        if attempt.losses:
            headers.append((b"x-overnight-dropped", _listed(attempt.losses)))
        if attempt.grant.lowered or 0 < attempt.grant.tokens < (context.request.cap or 0):
            headers.append((b"x-overnight-output-cap", b"%d" % attempt.grant.tokens))
    headers += limits
    headers += _origin_headers(pipeline, model)
    return headers


def _provider_headers(attempt: Attempt) -> tuple[bytes | None, Headers]:
    """The provider's id of the request, and its rate limits: clients show them, and slow down."""
    told, cleaned = attempt.provider_headers, attempt.target.cleaned
    found = [
        (name.translate(_PLAIN), cleaned(value)[:MAX_HEADER].translate(_PLAIN))
        for name, value in told.items()
        if name.startswith(_LIMITS)
    ]
    request_id = told.get(b"x-request-id") or told.get(b"request-id")
    return request_id and cleaned(request_id)[:MAX_HEADER], found[:_MAX_LIMITS]


def _account_is_shared(attempt: Attempt, tenant_id: str) -> bool:
    """Whether the provider's rate limits count the calls of other tenants: the operator's account serves all tenants
    without a provider key of their own. Only the default tenant, the operator's, may read its limits."""
    target = attempt.target
    return tenant_id != DEFAULT_TENANT and target.account == target.provider


def _origin_headers(pipeline: CallPipeline, model: str) -> Headers:
    """The headers for the origin of the answer: a cache, an older attempt, another target, a degraded answer."""
    headers: Headers = []
    result, selection = pipeline.result, pipeline.selection
    cache = pipeline.cache_kind
    if cache is not None and not isinstance(result, Replayed | DegradedAnswer):
        headers.append((b"x-overnight-cache", cache.encode()))
    if isinstance(result, Replayed | CacheHit | DegradedAnswer):
        degraded = (result.recorded.facts.detail or {}).get("degraded")
        if degraded:
            headers.append((b"x-overnight-degraded", degraded["kind"].encode()))
    if selection.skipped_targets:
        headers.append((b"x-overnight-circuit-open", _listed(selection.skipped_targets)))
    if isinstance(result, Replayed):
        headers.append((b"x-overnight-replayed", b"true"))
    elif selection.target.model != pipeline.context.decision.targets[0] and pipeline.attempts:
        headers.append((b"x-overnight-fallback", _listed((model,))))
    return headers


def _usd(microusd: int) -> bytes:
    return b"%d.%06d" % divmod(microusd, 1_000_000)


def _listed(names: Iterable[str]) -> bytes:
    """Names joined up to the maximum length of a header. Three dots at the end mark a truncation."""
    text = ", ".join(names)
    if len(text) > MAX_HEADER:
        whole = text[: MAX_HEADER - 3].rpartition(", ")[0]
        text = f"{whole}, ..." if whole else f"{text[: MAX_HEADER - 3]}..."
    return text.encode("latin-1", "replace").translate(_PLAIN)
