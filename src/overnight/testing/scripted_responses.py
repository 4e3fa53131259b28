"""The OpenAI Responses wire format: requests, complete answers, stream events. Deterministic.

Nothing is stored. Requests that a stateless provider rejects are rejected here, so that translation errors are found
offline: ids of earlier answers and items, foreign encrypted reasoning, calls without their outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any, cast

import msgspec

from .scripted_rules import Call, ChatRequest
from .scripted_wire import (
    CREATED,
    NOT_JSON,
    Headers,
    Refused,
    Reply,
    Wire,
    error_response,
    in_pieces,
    in_words,
)

Json = dict[str, Any]
END = b"0\r\n\r\n"
_encode = msgspec.json.encode
_ITEMS = frozenset({
    "message",
    "reasoning",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
    "web_search_call",
})  # fmt: skip


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """The fields that determine the answer; other fields are accepted and ignored."""

    model: str
    input: str | list[Json]
    instructions: str | None = None
    tools: list[Json] | None = None
    max_output_tokens: int | None = None
    stream: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    text: Json | None = None


_decode = msgspec.json.Decoder(ResponsesRequest).decode


def seal(model: str, thinking: str) -> str:
    """The encrypted content of reasoning. That of another model, or changed, is rejected."""
    return f"gAAAA{sha256(model.encode() + b':' + thinking.encode()).hexdigest()[:40]}"


def read(body: bytes, headers: Headers) -> Call:
    """Decode a Responses request for rule matching. Raises Refused."""
    try:
        request = _decode(body)
    except NOT_JSON as problem:
        raise Refused(f"The JSON body cannot be used: {problem}.") from None
    if request.previous_response_id is not None:
        raise Refused(f"Previous response with id '{request.previous_response_id}' not found.")
    messages: list[Json] = [{"role": "system", "content": request.instructions}] if request.instructions else []
    if isinstance(request.input, str):
        messages.append({"role": "user", "content": request.input})
    else:
        _check_pairs(request.input)
        messages += [message for place, item in enumerate(request.input) if (message := _message(item, place, request))]
    if not messages:
        raise Refused("`input` must not be empty.")
    tools = [{"type": "function", "function": {"name": tool.get("name")}} for tool in request.tools or ()]
    chat = ChatRequest(request.model, messages, request.stream, tools=tools, text=request.text)
    chat.max_completion_tokens = request.max_output_tokens
    return Call(chat, headers)


def _check_pairs(items: list[Json]) -> None:
    asked = {item.get("call_id") for item in items if item.get("type") in ("function_call", "custom_tool_call")}
    given = {item.get("call_id") for item in items if str(item.get("type")).endswith("_call_output")}
    if lost := given - asked:
        raise Refused(f"No tool call found for function call output with call_id {sorted(map(str, lost))[0]}.")
    if lost := asked - given:
        raise Refused(f"No tool output found for function call {sorted(map(str, lost))[0]}.")


def _message(item: Json, place: int, request: ResponsesRequest) -> Json | None:
    """Convert an item to a chat message. Returns None for an item that rules cannot match."""
    kind = item.get("type") or "message"
    if kind not in _ITEMS:
        raise Refused(f"Invalid value: '{kind}'. Supported values are: {', '.join(sorted(_ITEMS))}.")
    if item.get("id"):
        raise Refused(f"Item with id '{item['id']}' not found. Items are not persisted when `store` is set to false.")
    if kind == "reasoning":
        thinking = "".join(part["text"] for part in cast("list[Json]", item.get("summary") or ()))
        if item.get("encrypted_content") != seal(request.model, thinking):
            raise Refused(f"The encrypted content of input[{place}] could not be verified.")
        return None
    if kind == "message":
        return {"role": item.get("role"), "content": item.get("content")}
    if kind.endswith("_call_output"):
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
    if kind == "web_search_call":
        return None
    arguments: Any = item.get("arguments", item.get("input"))
    function = {"name": item.get("name"), "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": item.get("call_id"), "function": function}]}


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _response(reply: Reply, call: Call, output: list[Json], status: str) -> Json:
    cut = reply.finish_reason in ("length", "content_filter")
    reason = {"length": "max_output_tokens"}.get(reply.finish_reason, reply.finish_reason)
    usage, sent = reply.usage, reply.usage["prompt_tokens_details"]
    ended = status != "in_progress"
    usage = {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": sent["cached_tokens"],
            "cache_write_tokens": sent.get("cache_write_tokens", 0),
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": usage["completion_tokens_details"]["reasoning_tokens"]},
        "total_tokens": usage["total_tokens"],
    }
    return {
        "id": f"resp_{reply.tag}",
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": reason} if cut and ended else None,
        "instructions": None,
        "metadata": {},
        "model": reply.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "service_tier": "default",
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, **(call.request.text or {})},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": usage if ended else None,
    }


def _status(reply: Reply) -> str:
    return "incomplete" if reply.finish_reason in ("length", "content_filter") else "completed"


def _output(reply: Reply) -> list[Json]:
    output: list[Json] = []
    if reply.thinking is not None:
        item: Json = {"id": f"rs_{reply.tag}", "type": "reasoning"}
        item["summary"] = [{"type": "summary_text", "text": reply.thinking}]
        output.append({**item, "encrypted_content": seal(reply.model, reply.thinking)})
    if reply.text is not None:
        message: Json = {"id": f"msg_{reply.tag}", "type": "message", "role": "assistant", "status": _status(reply)}
        part: Json = {"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}
        output.append({**message, "content": [part]})
    for end, name, arguments in reply.calls:
        call: Json = {"id": f"fc_{end}", "type": "function_call", "call_id": f"call_{end}", "name": name}
        output.append({**call, "arguments": arguments, "status": "completed"})
    return output


def whole(reply: Reply, call: Call) -> bytes:
    """The body of an answer without streaming."""
    return _encode(_response(reply, call, _output(reply), _status(reply)))


def events(reply: Reply, call: Call) -> Iterator[bytes]:
    """The numbered events of a streamed answer."""
    for number, event in enumerate(_events(reply, call)):
        kind = f"response.{event.pop('kind')}"
        yield b"event: %s\ndata: %s\n\n" % (
            kind.encode(),
            _encode({"type": kind, "sequence_number": number, **event}),
        )


def _events(reply: Reply, call: Call) -> Iterator[Json]:
    started = _response(reply, call, [], "in_progress")
    yield {"kind": "created", "response": started}
    yield {"kind": "in_progress", "response": started}
    output = _output(reply)
    for index, item in enumerate(output):
        at = {"item_id": item["id"], "output_index": index}
        empty = {"reasoning": "summary", "message": "content", "function_call": "arguments"}[item["type"]]
        begins: Json = {**item, empty: "" if empty == "arguments" else []}
        begins.pop("encrypted_content", None)
        yield {"kind": "output_item.added", "output_index": index, "item": begins}
        if item["type"] == "function_call":
            for piece in in_pieces(item["arguments"]):
                yield {"kind": "function_call_arguments.delta", **at, "delta": piece}
            named = {"name": item["name"], "arguments": item["arguments"]}
            yield {"kind": "function_call_arguments.done", **at, **named}
        elif item["type"] == "message":
            yield from _text_events(item["content"][0], {**at, "content_index": 0})
        else:
            yield from _thought(item["summary"][0], {**at, "summary_index": 0})
        yield {"kind": "output_item.done", "output_index": index, "item": item}
    yield {"kind": _status(reply), "response": _response(reply, call, output, _status(reply))}


def _text_events(part: Json, at: Json) -> Iterator[Json]:
    yield {"kind": "content_part.added", **at, "part": {**part, "text": ""}}
    for piece in in_words(part["text"]):
        yield {"kind": "output_text.delta", **at, "delta": piece, "logprobs": []}
    yield {"kind": "output_text.done", **at, "text": part["text"], "logprobs": []}
    yield {"kind": "content_part.done", **at, "part": part}


def _thought(part: Json, at: Json) -> Iterator[Json]:
    yield {"kind": "reasoning_summary_part.added", **at, "part": {**part, "text": ""}}
    for piece in in_words(part["text"]):
        yield {"kind": "reasoning_summary_text.delta", **at, "delta": piece}
    yield {"kind": "reasoning_summary_text.done", **at, "text": part["text"]}
    yield {"kind": "reasoning_summary_part.done", **at, "part": part}


RESPONSES = Wire(read, whole, events, END, error_response)
