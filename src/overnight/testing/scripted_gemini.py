"""Gemini's wire format: requests, complete answers, stream events, embeddings, token counts. Deterministic.

A request is validated as strictly as by the real API: unknown fields, the order of calls and results, thought signatures of
other models, and schemas beyond the subset of older models are rejected, so that translation errors are found offline.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, cast

import msgspec

from .scripted_embeddings import vector
from .scripted_rules import Call, ChatRequest
from .scripted_wire import NOT_JSON, Headers, Refused, Reply, Wire, in_words, response, tokens_of

Json = dict[str, Any]
END = b"0\r\n\r\n"
_STANDARD = str.maketrans("-_", "+/")
"""Clients may write base64 in its other alphabet."""
SKIPPED = "skip_thought_signature_validator"
_FINISHED = {"stop": "STOP", "tool_calls": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_BLOCK, _FINISH = re.compile(r"\(block ([A-Z_]+)\)"), re.compile(r"\(finish ([A-Z_]+)\)")
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,63}")
_PARTS = {
    "text", "inlineData", "fileData", "functionCall", "functionResponse", "executableCode", "codeExecutionResult", "thought",
    "thoughtSignature", "videoMetadata",
}  # fmt: skip
_SUBSET = {
    "type", "format", "title", "description", "nullable", "enum", "maxItems", "minItems", "properties", "required",
    "minProperties", "maxProperties", "minLength", "maxLength", "pattern", "example", "anyOf", "propertyOrdering", "default",
    "items", "minimum", "maximum",
}  # fmt: skip
_encode = msgspec.json.encode


class GenerateRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    contents: list[Json]
    systemInstruction: Json | None = None
    tools: list[Json] = []
    toolConfig: Json | None = None
    safetySettings: list[Json] | None = None
    generationConfig: Json = {}
    cachedContent: str | None = None
    labels: Json | None = None
    serviceTier: str | None = None


class EmbedRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model: str
    content: Json
    taskType: str | None = None
    title: str | None = None
    outputDimensionality: int | None = None


class BatchRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    requests: list[EmbedRequest]


class EmbedCall(Call):
    """A request for embeddings. For rule matching, each content is a user message."""

    def __init__(self, model: str, requests: list[EmbedRequest], headers: Headers, *, single: bool) -> None:
        self.requests, self.single = requests, single
        self.texts = [_texts(each.content) for each in requests]
        super().__init__(ChatRequest(model, [{"role": "user", "content": text} for text in self.texts]), headers)


_generate = msgspec.json.Decoder(GenerateRequest).decode
_embed = msgspec.json.Decoder(EmbedRequest).decode
_batch = msgspec.json.Decoder(BatchRequest).decode


def signature(model: str) -> str:
    """The thought signature of a model; those of another one are rejected."""
    return b64encode(sha256(b"gemini:" + model.encode()).digest() * 3).decode()


def wire_of(name: str) -> Wire | None:
    """The wire of a path's `model:method`; None for an unknown method."""
    model, _, method = name.rpartition(":")

    def read(body: bytes, headers: Headers) -> Call:
        try:
            match method:
                case "embedContent":
                    return EmbedCall(model, [_embed(body)], headers, single=True)
                case "batchEmbedContents":
                    return EmbedCall(model, _batch(body).requests, headers, single=False)
                case _:
                    return _asked(_generate(body), model, headers, stream=method == "streamGenerateContent")
        except NOT_JSON as problem:
            raise Refused(f"Invalid JSON payload received. {problem}") from None

    if method in ("generateContent", "streamGenerateContent"):
        return Wire(read=read, whole=whole, events=events, done=END, error=error_response)
    if method in ("embedContent", "batchEmbedContents"):
        return Wire(read=read, whole=embedded, events=_no_events, done=END, error=error_response)
    return None


# ── validation ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _asked(request: GenerateRequest, model: str, headers: Headers, *, stream: bool) -> Call:
    if not request.contents:
        raise Refused("contents is not specified")
    _check_tools(request, model)
    calls: list[str] = []
    for at, content in enumerate(request.contents):
        parts: list[Json] = content.get("parts") or []
        role = content.get("role", "user")
        if role not in ("user", "model", "function") or not parts:
            raise Refused(f"contents[{at}]: must have a valid role, and parts must not be empty")
        for part in parts:
            _check_part(part, f"contents[{at}].parts", model)
        given = [part["functionResponse"]["name"] for part in parts if "functionResponse" in part]
        if role != "model" and sorted(given) != sorted(calls):
            raise Refused(
                "Please ensure that the number of function response parts is equal to the number of function call parts of"
                " the function call turn."
            )
        calls = [part["functionCall"]["name"] for part in parts if "functionCall" in part]
        if calls and "gemini-3" in model and not any(part.get("thoughtSignature") for part in parts):
            raise Refused("Function call is missing a thought_signature in functionCall parts.")
    config = request.generationConfig
    chat = ChatRequest(model, [*_system(request), *_messages(request.contents)], stream, tools=_offered(request.tools))
    chat.max_tokens = config.get("maxOutputTokens")
    return Call(chat, headers, tuple(config.get("stopSequences") or ()))


def _check_part(part: Json, place: str, model: str) -> None:
    if unknown := part.keys() - _PARTS:
        raise Refused(f"Unknown name \"{sorted(unknown)[0]}\" at '{place}': Cannot find field.")
    signed = part.get("thoughtSignature")
    if signed not in (None, SKIPPED) and str(signed).translate(_STANDARD) != signature(model):
        raise Refused("Thought signature is not valid.")
    name = (part.get("functionCall") or part.get("functionResponse") or {"name": "x"}).get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Refused(f"GenerateContentRequest.{place}.name: Invalid function name.")
    if "functionResponse" in part and not isinstance(part["functionResponse"].get("response"), dict):
        raise Refused(f"{place}.functionResponse.response: must be an object")


def _check_tools(request: GenerateRequest, model: str) -> None:
    declared = [each for tool in request.tools for each in tool.get("functionDeclarations") or ()]
    for each in declared:
        if not _NAME.fullmatch(each.get("name", "")):
            raise Refused("GenerateContentRequest.tools[0].function_declarations[0].name: Invalid function name.")
        if "parametersJsonSchema" in each and ("parameters" in each or "gemini-2.0" in model):
            raise Refused("parameters_json_schema must not be set when parameters is set")
        if "parameters" in each:
            _check_schema(each["parameters"])
    names = [each["name"] for each in declared]
    if len(set(names)) < len(names):
        raise Refused("Duplicate function declaration found.")
    config: Json = (request.toolConfig or {}).get("functionCallingConfig") or {}
    allowed = config.get("allowedFunctionNames") or ()
    if allowed and (config.get("mode") not in ("ANY", "VALIDATED") or set(allowed) - set(names)):
        raise Refused("Allowed function names can only be set when the mode is ANY.")
    if "responseSchema" in request.generationConfig:
        _check_schema(request.generationConfig["responseSchema"])


def _check_schema(schema: Any) -> None:
    if not isinstance(schema, dict):
        raise Refused("schema: must be an object")
    fields = cast("Json", schema)
    if unknown := fields.keys() - _SUBSET:
        raise Refused(f"Unknown name \"{sorted(unknown)[0]}\" at 'parameters': Cannot find field.")
    if fields.get("type") == "OBJECT" and fields.get("properties") == {}:
        raise Refused("properties: should be non-empty for OBJECT type")
    properties: Json = fields.get("properties") or {}
    variants: list[Any] = fields.get("anyOf") or []
    for inner in (*properties.values(), *variants):
        _check_schema(inner)


# ── rule matching ───────────────────────────────────────────────────────────────────────────────────────────────────


def _texts(content: Json) -> str:
    parts: list[Json] = content.get("parts") or []
    return "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str) and not part.get("thought"))


def _system(request: GenerateRequest) -> list[Json]:
    return [{"role": "system", "content": _texts(request.systemInstruction)}] if request.systemInstruction else []


def _messages(contents: list[Json]) -> Iterator[Json]:
    for content in contents:
        calls: list[Json] = []
        for part in cast("list[Json]", content["parts"]):
            if answered := part.get("functionResponse"):
                given: Json = answered["response"]
                text = given.get("output", given.get("error"))
                yield {"role": "tool", "content": text if isinstance(text, str) else _encode(given).decode()}
            elif called := part.get("functionCall"):
                calls.append({"function": {"name": called["name"], "arguments": _encode(called.get("args")).decode()}})
        if (text := _texts(content)) or calls:
            role = "assistant" if content.get("role") == "model" else "user"
            yield {"role": role, "content": text, **({"tool_calls": calls} if calls else {})}


def _offered(tools: list[Json]) -> list[Json]:
    declared = [each for tool in tools for each in tool.get("functionDeclarations") or ()]
    return [{"type": "function", "function": {"name": each["name"]}} for each in declared]


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _parts(reply: Reply) -> Iterator[list[Json]]:
    """The parts of an answer, as the pieces of a stream."""
    for piece in in_words(reply.thinking):
        yield [{"text": piece, "thought": True}]
    for piece in in_words(reply.text):
        yield [{"text": piece}]
    calls: list[Json] = [
        {"functionCall": {"name": name, "args": _arguments(arguments), "id": f"fc_{end}"}}
        for end, name, arguments in reply.calls
    ]
    if calls:
        calls[0]["thoughtSignature"] = signature(reply.model)
        yield calls


def _arguments(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}


def _body(reply: Reply, candidates: list[Json]) -> Json:
    counted, sent = reply.usage, reply.usage["prompt_tokens_details"]
    thoughts = counted["completion_tokens_details"]["reasoning_tokens"]
    usage: Json = {
        "promptTokenCount": counted["prompt_tokens"],
        "candidatesTokenCount": counted["completion_tokens"] - thoughts,
        "totalTokenCount": counted["total_tokens"],
    }
    if sent["cached_tokens"]:
        usage["cachedContentTokenCount"] = sent["cached_tokens"]
    if thoughts:
        usage["thoughtsTokenCount"] = thoughts
    return {
        **({"candidates": candidates} if candidates else {}),
        "usageMetadata": usage,
        "modelVersion": reply.model,
        "responseId": f"resp-{reply.tag}",
    }


def _block(reply: Reply) -> str | None:
    """The reason for which the prompt is blocked, where a rule's text is `(block REASON)`."""
    found = _BLOCK.fullmatch(reply.text or "")
    return found[1] if found else None


def _blocked(reply: Reply, reason: str) -> Json:
    return {**_body(reply, []), "promptFeedback": {"blockReason": reason}}


def whole(reply: Reply, _call: Call) -> bytes:
    """The body of an answer without streaming."""
    if (reason := _block(reply)) is not None:
        return _encode(_blocked(reply, reason))
    parts: list[Json] = []
    for each in _parts(reply):
        last = parts[-1] if parts else {}
        if "text" in each[0] and "text" in last and each[0].get("thought") == last.get("thought"):
            last["text"] += each[0]["text"]
        else:
            parts += each
    content = {"content": {"parts": parts, "role": "model"}} if parts else {}
    return _encode(_body(reply, [{**content, "finishReason": _finish(reply), "index": 0}]))


def events(reply: Reply, _call: Call) -> Iterator[bytes]:
    """The events of a streamed answer. The last has the finish reason; each has the usage."""
    if (reason := _block(reply)) is not None:
        yield _event(_blocked(reply, reason))
        return
    for parts in _parts(reply):
        yield _event(_body(reply, [{"content": {"parts": parts, "role": "model"}, "index": 0}]))
    empty = {"content": {"parts": [{"text": ""}], "role": "model"}}
    yield _event(_body(reply, [{**empty, "finishReason": _finish(reply), "index": 0}]))


def _finish(reply: Reply) -> str:
    """The finish reason; that of a rule's text `(finish REASON)` is one which no other format has."""
    found = _FINISH.fullmatch(reply.text or "")
    return found[1] if found else _FINISHED[reply.finish_reason]


def _event(event: Json) -> bytes:
    return b"data: " + _encode(event) + b"\r\n\r\n"


def _no_events(reply: Reply, call: Call) -> Iterator[bytes]:
    yield response(200, embedded(reply, call))


def embedded(reply: Reply, call: Call) -> bytes:
    assert isinstance(call, EmbedCall)
    made = [
        {"values": list(vector(text, asked.outputDimensionality or 256))}
        for text, asked in zip(call.texts, call.requests, strict=True)
    ]
    usage = {"usageMetadata": {"promptTokenCount": reply.usage["prompt_tokens"]}}
    return _encode({"embedding": made[0], **usage} if call.single else {"embeddings": made, **usage})


def count_tokens(body: bytes) -> bytes:
    """The answer to `countTokens`."""
    return _encode({"totalTokens": tokens_of(len(body))})


def error_response(status: int, message: str | None, code: str | None, retry_after_ms: int | None) -> bytes:
    """An error in Google's shape; `code` is the reason, or the id of an exceeded quota such as `…PerDay…`."""
    error: Json = {
        "code": status,
        "message": message or "The request failed.",
        "status": _STATUS.get(status, "INTERNAL" if status >= 500 else "INVALID_ARGUMENT"),
    }
    details: list[Json] = []
    if code and "Per" in code:
        details.append({"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": code}]})
    elif code:
        details.append({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": code})
    if retry_after_ms is not None:
        kind = "type.googleapis.com/google.rpc.RetryInfo"
        details.append({"@type": kind, "retryDelay": f"{retry_after_ms / 1000:g}s"})
    return response(status, _encode({"error": {**error, **({"details": details} if details else {})}}))
