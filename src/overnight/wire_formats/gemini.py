"""Gemini's `generateContent`: https://ai.google.dev/api/generate-content

The path holds the model and the method. Here both are fields of the body, `model` and `stream`, and the output limit is
`maxOutputTokens` beside them. `addressed` makes the body of a client's request; `dispatched` the path and body for a target.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, cast
from urllib.parse import quote

import msgspec

from overnight.ledger import address_chain
from overnight.pricing.provider_tools import hosted_tools
from overnight.pricing.usage import MAX_TOKENS, Usage, openai_usage

from .contract import Json
from .gemini_stream import Assembly, encode, is_blocked, is_failed, stream_events, text_parts
from .lenient_json import dict_of, dicts_of, list_of, text_of
from .recorded_answers import ReadAnswer
from .request import (
    NOT_FINGERPRINTED,
    REFERENCED_FILE_BYTES,
    TOOLS_BYTES,
    InvalidBody,
    Request,
    canonical,
    invalid_body,
    tools_of,
    unescaped_for_search,
)

__all__ = [
    "Assembly",
    "addressed",
    "dispatched",
    "encode",
    "error_body",
    "error_event",
    "estimate_input_tokens",
    "in_camel_case",
    "is_answer",
    "model_path",
    "read",
    "read_answer",
    "stream_events",
    "tool_uses",
    "usage_of",
]

CAP_FIELD = "maxOutputTokens"
HOSTED_TOOL_BYTES = 65_536
"""Added for each tool that the provider executes: its results are billed as input."""
MEDIA_TOKENS = 1_300
"""Estimated tokens of an image or a file, which Gemini splits into tiles of 258 tokens."""
NOT_CONTENTS = 'a list of contents, such as [{"role": "user", "parts": [{"text": "hello"}]}]'
_POINTERS = (b'"fileUri"', b'"file_uri"', b'"inlineData"', b'"inline_data"')
_NOT_PARAMETERS = frozenset({"contents", "systemInstruction", "tools", "stream"})
_CLIENT_TOOLS = frozenset({"functionDeclarations", "computerUse"})
_TOOL_NAMES = {
    "googleSearch": "google_search",
    "googleSearchRetrieval": "google_search",
    "enterpriseWebSearch": "google_search",
    "googleMaps": "google_maps",
    "codeExecution": "google_code_execution",
    "urlContext": "url_context",
    "fileSearch": "google_file_search",
}
"""The provider-run tools as they are priced. Others are named as the request names them, and need a fee in routing.yaml."""
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "FAILED_PRECONDITION",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
# Names whose content is the client's own, so that its names are not spelled by Gemini.
_OPAQUE = frozenset({
    "args", "response", "labels", "parameters", "parametersJsonSchema", "responseSchema", "responseJsonSchema",
    "partMetadata",
})  # fmt: skip
_SNAKE = re.compile(rb'"[a-z]+(?:_[a-z]+)+"\s*:')
_UNDERSCORE = re.compile(r"_([a-z])")


class _Known(msgspec.Struct):
    """The fields of the body that the gateway reads."""

    contents: Annotated[list[Json], msgspec.Meta(min_length=1, max_length=100_000)]
    systemInstruction: Json | str | None = None
    model: str | None = None
    stream: bool | None = None
    generationConfig: Json | None = None
    maxOutputTokens: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | None = None
    cachedContent: str | None = None


_known = msgspec.json.Decoder(_Known).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_any = msgspec.json.Decoder().decode


def addressed(body: bytes, model: str, *, stream: bool) -> bytes:
    """The client's body with what its path said. The path wins over fields of the same names."""
    trimmed = body.strip()
    if trimmed[:1] != b"{" or trimmed[-1:] != b"}":
        return body  # `read` reports it
    named = _encode({"model": model.removeprefix("models/"), "stream": stream})[1:]
    return trimmed[:-1] + (b"" if not trimmed[1:-1].strip() else b",") + named


def dispatched(body: Json) -> tuple[str, bytes]:
    """The path and the body for a target."""
    sent = {name: value for name, value in body.items() if name not in ("model", "stream", CAP_FIELD)}
    if (cap := body.get(CAP_FIELD)) is not None:
        config: Any = sent.get("generationConfig")
        given = _any(config) if isinstance(config, msgspec.Raw) else config
        sent["generationConfig"] = {**dict_of(given), CAP_FIELD: cap}
    method = "generateContent"
    streams: Any = body.get("stream")
    if bytes(streams) == b"true" if isinstance(streams, msgspec.Raw) else streams:
        method = "streamGenerateContent?alt=sse"
    return f"{model_path(body)}:{method}", _encode(sent)


def model_path(body: Json) -> str:
    """The path of the model that a body names."""
    named: Any = body["model"]
    model = text_of(_any(named) if isinstance(named, msgspec.Raw) else named).removeprefix("models/")
    return f"/models/{quote(model, safe='-._~/')}"


def read(body: bytes) -> Request:
    """Decode a request body that `addressed` has made. The system instruction is recorded as the first message.

    Raises:
        InvalidBody: a field is invalid; the error names the field and the expected value.
    """
    try:
        body = in_camel_case(body)
        known = _known(body)
        fields = _fields(body)
        params = {name: _any(raw) for name, raw in fields.items() if name not in _NOT_PARAMETERS}
        links = address_chain([canonical(content) for content in _recorded(known)])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_body(error, conversation_field="contents", example=NOT_CONTENTS, api_name="Gemini") from None
    config = known.generationConfig or {}
    cap = known.maxOutputTokens or _whole(config, CAP_FIELD, 10_000_000)
    choices = _whole(config, "candidateCount", 128) or 1
    tools, tools_sha256 = tools_of(fields.get("tools"))
    run_there = _hosted(tools) if tools else []
    unescaped = unescaped_for_search(body)
    references_found = sum(unescaped.count(mark) for mark in _POINTERS)
    params = _without_cap(params)
    return Request(
        format="gemini",
        fields=fields,
        model=known.model or "",
        links=tuple(links),
        tools=tools,
        tools_sha256=tools_sha256,
        params=canonical(params),
        stable_params=canonical({name: value for name, value in params.items() if name not in _volatile()}),
        stream=bool(known.stream),
        prompt_bytes=len(body)
        + references_found * REFERENCED_FILE_BYTES
        + len(run_there) * HOSTED_TOOL_BYTES
        + (TOOLS_BYTES if tools else 0),
        cap=cap,
        cap_field=CAP_FIELD,
        wants_usage=True,
        choices=choices,
        hosted=hosted_tools(run_there),
        open_ended=references_found > 0 or bool(run_there) or known.cachedContent is not None,
    )


def _volatile() -> frozenset[str]:
    return NOT_FINGERPRINTED | {"labels"}


def _without_cap(params: Json) -> Json:
    # The limit stands in the client's place, whoever set it.
    return {name: value for name, value in params.items() if name != CAP_FIELD}


def _recorded(known: _Known) -> list[Json]:
    system = known.systemInstruction
    if not system:
        return known.contents
    parts: Any = [{"text": system}] if isinstance(system, str) else system.get("parts")
    return [{"role": "system", "parts": parts}, *known.contents]


def _whole(config: Json, name: str, most: int) -> int | None:
    value: Any = config.get(name)
    if value is None:
        return None
    if type(value) is not int or not 0 < value <= most:
        place = f"generationConfig.{name}"
        raise InvalidBody(f"{place}: must be an integer from 1 to {most:,}", place)
    return value


def _hosted(tools: bytes) -> list[Json]:
    """The tools that the provider executes, one for each name."""
    given: list[Json] = _any(tools)
    names = [name for tool in given for name, value in tool.items() if name not in _CLIENT_TOOLS and value is not None]
    return [{"type": _TOOL_NAMES.get(name, name)} for name in dict.fromkeys(names)]


def in_camel_case(body: bytes) -> bytes:
    """The body with the names that Google's documentation writes. Its API accepts `generation_config` as well."""
    if not _SNAKE.search(unescaped_for_search(body)):
        return body
    return _encode(_renamed(_any(body)))


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return [_renamed(each) for each in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    out: Json = {}
    for name, each in cast("Json", value).items():
        camel = _UNDERSCORE.sub(lambda found: found[1].upper(), name)
        out[camel] = each if camel in _OPAQUE else _renamed(each)
    return out


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def usage_of(answer: Json) -> Usage | None:
    """The reported usage. Thoughts, and the results of provider-run tools, are counted apart from the rest."""
    report = dict_of(answer.get("usageMetadata") or answer.get("usage"))
    prompt = report.get("promptTokenCount")
    if prompt is None and report.get("totalTokenCount") is None:
        return None
    thoughts = _count(report, "thoughtsTokenCount")
    is_told = report.get("candidatesTokenCount") is not None or thoughts > 0
    made = _count(report, "candidatesTokenCount") + thoughts if is_told else None
    return openai_usage(
        {
            "prompt_tokens": _sum(prompt or 0, report.get("toolUsePromptTokenCount")),
            "completion_tokens": made,
            "total_tokens": report.get("totalTokenCount"),
            "prompt_tokens_details": {
                "cached_tokens": report.get("cachedContentTokenCount"),
                "audio_tokens": _audio(report.get("promptTokensDetails")),
            },
            "completion_tokens_details": {
                "reasoning_tokens": thoughts,
                "audio_tokens": _audio(report.get("candidatesTokensDetails")),
            },
        }
    )


def _sum(prompt: Any, more: Any) -> Any:
    return prompt + more if type(prompt) is int and type(more) is int and 0 < more <= MAX_TOKENS else prompt


def _count(report: Json, name: str) -> int:
    value: Any = report.get(name)
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else 0


def _audio(details: Any) -> int:
    return sum(_count(each, "tokenCount") for each in dicts_of(details) if each.get("modality") == "AUDIO")


def is_answer(answer: Json) -> bool:
    """Whether a body is an answer. A blocked prompt has no candidates; a malformed call is none."""
    candidates = dicts_of(answer.get("candidates"))
    if answer.get("error") or any(is_failed(each) for each in candidates):
        return False
    return bool(candidates) or is_blocked(answer)


def read_answer(answer: Json) -> ReadAnswer | None:
    """A complete answer; None for a truncated, refused or filtered one."""
    candidates = dicts_of(answer.get("candidates"))
    if not candidates or any(each.get("finishReason") != "STOP" for each in candidates):
        return None
    parts = [part for each in candidates for part in dicts_of(dict_of(each.get("content")).get("parts"))]
    return ReadAnswer("\n".join(text_parts(answer)), any("functionCall" in part for part in parts))


def tool_uses(answer: Json) -> dict[str, int]:
    """The uses of provider-run tools. Gemini 3 bills each query of a search, older models each answer that searched."""
    found: dict[str, int] = {}
    for candidate in dicts_of(answer.get("candidates")):
        grounding = dict_of(candidate.get("groundingMetadata"))
        queries = [each for each in list_of(grounding.get("webSearchQueries")) if each]
        chunks = dicts_of(grounding.get("groundingChunks"))
        if queries or any("web" in each for each in chunks):
            by_query = not re.match(r"(?:models/)?gemini-[12]\b", text_of(answer.get("modelVersion")))
            found["google_search"] = found.get("google_search", 0) + (max(len(queries), 1) if by_query else 1)
        if any("maps" in each for each in chunks):
            found["google_maps"] = found.get("google_maps", 0) + 1
        parts = dicts_of(dict_of(candidate.get("content")).get("parts"))
        if runs := sum("executableCode" in part for part in parts):
            found["google_code_execution"] = found.get("google_code_execution", 0) + runs
        if urls := len(dicts_of(dict_of(candidate.get("urlContextMetadata")).get("urlMetadata"))):
            found["url_context"] = found.get("url_context", 0) + urls
    return found


def error_body(message: str, _kind: str, code: str | None, param: str | None, status: int) -> bytes:
    """An error in Google's shape: https://cloud.google.com/apis/design/errors"""
    name = _STATUS.get(status, "INTERNAL" if status >= 500 else "INVALID_ARGUMENT")
    error: Json = {"code": status, "message": message, "status": name}
    details: list[Json] = []
    if code:
        kind = "type.googleapis.com/google.rpc.ErrorInfo"
        details.append({"@type": kind, "reason": code.upper(), "domain": "overnight"})
    if param:
        violation = {"field": param, "description": message}
        details.append({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]})
    if details:
        error["details"] = details
    return _encode({"error": error})


def error_event(body: bytes) -> bytes:
    return b"data: %b\r\n\r\n" % body


def estimate_input_tokens(body: Json) -> int:
    """Estimate the input tokens of a request: a quarter of its characters, plus a fixed number per file. At least 1."""
    characters = files = 0
    left: list[Any] = [body.get("systemInstruction"), body.get("tools"), body.get("contents")]
    while left:  # iterative, so that deeply nested input cannot exceed the recursion limit
        each: Any = left.pop()
        if isinstance(each, str):
            characters += len(each)
        elif isinstance(each, dict):
            for name, inner in cast("Json", each).items():
                if name in ("inlineData", "fileData"):
                    files += 1
                elif name != "thoughtSignature":
                    characters += len(name)
                    left.append(inner)
        elif isinstance(each, list):
            left += cast("list[Any]", each)
        elif each is not None:
            characters += 4
    return max(1, -(-characters // 4) + files * MEDIA_TOKENS)
