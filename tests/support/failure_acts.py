"""How providers fail, one act for each class of failure, and a routing with a model for each."""

from typing import Any

from faulty_upstream import (
    Act,
    FaultyUpstream,
    begins,
    breaks_off,
    closed_port,
    closes,
    error_of,
    refuses,
    says,
    stalls,
)

PRICE = "{input_usd_per_mtok: 1, output_usd_per_mtok: 1}"
# class: how a provider does it, before anything of an answer is with the client
ACTS: dict[str, Act] = {
    "rate_limited": refuses(429, "rate_limit_error", "slow", "rate_limit_exceeded", "retry-after-ms: 1"),
    "quota": refuses(402, "billing_error", "pay", "insufficient_quota"),
    "overloaded": refuses(529, "overloaded_error", "busy"),
    "server_error": refuses(500, "api_error", "oops"),
    "timeout": stalls,
    "connection": stalls,  # never reached: nobody listens
    "lost": closes,
    "cut": breaks_off(0.0),
    "malformed": says(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"id": "x'),
    "invalid_request": refuses(422, "invalid_request_error", "temperature is too high"),
    "auth": refuses(401, "authentication_error", "wrong key", "invalid_api_key"),
    "not_found": refuses(404, "not_found_error", "no such model", "model_not_found"),
    "content_filter": refuses(400, "invalid_request_error", "blocked by content filtering policy", "content_filter"),
    "context_length": refuses(400, "invalid_request_error", "prompt is too long: 9 > 8", "context_length_exceeded"),
}
# class: how a stream that has begun goes wrong. None of it is asked again. What breaks off is booked in full, what a provider
# ends with an error of its own at the prompt and what came.
MIDSTREAM: dict[str, Any] = {
    "cut": breaks_off(0.5),
    "timeout": begins(None),
    "malformed": begins(b"data: {half a piece\n\n"),
    "server_error": lambda form: begins(b"data: " + error_of(form, "oops", "api_error", "server_error") + b"\n\n"),
    "overloaded": lambda form: begins(
        b"data: " + error_of(form, "busy", "overloaded_error", "overloaded_error") + b"\n\n"
    ),
    "rate_limited": lambda form: begins(b"data: " + error_of(form, "slow", "rate_limit_error", "slow_down") + b"\n\n"),
}


def routing(upstream: FaultyUpstream, spoken: str, classes: list[str]) -> str:
    """A route per class with a fallback, and one without."""
    models = [f"bad-{name}" for name in classes if name != "connection"]
    routes = [
        f"  {name}{alone}: {{model: bad-{name}, fallbacks: [{'' if alone else 'good'}]}}"
        for name in classes
        for alone in ("", "-alone")
    ]
    nobody = f"http://127.0.0.1:{closed_port()}/v1"
    return "\n".join(
        [
            "default_model: good",
            "routes:",
            *routes,
            "retries: {max_attempts: 2, backoff_ms: 1, by_class: {timeout: {max_attempts: 1}}}",
            "deadlines: {default_ms: 20000, embeddings_ms: 20000, timeout: 1500, timeout-alone: 500}",
            "breakers: {failures: 0}",
            "providers:",
            f"  house: {{base_url: '{upstream.base_url}', models: [good, {', '.join(models)}], apis: [{spoken}]}}",
            f"  nobody: {{base_url: '{nobody}', models: [bad-connection], apis: [{spoken}]}}",
            "prices:",
            *(f"  {model}: {PRICE}" for model in ["good", "bad-connection", *models]),
        ]
    )
