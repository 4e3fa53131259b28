"""Failures of providers: their classes, the retry decision, and no secrets in records."""

import json
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from overnight.outgoing import (
    BodyCut,
    MalformedResponse,
    NeverSent,
    NotHttp,
    PoolBusy,
    ResponseLost,
    ResponseTooLarge,
    Unreachable,
    UpstreamError,
    UpstreamTimeout,
)
from overnight.providers.error_classes import (
    CLASSES,
    backoff_ms,
    error_failure,
    exception_failure,
    is_error,
    response_failure,
    scrubbed,
)
from overnight.providers.error_words import WORDS

NOW = 1_795_000_000.0
MOST_WAIT_MS = 400 * 24 * 3600 * 1000


def openai(message="no", code=None, kind=None):
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def anthropic(kind, message="no"):
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


# status, body, class, code
REFUSALS = [
    # by status alone
    (400, {}, "invalid_request", "http_400"),
    (401, {}, "auth", "http_401"),
    (402, {}, "quota", "http_402"),
    (403, {}, "auth", "http_403"),
    (404, {}, "not_found", "http_404"),
    (408, {}, "timeout", "http_408"),
    (409, {}, "invalid_request", "http_409"),
    (413, {}, "context_length", "http_413"),
    (422, {"detail": [{"loc": ["body"], "msg": "field required"}]}, "invalid_request", "http_422"),
    (429, {}, "rate_limited", "http_429"),
    (500, {}, "server_error", "http_500"),
    (502, {}, "server_error", "http_502"),
    (503, {}, "overloaded", "http_503"),
    (504, {}, "timeout", "http_504"),
    (524, {}, "timeout", "http_524"),
    (529, {}, "overloaded", "http_529"),
    (599, {}, "server_error", "http_599"),
    (302, {}, "malformed", "http_302"),
    # OpenAI
    (429, openai("slow", "rate_limit_exceeded", "tokens"), "rate_limited", "rate_limit_exceeded"),
    (429, openai("pay", "insufficient_quota", "insufficient_quota"), "quota", "insufficient_quota"),
    (403, openai("pay", "insufficient_quota"), "quota", "insufficient_quota"),
    (400, openai("long", "context_length_exceeded", "invalid_request_error"), "context_length", "context_length_exceeded"),
    (400, openai("no", "content_policy_violation"), "content_filter", "content_policy_violation"),
    (400, openai("no", None, "invalid_request_error"), "invalid_request", "invalid_request_error"),
    (401, openai("Incorrect API key provided: sk-abc", "invalid_api_key"), "auth", "invalid_api_key"),
    (403, openai("no access", "model_not_found"), "not_found", "model_not_found"),
    (503, openai("busy", None, "server_error"), "overloaded", "server_error"),
    # Azure: the reason is inside
    (
        400,
        {"error": {"code": "BadRequest", "message": "no", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
        "content_filter",
        "BadRequest",
    ),
    (404, {"error": {"code": "DeploymentNotFound", "message": "no"}}, "not_found", "DeploymentNotFound"),
    # Anthropic
    (429, anthropic("rate_limit_error"), "rate_limited", "rate_limit_error"),
    (529, anthropic("overloaded_error"), "overloaded", "overloaded_error"),
    (500, anthropic("api_error"), "server_error", "api_error"),
    (413, anthropic("request_too_large"), "context_length", "request_too_large"),
    (400, anthropic("invalid_request_error", "prompt is too long: 2 > 1"), "context_length", "invalid_request_error"),
    (
        400,
        anthropic("invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
        "quota",
        "invalid_request_error",
    ),
    # Google, behind its OpenAI-compatible door
    (400, [{"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}], "auth", "INVALID_ARGUMENT"),
    (429, [{"error": {"code": 429, "message": "slow", "status": "RESOURCE_EXHAUSTED"}}], "rate_limited", "RESOURCE_EXHAUSTED"),
    (503, {"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}, "overloaded", "UNAVAILABLE"),
    # xAI, DeepSeek, vLLM, a proxy
    (403, {"code": "no", "error": "Your team has used all available credits."}, "quota", "no"),
    (402, openai("Insufficient Balance", "invalid_request_error"), "quota", "invalid_request_error"),
    (400, {"message": "This model's maximum context length is 1 token", "code": 400}, "context_length", "http_400"),
    (403, {"errors": [{"code": 1010, "message": "Access denied"}]}, "auth", "http_403"),
    # 200 with an error inside
    (200, openai("no"), "malformed", "http_200"),
    (200, openai("no", "bad_thing"), "malformed", "bad_thing"),
    (200, openai("oops", None, "server_error"), "server_error", "server_error"),
    (200, anthropic("api_error"), "server_error", "api_error"),
    (200, anthropic("invalid_request_error", "no"), "invalid_request", "invalid_request_error"),
    (200, anthropic("invalid_request_error", "prompt is too long: 2 > 1"), "context_length", "invalid_request_error"),
    (200, {"error": {"code": 402, "message": "Insufficient credits"}}, "quota", "http_200"),
    (200, {"error": {"code": 502, "message": "upstream"}}, "server_error", "http_200"),
    (200, anthropic("overloaded_error"), "overloaded", "overloaded_error"),
    (200, {"type": "error", "code": "rate_limit_exceeded", "message": "slow"}, "rate_limited", "rate_limit_exceeded"),
    (200, {"id": "1", "type": "message"}, "malformed", "unexpected_shape"),
    (200, [], "malformed", "unexpected_shape"),
    (200, None, "malformed", "unexpected_shape"),
]  # fmt: skip


SEEN = YAML(typ="safe").load(Path(__file__).with_name("provider_errors.yaml"))
REFUSALS += [(seen["status"], seen["body"], seen["class"], seen["code"]) for seen in SEEN]


@pytest.mark.parametrize(("status", "body", "error_class", "code"), REFUSALS)
def test_error_responses_are_classified(status, body, error_class, code):
    failure = response_failure(status, {}, json.dumps(body).encode())
    assert (failure.error_class, failure.code, failure.status) == (error_class, code, status)
    rule = CLASSES[error_class]
    assert (failure.retryable, failure.fallback) == (rule.retryable and status != 302, rule.fallback)
    assert failure.message
    assert failure.error.error_class == error_class


def test_words_name_their_source_and_have_one_meaning():
    codes = [code for row in WORDS for code in row.codes.split()]
    assert len(codes) == len(set(codes))
    for row in WORDS:
        assert row.source
        assert row.codes or row.phrases
        assert row.error_class in CLASSES
        assert "".join((row.codes, *row.phrases)) == "".join((row.codes, *row.phrases)).lower()


@pytest.mark.parametrize(
    "body", [b"", b"<html>Bad Gateway</html>", b"\xff\xfe", b"{", b"[" * 200_000, b'"' + b"x" * 2_000_000]
)
def test_non_json_bodies_are_classified(body):
    assert response_failure(502, {}, body).error_class == "server_error"
    assert response_failure(429, {}, body).message == "the upstream answered 429"
    assert response_failure(200, {}, body).error_class == "malformed"


RULES = {  # class: the same target again, the next target, may have cost, speaks of the target
    "rate_limited": (True, True, False, False),
    "quota": (False, True, False, True),
    "overloaded": (True, True, False, True),
    "server_error": (True, True, False, True),
    "timeout": (True, True, True, True),
    "connection": (True, True, False, True),
    "lost": (True, True, True, True),
    "cut": (True, True, True, True),
    "malformed": (True, True, True, True),
    "invalid_request": (False, False, False, False),
    "auth": (False, True, False, True),
    "not_found": (False, True, False, False),
    "content_filter": (False, False, False, False),
    "context_length": (False, True, False, False),
    "circuit_open": (False, False, False, False),
    "gateway_busy": (False, True, False, False),
}


def test_properties_of_each_class_are_pinned():
    assert {name: tuple(rule) for name, rule in CLASSES.items()} == RULES


EXCEPTIONS = [
    (NeverSent("h:1", "x"), "connection", "connect_failed", True, False),
    (UpstreamTimeout("h:1", "connect", "x"), "connection", "connect_timeout", True, False),
    (UpstreamTimeout("h:1", "first_byte", "x"), "timeout", "first_byte_timeout", True, True),
    (UpstreamTimeout("h:1", "body", "x"), "timeout", "body_timeout", True, True),
    (ResponseLost("h:1", "x"), "lost", "answer_lost", True, True),
    (BodyCut("h:1", "x"), "cut", "body_cut", True, True),
    (Unreachable("h:1", "unknown_host", "x"), "connection", "unknown_host", False, False),
    (Unreachable("h:1", "certificate_invalid", "x"), "connection", "certificate_invalid", False, False),
    (PoolBusy("h:1", "x"), "gateway_busy", "pool_busy", False, False),
    (UpstreamTimeout("h:1", "queue", "x"), "gateway_busy", "queue_timeout", False, False),
    (UpstreamTimeout("h:1", "send", "x"), "connection", "send_timeout", True, False),
    (MalformedResponse("h:1", "x"), "malformed", "malformed_response", False, True),
    (NotHttp("h:1", "x"), "malformed", "not_http", False, False),
    (ResponseTooLarge("h:1", "x"), "malformed", "response_too_large", False, True),
]


@pytest.mark.parametrize(("error", "error_class", "code", "retryable", "may_have_cost"), EXCEPTIONS)
def test_exceptions_are_classified(error, error_class, code, retryable, may_have_cost):
    failure = exception_failure(error)
    assert (failure.error_class, failure.code, failure.status) == (error_class, code, None)
    assert (failure.retryable, failure.fallback, failure.may_have_cost) == (retryable, True, may_have_cost)
    assert failure.may_have_cost == error.sent
    assert failure.message == str(error)


def test_every_exception_is_in_the_table():
    def below(kind):
        return {kind}.union(*(below(each) for each in kind.__subclasses__()))

    assert {type(error) for error, *_ in EXCEPTIONS} == below(UpstreamError) - {UpstreamError}


def test_an_error_inside_an_answer_may_have_cost():
    assert error_failure(anthropic("overloaded_error")).may_have_cost
    assert not error_failure(anthropic("overloaded_error"), 529).may_have_cost


@pytest.mark.parametrize(
    ("status", "headers", "body", "code", "may_have_cost"),
    [
        (301, {b"location": b"https://h/v1/?token=abc"}, b"", "http_301", False),
        (304, {}, b"", "http_304", False),
        (307, {b"location": b"https://h/v2"}, b"{}", "http_307", False),
        (204, {}, b"", "http_204", False),
        (205, {}, b"", "http_205", False),
        (200, {}, b"", "empty_body", True),
        (200, {}, b" \r\n", "empty_body", True),
        (200, {}, b"<html>hello", "invalid_json", True),
        (400, {}, b"<center>The plain HTTP request was sent to HTTPS port</center>", "wrong_scheme", False),
        (400, {}, b"Client sent an HTTP request to an HTTPS server.\n", "wrong_scheme", False),
    ],
)
def test_deterministic_answers_are_not_retried(status, headers, body, code, may_have_cost):
    failure = response_failure(status, {**headers, b"x-should-retry": b"true"}, body)
    assert (failure.code, failure.retryable, failure.fallback, failure.may_have_cost) == (
        code,
        False,
        True,
        may_have_cost,
    )
    assert "abc" not in failure.message


@pytest.mark.parametrize(
    ("status", "code", "may_have_cost"),
    [
        (408, None, False),
        (429, None, False),
        (400, "tool_use_failed", True),
        (404, "timeout_error", False),
        (504, None, True),
    ],
)
def test_rejection_is_not_billed(status, code, may_have_cost):
    assert response_failure(status, {}, json.dumps(openai(code=code)).encode()).may_have_cost is may_have_cost


def test_class_is_read_from_a_header():
    headers = {b"x-amzn-errortype": b"ThrottlingException:http://internal.amazon.com/"}
    failure = response_failure(400, headers, b'{"message": "slow"}')
    assert (failure.error_class, failure.code) == ("rate_limited", "ThrottlingException")


@pytest.mark.parametrize(
    ("text", "wait"), [("17s", 17_000), ("1.5s", 1500), ("nans", None), ("s", None), ("1h", None), (7, None)]
)
def test_retry_after_is_read_from_the_body(text, wait):
    body = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": [{"retryDelay": text}]}}
    assert response_failure(429, {}, json.dumps(body).encode()).retry_after_ms == wait
    assert response_failure(429, {b"retry-after": b"3"}, json.dumps(body).encode()).retry_after_ms == 3000


@pytest.mark.parametrize(
    ("decoded", "error"),
    [
        (openai(), True),
        (anthropic("x"), True),
        ({"error": "x"}, True),
        ({"type": "error", "message": "x"}, True),
        ({"error": None, "id": "resp_1"}, False),
        ({"choices": []}, False),
        ([], False),
        (None, False),
        ("error", False),
    ],
)
def test_error_bodies_are_recognized(decoded, error):
    assert is_error(decoded) is error


# ── headers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "code", "said", "retryable"),
    [
        (429, None, b"false", False),
        (500, None, b"FALSE", False),
        (409, None, b"true", True),
        (400, None, b"True", True),
        (429, None, b"maybe", True),
        (429, "insufficient_quota", b"true", False),
        (401, None, b"true", False),
        (400, "context_length_exceeded", b"true", False),
        (400, "content_filter", b"true", False),
    ],
)
def test_should_retry_header_is_honoured(status, code, said, retryable):
    failure = response_failure(status, {b"x-should-retry": said}, json.dumps(openai(code=code)).encode())
    assert failure.retryable is retryable


def at(seconds):
    return format_datetime(datetime.fromtimestamp(NOW + seconds, UTC), usegmt=True).encode()


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({b"retry-after": b"3"}, 3000),
        ({b"retry-after": b"0.25"}, 250),
        ({b"retry-after-ms": b"120"}, 120),
        ({b"retry-after-ms": b"120", b"retry-after": b"3"}, 120),
        ({b"retry-after-ms": b"soon", b"retry-after": b"3"}, 3000),
        ({b"retry-after": b"-1"}, 0),
        ({b"retry-after": b"172800"}, 172_800_000),
        ({b"retry-after": b"1e9"}, MOST_WAIT_MS),
        ({b"retry-after": b"inf"}, MOST_WAIT_MS),
        ({b"retry-after": b"nan"}, None),
        ({b"retry-after": b""}, None),
        ({b"retry-after": b"\xff"}, None),
        ({b"retry-after": at(90)}, 90_000),
        ({b"retry-after": at(-90)}, 0),
        ({b"retry-after": at(10**7)}, 10**10),
    ],
)
def test_retry_after_headers_are_parsed(headers, wait):
    assert response_failure(429, headers, b"", NOW).retry_after_ms == wait


# ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Policy(NamedTuple):
    backoff_ms: int = 200
    max_backoff_ms: int = 5_000
    jitter: str = "full"


@pytest.mark.parametrize(("attempt", "most"), [(1, 200), (2, 400), (3, 800), (5, 3200), (6, 5000), (10_000, 5000)])
def test_backoff_doubles_up_to_the_maximum(attempt, most):
    rng = Random(1)
    waits = [backoff_ms(attempt, Policy(), None, rng) for _ in range(2000)]
    assert min(waits) < most * 0.05
    assert most * 0.95 < max(waits) <= most
    assert backoff_ms(attempt, Policy(jitter="none"), None, rng) == most


def test_backoff_respects_retry_after_with_jitter():
    rng = Random(1)
    waits = [backoff_ms(1, Policy(), 10_000, rng) for _ in range(500)]
    assert min(waits) >= 10_000
    assert len(set(waits)) > 100
    assert backoff_ms(1, Policy(0, 0), 7, rng) == 7


# ── nothing secret, nothing long ────────────────────────────────────────────────────────────────────────────────────

KEYS = [
    "sk-proj-abcDEF123456", "sk-ant-api03-AbC_dEf-123", "sk-abc***********wxyz", "sk_live_abcdef123456", "xai-abcdef123456",
    "gsk_abcdef123456", "ghp_abcdef123456", "hf_abcdefABCDEF", "AIzaSyA1234567890abcdef", "AKIAIOSFODNN7EXAMPLE",
    "pplx-1234567890ab", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "0123456789abcdef0123456789abcdef01234567",
]  # fmt: skip
FRAMES = [
    "{}",
    "Incorrect API key provided: {}.",
    "Bearer {}",
    '{{"authorization": "Bearer {}"}}',
    "key='{}', x",
    "https://h/v1?key={}&a=b",
    "\n\t{}\x00",
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("frame", FRAMES)
def test_keys_are_redacted_everywhere(key, frame):
    for before in (0, 245, 1995):  # also across the places where text is cut
        text = "x " * before + frame.format(key)
        failure = response_failure(401, {}, json.dumps(openai(text, code=text)).encode())
        assert key not in failure.message + failure.code
        assert key[4:] not in failure.message + failure.code


CALLED_SECRET = [
    "Authorization: Basic dXNlcjpwYXNz", "authorization: hunter22", "x-api-key: hunter22", "api_key=hunter22",
    "password: hunter22", "Bearer hunter22", "?token=hunter22", "&sig=hunter22",
]  # fmt: skip


@pytest.mark.parametrize("text", CALLED_SECRET)
def test_values_named_secret_are_redacted(text):
    assert "hunter22" not in scrubbed(text)
    assert "dXNlcjpwYXNz" not in scrubbed(text)


@pytest.mark.parametrize(
    "text",
    [
        "This model's maximum context length is 128000 tokens. However, your messages resulted in 130001 tokens.",
        "Rate limit reached for gpt-5.4-mini in organization org-abc123 on tokens per min (TPM): Limit 30000, Used 29000.",
        "You exceeded your current quota, please check your plan: https://platform.openai.com/docs/guides/error-codes/api-errors",
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "The request 0f8fad5b-d9cb-469f-a165-70867728950e failed; risk-assessment of task-queue-worker",
    ],
)
def test_plain_messages_stay_as_they_are(text):
    assert scrubbed(text) == text


@given(st.text(max_size=6000), st.integers(20, 500))
def test_messages_are_one_bounded_printable_line(text, limit):
    line = scrubbed(text, limit)
    assert len(line) <= limit
    assert line.isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "errors", "code", "type", "status", "message", "innererror", "details"]), inner
        )
    ),
    max_leaves=12,
)


@given(JSON, st.integers(100, 999))
def test_any_body_is_classified(body, status):
    failure = response_failure(status, {}, json.dumps(body).encode())
    assert failure.error_class in CLASSES
    assert failure.message
    assert len(failure.code) <= 80
