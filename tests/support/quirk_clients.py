"""What a client makes of a gateway's response, read by the official SDKs, and what it holds against the response.

A response is kept as bytes and given to an SDK behind a transport that returns it. So recorded and replayed responses are
read in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import anthropic
import httpx2
import openai
from anthropic.lib.streaming import MessageStream
from anthropic.types import Message as AnthropicMessage
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion
from openai.types.responses import Response as OpenAIResponse
from pydantic import BaseModel, ValidationError

from quirk_rows import Gets, Json, Quirk

PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
FINISH: Mapping[str, Mapping[str, str]] = {
    "chat": {"stop": "stop", "length": "length", "calls": "tool_calls", "filter": "content_filter"},
    "messages": {"stop": "end_turn", "length": "max_tokens", "calls": "tool_use", "filter": "refusal"},
    "responses": {
        "stop": "completed",
        "length": "incomplete: max_output_tokens",
        "calls": "completed",
        "filter": "incomplete: content_filter",
    },
}
_KINDS = {"thinking": "thinking", "reasoning": "thinking", "text": "text", "message": "text", "refusal": "text"}
_KINDS |= {"tool_use": "call", "function_call": "call", "custom_tool_call": "call", "redacted_thinking": "thinking"}


def request_of(client: str, text: str, quirk: Quirk, *, streamed: bool) -> Json:
    """The body of a row's request."""
    fields: Json = {"model": quirk.model or quirk.target, "max_tokens": 100}
    fields["messages"] = [{"role": "user", "content": text}]
    if client == "responses":
        fields = {"model": fields["model"], "input": text}
    if streamed:
        fields["stream"] = True
        if client == "chat" and quirk.usage_asked:
            fields["stream_options"] = {"include_usage": True}
    asked = {**fields, **quirk.request.get("*", {}), **quirk.request.get(client, {})}
    # The upstream knows a case by its number, which a row's own conversation holds as a placeholder.
    return json.loads(json.dumps(asked).replace("case-0", text))


class Answer(NamedTuple):
    """One response of the gateway."""

    status: int
    headers: Mapping[str, str]
    raw: bytes


class Got:
    """What a client got. `faults`: what an official SDK, or the format's own rules, hold against the response."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self.status, self.headers = status, headers
        self.text = self.reasoning = ""
        self.calls: list[tuple[str, Any]] = []
        self.call_ids: list[str] = []
        self.finish: str | None = None
        self.usage: tuple[int, int] | None = None
        self.order: list[str] = []
        self.error: str | None = None
        self.code: str | None = None
        self.faults: list[str] = []

    def meaning(self) -> Json:
        """What a recorded, replayed or differently split response must agree in."""
        names = ("status", "text", "reasoning", "calls", "call_ids", "finish", "order", "error", "code")
        return {name: getattr(self, name) for name in names}

    def differs(self, wanted: Gets, client: str) -> list[str]:
        """Where this is not what the row says."""
        finish = FINISH[client].get(wanted.finish or "", wanted.finish)
        pairs: list[tuple[str, Any, Any]] = [
            ("status", wanted.status, self.status),
            ("text", wanted.text, self.text),
            ("reasoning", wanted.reasoning, self.reasoning),
            ("calls", _listed(wanted.calls), self.calls),
            ("call_ids", _listed(wanted.call_ids), self.call_ids),
            ("finish", finish, self.finish),
            ("usage", wanted.usage, self.usage),
            ("order", _listed(wanted.order) if client != "chat" else None, self.order),
            ("code", wanted.code, self.code),
        ]
        found = [
            f"{name}: {is_!r}, not {should!r}" for name, should, is_ in pairs if should is not None and is_ != should
        ]
        if wanted.error is None and self.error is not None:
            found.append(f"an error: {self.error!r}")
        if wanted.error is not None and wanted.error not in (self.error or ""):
            found.append(f"error: {self.error!r} without {wanted.error!r}")
        for name, value in (wanted.headers or {}).items():
            if self.headers.get(name) != value:
                found.append(f"header {name}: {self.headers.get(name)!r}, not {value!r}")
        return found


def _listed(values: tuple[Any, ...] | None) -> list[Any] | None:
    return None if values is None else list(values)


def read_answer(client: str, mode: str, answer: Answer, *, valid: bool, asked_usage: bool = True) -> Got:
    """Read a response with the SDK of its format. `valid`: also judge it by the strict models of the SDK."""
    got = Got(answer.status, answer.headers)
    try:
        _READERS[client, mode](got, answer, valid, asked_usage)
    except (openai.APIError, anthropic.APIError) as error:
        found: Any = error.body
        found = found.get("error", found) if isinstance(found, dict) else {"message": str(error)}
        got.error = str(found.get("message") if isinstance(found, dict) else found)
        details = found.get("details") if isinstance(found, dict) else None
        code = found.get("code") if client != "messages" else (details or {}).get("error_code")
        got.code = code if isinstance(code, str) else None
    except Exception as error:
        got.faults.append(f"the SDK failed: {type(error).__name__}: {error}")
    got.text, got.reasoning = joined(got.text), joined(got.reasoning)
    return got


def _transport(answer: Answer) -> httpx2.Client:
    headers = {"content-type": answer.headers.get("content-type", "application/json")}
    return httpx2.Client(
        transport=httpx2.MockTransport(lambda _: httpx2.Response(answer.status, headers=headers, content=answer.raw))
    )


def _openai(answer: Answer) -> openai.OpenAI:
    return openai.OpenAI(api_key="-", base_url="http://gateway/v1", http_client=_transport(answer), max_retries=0)


def _anthropic(answer: Answer) -> anthropic.Anthropic:
    return anthropic.Anthropic(api_key="-", base_url="http://gateway", http_client=_transport(answer), max_retries=0)


def _validate(got: Got, model: type[BaseModel], answer: Json) -> None:
    try:
        model.model_validate(answer)
    except ValidationError as error:
        got.faults += [f"invalid: {each['loc']}: {each['msg']} ({each['input']!r})" for each in error.errors()[:4]]


def joined(text: str) -> str:
    """The text as JavaScript has it: two halves of a surrogate pair are one character, wherever they came from."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _arguments(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return json.loads(joined(text))
    except ValueError:
        return text


# ── chat ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _chat_whole(got: Got, answer: Answer, valid: bool, _asked_usage: bool) -> None:
    completion = _openai(answer).chat.completions.create(model="-", messages=[])
    read_chat(got, json.loads(answer.raw))
    if completion.choices and got.finish != completion.choices[0].finish_reason:
        got.faults.append("the SDK reads another finish reason")
    if valid:
        _validate(got, ChatCompletion, json.loads(answer.raw))


def read_chat(got: Got, completion: Json) -> None:
    choice = completion["choices"][0]
    message = choice["message"]
    content = message.get("content") or ""
    got.text = content if isinstance(content, str) else "".join(each.get("text", "") for each in content)
    got.text += message.get("refusal") or ""
    got.reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    for call in message.get("tool_calls") or []:
        function = call.get("function") or {}
        got.calls.append((function.get("name"), _arguments(function.get("arguments"))))
        got.call_ids.append(call.get("id"))
    got.finish = choice.get("finish_reason")
    if usage := completion.get("usage"):
        got.usage = (usage.get("prompt_tokens"), usage.get("completion_tokens"))


def _chat_stream(got: Got, answer: Answer, valid: bool, asked_usage: bool) -> None:
    state = ChatCompletionStreamState[Any]()
    usages, finishes, roles = 0, 0, 0
    stream = _openai(answer).chat.completions.create(model="-", messages=[], stream=True)
    seen: list[Json] = []
    try:
        for chunk in stream:
            state.handle_chunk(chunk)
            plain = chunk.to_dict(warnings=False, use_api_names=True)
            seen.append(plain)
            usages += chunk.usage is not None
            for choice in chunk.choices:
                finishes += choice.index == 0 and choice.finish_reason is not None
                roles += choice.index == 0 and bool(choice.delta.role)
        if answer.status == 200 and b"[DONE]" not in answer.raw[-20:]:
            got.faults.append("the stream has no end mark")
        if finishes != 1:
            got.faults.append(f"the finish reason is told {finishes} times")
        if usages != asked_usage:
            got.faults.append(f"usage is told {usages} times, asked for {asked_usage}")
    finally:
        if seen:
            read_chat(got, state.current_completion_snapshot.to_dict(warnings=False))
            # The helper keeps unknown fields of the first chunk only.
            deltas = [choice["delta"] for each in seen for choice in each["choices"] if choice["index"] == 0]
            got.reasoning = "".join(each.get("reasoning_content") or each.get("reasoning") or "" for each in deltas)
    if valid:
        _validate(got, ChatCompletion, state.current_completion_snapshot.to_dict(warnings=False))


# ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _messages_whole(got: Got, answer: Answer, valid: bool, _asked_usage: bool) -> None:
    _anthropic(answer).messages.create(model="-", messages=[], max_tokens=1)
    message = json.loads(answer.raw)
    read_message(got, message)
    if valid:
        _validate(got, AnthropicMessage, message)


def read_message(got: Got, message: Json) -> None:
    for block in message["content"]:
        kind = block["type"]
        got.order.append(_KINDS.get(kind, kind))
        if kind == "text":
            got.text += block["text"]
        elif kind == "thinking":
            got.reasoning += block["thinking"]
        elif kind == "tool_use":
            got.calls.append((block["name"], block["input"]))
            got.call_ids.append(block["id"])
    got.finish = message.get("stop_reason")
    usage = message.get("usage") or {}
    cached = (usage.get("cache_read_input_tokens") or 0) + (usage.get("cache_creation_input_tokens") or 0)
    got.usage = ((usage.get("input_tokens") or 0) + cached, usage.get("output_tokens") or 0)


def _messages_stream(got: Got, answer: Answer, valid: bool, _asked_usage: bool) -> None:
    raw = _anthropic(answer).messages.create(model="-", messages=[], max_tokens=1, stream=True)
    stream = MessageStream[Any](raw, output_format=anthropic.NOT_GIVEN)
    try:
        for _ in stream:
            pass
        got.faults += _faults_of_blocks(_events(answer.raw))
    finally:
        if b"message_start" in answer.raw:
            read_message(got, stream.current_message_snapshot.to_dict(warnings=False))
    if valid:
        _validate(got, AnthropicMessage, stream.current_message_snapshot.to_dict(warnings=False))


def _faults_of_blocks(events: list[Json]) -> Iterator[str]:
    """Blocks come one after another, each with a start, deltas of its kind, and a stop; then the end."""
    kinds = [event["type"] for event in events if event["type"] != "ping"]
    if kinds.count("message_start") != 1 or kinds[0] != "message_start":
        yield f"{kinds.count('message_start')} starts of the message"
    if kinds[-2:] != ["message_delta", "message_stop"] or kinds.count("message_delta") != 1:
        yield f"the stream ends with {kinds[-2:]}"
    at, is_open, deltas = -1, "", {"text": "text_delta citations_delta", "tool_use": "input_json_delta"}
    deltas["thinking"] = "thinking_delta signature_delta"
    for event in events:
        match event["type"]:
            case "content_block_start":
                if is_open or event["index"] != at + 1:
                    yield f"block {event['index']} starts after {at}, which is {is_open or 'closed'}"
                at, is_open = event["index"], event["content_block"]["type"]
            case "content_block_delta":
                if not is_open or event["index"] != at:
                    yield f"a delta of block {event['index']} inside of block {at}, which is {is_open or 'closed'}"
                elif event["delta"]["type"] not in deltas.get(is_open, event["delta"]["type"]).split():
                    yield f"a {event['delta']['type']} in a block of {is_open}"
            case "content_block_stop":
                if not is_open or event["index"] != at:
                    yield f"block {event['index']} ends inside of block {at}, which is {is_open or 'closed'}"
                is_open = ""
            case _:
                pass
    if is_open:
        yield f"block {at} does not end"


# ── responses ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _responses_whole(got: Got, answer: Answer, valid: bool, _asked_usage: bool) -> None:
    _openai(answer).responses.create(model="-", input="-")
    whole = json.loads(answer.raw)
    read_response(got, whole)
    if valid:
        _validate(got, OpenAIResponse, whole)


def read_response(got: Got, whole: Json) -> None:
    for item in whole["output"]:
        kind = item["type"]
        got.order.append(_KINDS.get(kind, kind))
        if kind == "message":
            got.text += "".join(part.get("text") or part.get("refusal") or "" for part in item["content"])
        elif kind == "reasoning":
            parts = [*(item.get("summary") or []), *(item.get("content") or [])]
            got.reasoning += "".join(part.get("text") or "" for part in parts)
        elif kind in ("function_call", "custom_tool_call"):
            got.calls.append((item["name"], _arguments(item.get("arguments", item.get("input")))))
            got.call_ids.append(item["call_id"])
    why = (whole.get("incomplete_details") or {}).get("reason")
    got.finish = f"{whole['status']}: {why}" if why else whole["status"]
    if usage := whole.get("usage"):
        got.usage = (usage["input_tokens"], usage["output_tokens"])


def _responses_stream(got: Got, answer: Answer, valid: bool, _asked_usage: bool) -> None:
    events = _events(answer.raw) if answer.status == 200 else []
    got.text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    with _openai(answer).responses.stream(model="-", input="-") as stream:
        for _ in stream:
            pass
    last = events[-1]
    if last["type"] == "response.failed":
        got.error, got.code = last["response"]["error"]["message"], last["response"]["error"]["code"]
        return
    got.text = ""
    read_response(got, last["response"])
    got.faults += _faults_of_items(events)
    if valid:
        _validate(got, OpenAIResponse, last["response"])


def _faults_of_items(events: list[Json]) -> Iterator[str]:
    """Items and their deltas agree with the response of the last event, in the same order."""
    kinds = [event["type"] for event in events]
    if kinds.count("response.created") != 1 or kinds[0] != "response.created":
        yield f"{kinds.count('response.created')} starts of the response"
    numbers = [event.get("sequence_number") for event in events]
    if numbers != list(range(numbers[0] or 0, (numbers[0] or 0) + len(numbers))):
        yield f"sequence numbers {numbers}"
    whole = events[-1]["response"]
    done = [event for event in events if event["type"] == "response.output_item.done"]
    added = [event for event in events if event["type"] == "response.output_item.added"]
    if [event["output_index"] for event in added] != list(range(len(added))):
        yield f"items are added at {[event['output_index'] for event in added]}"
    if [event["item"].get("id") for event in added] != [item.get("id") for item in whole["output"]]:
        yield "the added items are not those of the final response, in its order"
    finals = {event["output_index"]: event["item"] for event in done}
    if [finals.get(index) for index in range(len(whole["output"]))] != whole["output"]:
        yield "the completed items are not those of the final response"
    for index, item in enumerate(whole["output"]):
        own = [event for event in events if event.get("output_index") == index]
        texts = "".join(event["delta"] for event in own if event["type"].endswith(("_text.delta", "refusal.delta")))
        if item["type"] == "message":
            whole_text = "".join(part.get("text") or part.get("refusal") or "" for part in item["content"])
            if joined(texts) != joined(whole_text):
                yield f"the deltas of item {index} are {texts!r}, its text is {whole_text!r}"
        if item["type"] == "function_call":
            text = "".join(event["delta"] for event in own if event["type"].endswith("arguments.delta"))
            if joined(text) != joined(item["arguments"]):
                yield f"the deltas of call {index} are {text!r}, its arguments are {item['arguments']!r}"


def _events(raw: bytes) -> list[Json]:
    lines = [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


_READERS = {
    ("chat", "whole"): _chat_whole,
    ("chat", "stream"): _chat_stream,
    ("messages", "whole"): _messages_whole,
    ("messages", "stream"): _messages_stream,
    ("responses", "whole"): _responses_whole,
    ("responses", "stream"): _responses_stream,
}
