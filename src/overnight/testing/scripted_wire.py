"""The OpenAI chat-completions wire format: requests, complete answers, stream chunks, errors. Deterministic.

Also the parts common to all formats: composing an answer from a rule, and HTTP responses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec

from .scripted_rules import Answer, Call, ChatRequest, RuleMatch, text_of

CREATED = 1_767_225_600  # 2026-01-01: constant, so that equal requests have equal answers
FINGERPRINT = "fp_scripted"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n%s: %s\r\n\r\n"
)
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
ECHO_CHARS = 500

NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All errors of the decoder; invalid UTF-8 within a string and deep nesting have errors of their own."""

Headers = Sequence[tuple[bytes, bytes]]

_decode = msgspec.json.Decoder(ChatRequest).decode
_encode = msgspec.json.encode
_word = re.compile(r"\S{1,32}\s*|\s+")
_reasons = {status.value: status.phrase.encode() for status in HTTPStatus}
_error_kinds: dict[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "The request was refused."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    402: ("billing_error", "billing_hard_limit_reached", "Billing hard limit has been reached."),
    403: ("invalid_request_error", "permission_denied", "You are not allowed to use this model."),
    404: ("invalid_request_error", "model_not_found", "The model does not exist or you do not have access to it."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests."),
    503: ("server_error", "overloaded", "The engine is currently overloaded, please try again later."),
}


class Refused(Exception):
    """The request is invalid; a 400 in the client's format."""


class Wire(NamedTuple):
    """One wire format. `read` raises Refused. `events` are those of a stream without its end; `done` is the end of the
    body."""

    read: Callable[[bytes, Headers], Call]
    whole: Callable[[Reply, Call], bytes]
    events: Callable[[Reply, Call], Iterator[bytes]]
    done: bytes
    error: Callable[[int, str | None, str | None, int | None], bytes]
    id_header: bytes = b"x-request-id"


class Reply(msgspec.Struct):
    """One answer, independent of the format. `calls` are (suffix of the id, name, arguments as JSON text); ids end in
    `tag`.

    `usage` has the chat format; `stop` is the stop sequence that ended the text.
    """

    tag: str
    model: str
    thinking: str | None
    text: str | None
    calls: list[tuple[str, str, str]]
    finish_reason: str
    usage: dict[str, Any]
    stop: str | None = None

    @property
    def request_id(self) -> bytes:
        return b"req_" + self.tag.encode()


def tokens_of(chars: int) -> int:
    """Estimated tokens: one per four characters, rounded up, at least one."""
    return max(1, -(-chars // 4))


def compose(call: Call, taken: RuleMatch | None, fingerprint: str, nth: int) -> Reply:
    """Compose the answer to a call. Without a matching rule it is an echo, marked as scripted."""
    answer = taken.rule.answer if taken else None
    tag = f"{fingerprint[:24]}{nth}"
    calls: list[tuple[str, str, str]] = []
    text = thinking = None
    if taken and answer:
        for index, tool in enumerate(answer.tool_calls):
            filled = taken.fill_all(tool.arguments)
            calls.append((f"{tag}_{index}", tool.name, filled if isinstance(filled, str) else _json(filled)))
        text = _text(taken, answer)
        thinking = None if answer.thinking is None else taken.fill(answer.thinking)
    if text is None and not calls:
        text = f"(scripted) offline answer to: {call.last_user[:ECHO_CHARS]}"
    finish = "tool_calls" if calls else "stop"
    stop = next((each for each in call.stop_sequences if text and each in text), None)
    if stop and text is not None:
        text = text[: text.index(stop)]
    cap = call.request.max_completion_tokens or call.request.max_tokens
    if cap and text is not None and not calls and len(text) > cap * 4:
        text, finish = text[: cap * 4], "length"
    if answer and answer.finish_reason:
        finish = answer.finish_reason
    answer_chars = len(thinking or "") + len(text or "") + sum(len(name) + len(given) for _, name, given in calls)
    usage = _usage(call, answer_chars, answer.usage if answer and answer.usage else {})
    return Reply(
        tag=tag,
        model=call.model,
        thinking=thinking,
        text=text,
        calls=calls,
        finish_reason=finish,
        usage=usage,
        stop=stop,
    )


def _json(value: Any) -> str:
    return _encode(value).decode()


def _text(taken: RuleMatch, answer: Answer) -> str | None:
    text = None if answer.text is None else taken.fill(answer.text)
    if answer.repeat_words is None:
        return text
    words = (text or "").split() or ["word"]
    rounds = -(-answer.repeat_words // len(words))
    return " ".join((words * rounds)[: answer.repeat_words])


def _usage(call: Call, answer_chars: int, given: dict[str, int]) -> dict[str, Any]:
    prompt = given.get("prompt_tokens")
    if prompt is None:
        chars = sum(len(text_of(m.get("content"))) + _argument_chars(m) for m in call.request.messages)
        prompt = max(tokens_of(chars), given.get("cached_tokens", 0) + given.get("cache_write_tokens", 0))
    completion = given.get("completion_tokens")
    if completion is None:
        completion = max(tokens_of(answer_chars), given.get("reasoning_tokens", 0))
    sent = {"cached_tokens": given.get("cached_tokens", 0), "audio_tokens": 0}
    if "cache_write_tokens" in given:
        sent["cache_write_tokens"] = given["cache_write_tokens"]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": sent,
        "completion_tokens_details": {
            "reasoning_tokens": given.get("reasoning_tokens", 0),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _argument_chars(message: dict[str, Any]) -> int:
    calls: Any = message.get("tool_calls")
    return len(_encode(calls)) if calls else 0


def response(status: int, body: bytes, extra: bytes = b"") -> bytes:
    """A complete HTTP/1.1 response with a JSON body. `extra` contains further header lines, each ended by CRLF."""
    return b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n%s" % (
        status,
        _reasons.get(status, b"Error"),
        len(body),
        extra,
        body,
    )


def error_response(
    status: int, message: str | None = None, code: str | None = None, retry_after_ms: int | None = None
) -> bytes:
    """An error in OpenAI's format; missing parts get the default text of the status."""
    kind, usual_code, usual_message = _error_kinds.get(
        status, ("server_error" if status >= 500 else "invalid_request_error", None, "The server had an error.")
    )
    if code == "insufficient_quota":
        kind = code
    error = {"message": message or usual_message, "type": kind, "param": None, "code": code or usual_code}
    extra = b""
    if retry_after_ms is not None:
        extra = b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (-(-retry_after_ms // 1000), retry_after_ms)
    return response(status, _encode({"error": error}), extra)


def whole(reply: Reply, _call: Call) -> bytes:
    """The body of an answer without streaming."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None, "annotations": []}
    if reply.thinking is not None:
        message["reasoning_content"] = reply.thinking
    if reply.calls:
        message["tool_calls"] = [
            {"id": f"call_{end}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for end, name, arguments in reply.calls
        ]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish_reason}
    return _encode(_envelope(reply, "chat.completion", [choice]) | {"usage": reply.usage})


def chunks(reply: Reply, call: Call) -> Iterator[bytes]:
    """SSE events of a streamed answer, without the closing `[DONE]`."""
    include_usage = bool(call.request.stream_options and call.request.stream_options.include_usage)
    for delta in _deltas(reply):
        yield _chunk(reply, delta, None, include_usage)
    yield _chunk(reply, {}, reply.finish_reason, include_usage)
    if include_usage:
        yield b"data: " + _encode(_envelope(reply, "chat.completion.chunk", []) | {"usage": reply.usage}) + b"\n\n"


def _deltas(reply: Reply) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": None if reply.text is None else "", "refusal": None}
    for piece in in_words(reply.thinking):
        yield {"reasoning_content": piece}
    for piece in in_words(reply.text):
        yield {"content": piece}
    for index, (end, name, arguments) in enumerate(reply.calls):
        head = {"name": name, "arguments": ""}
        yield {"tool_calls": [{"index": index, "id": f"call_{end}", "type": "function", "function": head}]}
        for piece in in_pieces(arguments):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def in_words(text: str | None) -> list[str]:
    return _word.findall(text or "")


def in_pieces(arguments: str) -> Iterator[str]:
    """At least two fragments, so that a client must join them."""
    size = max(1, min(8, len(arguments) // 2))
    for start in range(0, len(arguments), size):
        yield arguments[start : start + size]


def _chunk(reply: Reply, delta: dict[str, Any], finish_reason: str | None, include_usage: bool) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    body = _envelope(reply, "chat.completion.chunk", [choice])
    if include_usage:
        body["usage"] = None
    return b"data: " + _encode(body) + b"\n\n"


def _envelope(reply: Reply, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{reply.tag}",
        "object": kind,
        "created": CREATED,
        "model": reply.model,
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
        "choices": choices,
    }


def framed(event: bytes) -> bytes:
    """An event as one chunk of a chunked HTTP body."""
    return b"%x\r\n%s\r\n" % (len(event), event)


def read(body: bytes, headers: Headers) -> Call:
    """Decode a chat request for rule matching. Raises Refused."""
    try:
        request = _decode(body)
    except NOT_JSON as problem:
        raise Refused(f"The JSON body cannot be used: {problem}.") from None
    if not request.messages or request.n not in (None, 1):
        raise Refused("`messages` must not be empty, and `n` must be 1 here.")
    return Call(request, headers)


CHAT = Wire(read, whole, chunks, DONE, error_response)
