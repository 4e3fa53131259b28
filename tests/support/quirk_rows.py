"""What a quirk is, and short forms for what upstreams send. `tests/quirks/test_quirks.py` tells how to add one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

Json = dict[str, Any]
DONE = "[DONE]"
SSE, JSON = "text/event-stream", "application/json"
TOKENS = (10, 2)
"""The usage that the short forms below report: tokens of input and output."""


class Reply(NamedTuple):
    """One HTTP response of the upstream. `cut`: the connection closes before the announced end."""

    body: bytes
    label: str | None = SSE
    status: int = 200
    headers: Mapping[str, str] = {}
    cut: bool = False


class Gets(msgspec.Struct, frozen=True, kw_only=True):
    """What a client gets. Fields that are None are not compared.

    Fields:
        text: the visible text; a refusal is text too.
        reasoning: the visible reasoning.
        calls: the tool calls in order, each a name and its arguments (decoded, or the text that is no JSON).
        call_ids: the ids of the calls.
        finish: `stop`, `length`, `calls` or `filter`, which each format words differently, or the format's own word.
        usage: tokens of input and output, told exactly once.
        order: the kinds of blocks or items in order (`thinking`, `text`, `call`), for formats that have them.
        status: the HTTP status; 200 with an `error` is an error inside the stream.
        error: words that the error contains.
        code: the error's code.
        headers: headers of the response.
    """

    text: str | None = None
    reasoning: str | None = None
    calls: tuple[tuple[str, Any], ...] | None = None
    call_ids: tuple[str, ...] | None = None
    finish: str | None = None
    usage: tuple[int, int] | None = None
    order: tuple[str, ...] | None = None
    status: int = 200
    error: str | None = None
    code: str | None = None
    headers: Mapping[str, str] | None = None


class Quirk(msgspec.Struct, frozen=True, kw_only=True):
    """One row: what an upstream sends, and what comes of it.

    Fields:
        name: unique; words joined by hyphens.
        gets: what every client gets.
        source: where it was reported or documented: a URL.
        target: the target's format, which is also the name of its model (see `quirk_gateway.ROUTING`).
        stream, whole: the replies to attempts that ask for a stream, or for a whole answer. The last one repeats. A mode
            without replies is not run.
        each: what clients of one format get instead: "messages", or "messages stream" for one mode.
        clients: the client formats.
        request: further fields of the request, by client format or for all ("*").
        model: the model that the client names, if not the target's.
        sent: fields that the last request to the upstream contains.
        asked: the models of the attempts, in order. `spare` follows after two failures, with a good answer.
        failures: the classes of the failed attempts, in order.
        billed: tokens of the last attempt, where they are not the usage in `gets`; each costs 1 and 2 microdollars.
        bound: whether a bound is booked beside the cost.
        estimated: whether the booked tokens are an estimate. Then they are not compared.
        recorded: fields of the recorded answer (see `contains`), by client format or for all ("*").
        valid: whether translated answers satisfy the strict models of the official SDKs.
        splits: whether the row takes part in the random splittings.
        distinct: `tool_use_id`: the ids of calls in the request to a messages upstream are unique, and each turn with calls is
            followed by a turn that begins with exactly their results.
        usage_asked: whether a streaming chat client asks for usage.
    """

    name: str
    gets: Gets
    source: str = ""
    target: str = "chat"
    stream: Sequence[Reply] = ()
    whole: Sequence[Reply] = ()
    each: Mapping[str, Gets] = {}
    clients: Sequence[str] = ("chat", "responses", "messages")
    request: Mapping[str, Json] = {}
    model: str = ""
    sent: Json = {}
    asked: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    billed: tuple[int, int] | None = None
    bound: bool = False
    estimated: bool = False
    recorded: Mapping[str, Json] = {}
    valid: bool = True
    splits: bool = True
    distinct: str = ""
    usage_asked: bool = True

    def expected(self, client: str, mode: str) -> Gets:
        return self.each.get(f"{client} {mode}") or self.each.get(client) or self.gets

    def replies(self, mode: str) -> Sequence[Reply]:
        return self.stream if mode == "stream" else self.whole

    def cases(self) -> list[tuple[str, str]]:
        """Each client format with each mode that has replies."""
        modes = [mode for mode in ("stream", "whole") if self.replies(mode)]
        return [(client, mode) for client in self.clients for mode in modes]


def contains(found: Any, wanted: Any) -> bool:
    """Whether `found` has all that is in `wanted`: fields of objects at any depth, lists of equal length, equal values."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return all(name in found and contains(found[name], value) for name, value in wanted.items())
    if isinstance(wanted, list) and isinstance(found, list):
        return len(found) == len(wanted) and all(map(contains, found, wanted))
    return found == wanted


# ── replies ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def encoded(event: Any) -> bytes:
    """One event of a stream: an object as JSON, a string or bytes as they are. Objects with a type get an event name."""
    if isinstance(event, bytes):
        return event
    name = f"event: {event['type']}\n" if isinstance(event, dict) and isinstance(event.get("type"), str) else ""
    payload = event if isinstance(event, str) else json.dumps(event)
    return f"{name}data: {payload}\n\n".encode()


def sse(*events: Any, label: str | None = SSE, status: int = 200, cut: bool = False, **headers: str) -> Reply:
    """A stream. An event is an object, the text of a payload, or raw bytes with their own framing."""
    return Reply(b"".join(map(encoded, events)), label, status, _dashed(headers), cut)


def body(answer: Any, label: str | None = JSON, status: int = 200, **headers: str) -> Reply:
    """A whole answer: an object as JSON, or raw bytes."""
    raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return Reply(raw, label, status, _dashed(headers))


def _dashed(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


# ── chat ────────────────────────────────────────────────────────────────────────────────────────────────────────────

USAGE: Json = {"prompt_tokens": TOKENS[0], "completion_tokens": TOKENS[1], "total_tokens": sum(TOKENS)}
_CHAT: Json = {"id": "chatcmpl-1", "created": 1, "model": "chat"}


def chunk(delta: Json | str | None = None, finish: Any = None, **fields: Any) -> Json:
    """A chunk with one choice. A string is content."""
    delta = {"content": delta} if isinstance(delta, str) else delta
    choice = {"index": 0, "delta": {} if delta is None else delta, "finish_reason": finish}
    return {**_CHAT, "object": "chat.completion.chunk", "choices": [choice], **fields}


def usage_chunk(usage: Any = None) -> Json:
    """The usage chunk at the end of a stream."""
    return {**_CHAT, "object": "chat.completion.chunk", "choices": [], "usage": USAGE if usage is None else usage}


ROLE = chunk({"role": "assistant", "content": ""})


def part(arguments: Any = "", name: str | None = None, index: int | None = 0, **fields: Any) -> Json:
    """A delta with one fragment of a tool call."""
    function: Json = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    at: Json = {} if index is None else {"index": index}
    named: Json = {"type": "function"} if name is not None else {}
    return {"tool_calls": [{**at, **named, "function": function, **fields}]}


def completion(message: Json | str | None, finish: Any = "stop", usage: Any = USAGE, **fields: Any) -> Json:
    """A chat completion with one choice. A string is content."""
    message = {"content": message} if isinstance(message, str | None) else {"content": None, **message}
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {**_CHAT, "object": "chat.completion", "choices": [choice], "usage": usage, **fields}


def called(name: str, arguments: Any, call_id: str | None = "call_1") -> Json:
    """A tool call of a whole chat completion."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


# ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────────

MESSAGES_USAGE: Json = {"input_tokens": TOKENS[0], "output_tokens": TOKENS[1]}


def message(*content: Json, stop: Any = "end_turn", **fields: Any) -> Json:
    """A whole message."""
    head: Json = {"id": "msg_1", "type": "message", "role": "assistant", "model": "messages", "content": list(content)}
    return {**head, "stop_reason": stop, "stop_sequence": None, "usage": MESSAGES_USAGE, **fields}


def message_start(**fields: Any) -> Json:
    usage = {"input_tokens": TOKENS[0], "output_tokens": 1}
    return {"type": "message_start", "message": message(stop=None, **{"usage": usage, **fields})}


def block(index: int, start: Json, *deltas: Json, stop: bool = True) -> list[Json]:
    """The events of one block."""
    events: list[Json] = [{"type": "content_block_start", "index": index, "content_block": start}]
    events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    return [*events, {"type": "content_block_stop", "index": index}] if stop else events


def text_block(index: int, text: str, *, stop: bool = True) -> list[Json]:
    return block(index, {"type": "text", "text": ""}, {"type": "text_delta", "text": text}, stop=stop)


def tool_block(index: int, name: str, *pieces: str, call_id: str = "toolu_1", stop: bool = True) -> list[Json]:
    deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    return block(index, {"type": "tool_use", "id": call_id, "name": name, "input": {}}, *deltas, stop=stop)


def message_end(stop: Any = "end_turn", **fields: Any) -> list[Json]:
    delta = {"stop_reason": stop, "stop_sequence": None}
    return [
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": TOKENS[1]}, **fields},
        {"type": "message_stop"},
    ]


# ── responses ───────────────────────────────────────────────────────────────────────────────────────────────────────

RESPONSES_USAGE: Json = {"input_tokens": TOKENS[0], "output_tokens": TOKENS[1], "total_tokens": sum(TOKENS)}


def response(*output: Json, status: str = "completed", **fields: Any) -> Json:
    """A response object."""
    head: Json = {"id": "resp_1", "object": "response", "created_at": 1, "status": status, "model": "responses"}
    usage = None if status == "in_progress" else RESPONSES_USAGE
    return {**head, "output": list(output), "usage": usage, "error": None, "incomplete_details": None, **fields}


def text_item(text: str, item_id: str = "msg_1") -> Json:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"id": item_id, "type": "message", "role": "assistant", "status": "completed", "content": content}


def call_item(name: str, arguments: str, call_id: str = "call_1", item_id: str = "fc_1") -> Json:
    item: Json = {"id": item_id, "type": "function_call", "call_id": call_id, "name": name}
    return {**item, "arguments": arguments, "status": "completed"}


def response_events(*output: Json, final: Json | None = None) -> list[Json]:
    """The events of a stream with complete items. `final` replaces the response of the last event."""
    events: list[Json] = [{"type": "response.created", "response": response(status="in_progress")}]
    for index, item in enumerate(output):
        empty: Json = {**item, "status": "in_progress"}
        at: Json = {"item_id": item["id"], "output_index": index}
        if item["type"] == "message":
            text = item["content"][0]
            inner = {**at, "content_index": 0}
            events += [
                {"type": "response.output_item.added", "output_index": index, "item": {**empty, "content": []}},
                {"type": "response.content_part.added", **inner, "part": {**text, "text": ""}},
                {"type": "response.output_text.delta", **inner, "delta": text["text"], "logprobs": []},
                {"type": "response.output_text.done", **inner, "text": text["text"], "logprobs": []},
                {"type": "response.content_part.done", **inner, "part": text},
            ]
        else:
            kind = "response.function_call_arguments"
            name, arguments = item["name"], item["arguments"]
            events += [
                {"type": "response.output_item.added", "output_index": index, "item": {**empty, "arguments": ""}},
                {"type": f"{kind}.delta", **at, "delta": arguments},
                {"type": f"{kind}.done", **at, "name": name, "arguments": arguments},
            ]
        events.append({"type": "response.output_item.done", "output_index": index, "item": item})
    answer = response(*output) if final is None else final
    last = {"incomplete": "response.incomplete", "failed": "response.failed"}
    events.append({"type": last.get(answer["status"], "response.completed"), "response": answer})
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]
