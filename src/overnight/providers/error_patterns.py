"""What providers call their failures: statuses, codes and phrases, and the class that each of them is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

ErrorClass = Literal[
    "rate_limited", "quota", "overloaded", "server_error", "timeout", "connection", "lost", "cut", "malformed",
    "invalid_request", "auth", "not_found", "content_filter", "context_length", "circuit_open", "gateway_busy",
]  # fmt: skip


BY_STATUS: Mapping[int, ErrorClass] = {
    401: "auth",
    402: "quota",
    403: "auth",
    404: "not_found",
    408: "timeout",
    410: "not_found",
    413: "context_length",
    424: "server_error",
    429: "rate_limited",
    451: "content_filter",
    498: "overloaded",
    503: "overloaded",
    504: "timeout",
    524: "timeout",
    529: "overloaded",
}
# Redirects are not followed, so an answer below 400 is malformed.
BY_HUNDRED: Mapping[int, ErrorClass] = {4: "invalid_request", 5: "server_error"}
# The providers' own codes, types, reasons and statuses, in lower case, without the words that say nothing (`api_error`,
# `invalid_request_error`). They say more than the HTTP status does.
_CODES: Mapping[ErrorClass, str] = {
    "quota": """insufficient_quota insufficientquota insufficient_balance insufficient_credits quota_exceeded billing_error
        billing_hard_limit_reached billing_not_active payment_required credit_balance_exhausted credit_limit
        organization_spend_limit_exceeded project_spend_limit_exceeded organization_usage_limit_exceeded
        enforced_spend_limit_reached exceeded_current_quota_error weight_exceeds_budget""",
    "rate_limited": """rate_limit_exceeded ratelimitexceeded rate_limit_error rate_limited rate_limit_reached_error
        ratelimitreached too_many_requests too_many_requests_error slow_down throttlingexception
        servicequotaexceededexception in_flight_budget_exhausted""",
    "overloaded": """overloaded_error server_overloaded server_is_overloaded engine_overloaded engine_overloaded_error
        service_unavailable_error serviceunavailableexception model_capacity_exhausted capacity_exceeded nocapacity
        modelnotreadyexception provider_overloaded unavailable_error""",
    "timeout": "timeout_error deadline_exceeded modeltimeoutexception",
    "server_error": "internalserverexception modelerrorexception modelstreamerrorexception",
    # The model wrote what the provider itself could not read as a tool call or as JSON; asked again, it may do better.
    "malformed": "tool_use_failed json_validate_failed",
    "auth": """invalid_api_key invalid_authentication_error authentication_error permission_error permission_denied
        permission_denied_error account_deactivated api_key_invalid unauthenticated accessdeniedexception
        expiredtokenexception unrecognizedclientexception incompletesignature failed_precondition""",
    "not_found": """model_not_found deploymentnotfound not_found_error resource_not_found_error
        resourcenotfoundexception""",
    "content_filter": """content_filter content_policy_violation moderation_blocked responsibleaipolicyviolation
        data_inspection_failed prohibited_content safety_violations""",
    "context_length": """context_length_exceeded request_too_large exceed_context_size_error string_above_max_length
        token_limit_exceeded string_too_long context_exceeded""",
}
BY_CODE: Mapping[str, ErrorClass] = {code: name for name, codes in _CODES.items() for code in codes.split()}
# They say nothing beside a status; where an error comes with a 200, or inside a stream, they are all there is.
INSIDE: Mapping[str, ErrorClass] = {
    "server_error": "server_error",
    "api_error": "server_error",
    "internal_error": "server_error",
    "internal_server_error": "server_error",
    "invalid_request_error": "invalid_request",
}
# For refusals that say in their message only what they are about.
VAGUE: frozenset[ErrorClass] = frozenset({"invalid_request", "auth"})
_PHRASES: Mapping[ErrorClass, tuple[str, ...]] = {
    "quota": (
        "credit balance is too low",
        "used all available credits",
        "insufficient credits",
        "monthly spending limit",
        "your specified api usage limits",
        "your specified workspace api usage limits",
    ),
    "auth": ("api key not valid", "incorrect api key"),
    "context_length": (
        "prompt is too long",
        "prompt too long",
        "input is too long",
        "maximum context length",
        "maximum model length",
        "maximum prompt length",
        "maximum input length",
        "maximum allowed input length",
        "max context length",
        "context length is only",
        "exceeds the context window",
        "exceeds the available context size",
        "exceeds the maximum number of tokens",
        "greater than the context length",
        "exceed context limit",
        "exceeded model token limit",
    ),
    "content_filter": (
        "content filtering policy",
        "content management policy",
        "flagged as potentially violating",
        "content exists risk",
    ),
}
BY_PHRASE: tuple[tuple[str, ErrorClass], ...] = tuple(
    (phrase, name) for name, phrases in _PHRASES.items() for phrase in phrases
)
# Whatever else it says: this request is larger than what may be asked in a minute, so it never fits.
TOO_LARGE_AT_ONCE = "request too large for"
# A busy model is not a caller that asks too fast.
NO_ROOM = ("capacity exceeded", "no capacity available", "at capacity")
