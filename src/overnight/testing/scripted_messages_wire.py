"""The Anthropic messages wire format: complete answers, stream events, errors. Deterministic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from .scripted_messages import read, signature
from .scripted_rules import Call
from .scripted_wire import Reply, Wire, in_pieces, in_words, response

DONE = b"0\r\n\r\n"
_encode = msgspec.json.encode
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_ERRORS: dict[int, tuple[str, str]] = {
    400: ("invalid_request_error", "The request was refused."),
    401: ("authentication_error", "invalid x-api-key"),
    402: ("billing_error", "There is an issue with your billing."),
    403: ("permission_error", "Your API key does not have permission to use this model."),
    404: ("not_found_error", "model: not found"),
    413: ("request_too_large", "Request exceeds the maximum size."),
    429: ("rate_limit_error", "This request would exceed your organization's rate limit."),
    504: ("timeout_error", "The request timed out."),
    529: ("overloaded_error", "Overloaded"),
}


def _stop(reply: Reply) -> dict[str, Any]:
    reason = "stop_sequence" if reply.stop else _STOP_REASONS[reply.finish_reason]
    refused = reason == "refusal"
    details = {"type": "refusal", "category": None, "explanation": "(scripted) refused"} if refused else None
    return {"stop_reason": reason, "stop_sequence": reply.stop, "stop_details": details}


def _usage(reply: Reply) -> dict[str, Any]:
    usage_counts, sent = reply.usage, reply.usage["prompt_tokens_details"]
    cached, written = sent["cached_tokens"], sent.get("cache_write_tokens", 0)
    return {
        "input_tokens": usage_counts["prompt_tokens"] - cached - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "output_tokens": usage_counts["completion_tokens"],
        "output_tokens_details": {"thinking_tokens": usage_counts["completion_tokens_details"]["reasoning_tokens"]},
    }


def _message(
    reply: Reply, content: list[dict[str, Any]], stop: dict[str, Any], usage: dict[str, Any]
) -> dict[str, Any]:
    head = {"id": f"msg_{reply.tag}", "type": "message", "role": "assistant", "model": reply.model, "content": content}
    kinds = {"ephemeral_5m_input_tokens": usage["cache_creation_input_tokens"], "ephemeral_1h_input_tokens": 0}
    return {**head, **stop, "usage": {**usage, "cache_creation": kinds, "service_tier": "standard"}}


def _arguments(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}


def _blocks(reply: Reply) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The blocks of an answer: the start of each in a stream, and its deltas."""
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if reply.thinking is not None:
        pieces = [{"type": "thinking_delta", "thinking": piece} for piece in in_words(reply.thinking)]
        pieces.append({"type": "signature_delta", "signature": signature(reply.model, reply.thinking)})
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, pieces))
    if reply.text is not None:
        pieces = [{"type": "text_delta", "text": piece} for piece in in_words(reply.text)]
        blocks.append(({"type": "text", "text": ""}, pieces))
    for end, name, arguments in reply.calls:
        fragments = ["", *in_pieces(arguments)] if arguments != "{}" else [""]
        pieces = [{"type": "input_json_delta", "partial_json": piece} for piece in fragments]
        blocks.append(({"type": "tool_use", "id": f"toolu_{end}", "name": name, "input": {}}, pieces))
    return blocks


def whole(reply: Reply, _call: Call) -> bytes:
    """The body of an answer without streaming."""
    content: list[dict[str, Any]] = []
    if reply.thinking is not None:
        signed = signature(reply.model, reply.thinking)
        content.append({"type": "thinking", "thinking": reply.thinking, "signature": signed})
    if reply.text is not None:
        content.append({"type": "text", "text": reply.text})
    for end, name, arguments in reply.calls:
        content.append({"type": "tool_use", "id": f"toolu_{end}", "name": name, "input": _arguments(arguments)})
    return _encode(_message(reply, content, _stop(reply), _usage(reply)))


def events(reply: Reply, _call: Call) -> Iterator[bytes]:
    """The events of a streamed answer."""
    usage = _usage(reply)
    nothing = {"stop_reason": None, "stop_sequence": None, "stop_details": None}
    started = _message(reply, [], nothing, {**usage, "output_tokens": 1})
    yield _event({"type": "message_start", "message": started})
    for index, (block, pieces) in enumerate(_blocks(reply)):
        yield _event({"type": "content_block_start", "index": index, "content_block": block})
        if index == 0:
            yield _event({"type": "ping"})
        for piece in pieces:
            yield _event({"type": "content_block_delta", "index": index, "delta": piece})
        yield _event({"type": "content_block_stop", "index": index})
    yield _event({"type": "message_delta", "delta": _stop(reply), "usage": usage})
    yield _event({"type": "message_stop"})


def _event(event: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (event["type"].encode(), _encode(event))


def error_response(status: int, message: str | None, code: str | None, retry_after_ms: int | None) -> bytes:
    """An error in Anthropic's format; `code` replaces the type."""
    usual = ("api_error", "Internal server error") if status >= 500 else ("invalid_request_error", "Refused.")
    kind, default_message = _ERRORS.get(status, usual)
    body = {
        "type": "error",
        "error": {"type": code or kind, "message": message or default_message},
        "request_id": "req_scripted",
    }
    extra = b""
    if retry_after_ms is not None:
        extra = b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (-(-retry_after_ms // 1000), retry_after_ms)
    return response(status, _encode(body), extra)


MESSAGES = Wire(read=read, whole=whole, events=events, done=DONE, error=error_response, id_header=b"request-id")
