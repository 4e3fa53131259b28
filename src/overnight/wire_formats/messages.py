"""Anthropic messages: the format of Claude, its SDKs and its agents."""

from __future__ import annotations

import re
from typing import Annotated, Any, cast

import msgspec

from overnight.ledger import address_chain
from overnight.pricing.provider_tools import hosted_tools
from overnight.pricing.usage import Usage, anthropic_usage

from .contract import Json
from .messages_stream import (
    Assembly,
    decode_answer,
    encode,
    stream_events,
)
from .request import (
    NOT_FINGERPRINTED,
    REFERENCED_FILE_BYTES,
    Request,
    canonical,
    invalid_body,
    tools_of,
    unescaped_for_search,
    without_cache_markers,
)
from .sse import encode_event

__all__ = [
    "FORWARDED_HEADERS",
    "HEADERS",
    "Assembly",
    "decode_answer",
    "encode",
    "error_body",
    "error_event",
    "estimate_input_tokens",
    "is_answer",
    "read",
    "stream_events",
    "usage_of",
]

TOOLS_BYTES = 1024
"""Added to the prompt size if tools are present: the provider inserts instructions of up to 804 tokens."""
HEADERS = ((b"anthropic-version", b"2023-06-01"),)
"""Sent with translated requests. Later versions reject `temperature` for every model; this one accepts it for some."""
FORWARDED_HEADERS = frozenset({b"anthropic-version", b"anthropic-beta"})
IMAGE_TOKENS = 1_600
"""Estimated tokens of an image: the size of the largest one that the provider does not scale down."""

HOSTED_TOOL_BYTES = 65_536
"""Added for each tool that the provider executes: its results are billed as input."""

_FILES = re.compile(rb'"type"\s*:\s*"(?:url|base64)"').findall
_HOSTED = ("web_search_2", "web_fetch_2", "code_execution_2")
_MARKS = tuple(f'"{name}'.encode() for name in _HOSTED)
_NOT_PARAMETERS = frozenset({"messages", "system", "tools", "stream", "cache_control"})
_ONLY_MODEL = frozenset({"model"})
_VOLATILE = NOT_FINGERPRINTED | {"diagnostics"}
_EXAMPLE = 'a list of messages, such as [{"role": "user", "content": "hello"}]'
_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class _Known(msgspec.Struct):
    """The fields of the body that the gateway reads."""

    messages: Annotated[list[Json], msgspec.Meta(min_length=1, max_length=100_000)]
    system: str | list[Json] | None = None
    model: str | None = None
    stream: bool | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | None = None
    metadata: dict[str, Any] | None = None
    speed: Annotated[str, msgspec.Meta(max_length=64)] | None = None


_known = msgspec.json.Decoder(_Known).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_any = msgspec.json.Decoder().decode


def read(body: bytes) -> Request:
    """Decode a request body. The system prompt is recorded as the first message.

    Raises:
        InvalidBody: a field is invalid; the error names the field and the expected value.
    """
    try:
        known = _known(body)
        fields = _fields(body)
        params = {name: _any(raw) for name, raw in fields.items() if name not in _NOT_PARAMETERS}
        links = address_chain(
            [canonical(message) for message in _recorded_messages(known, marked=b"cache_control" in body)]
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_body(
            error, conversation_field="messages", example=_EXAMPLE, api_name="Anthropic messages"
        ) from None
    tools, tools_sha256 = tools_of(fields.get("tools"))
    stable = (
        b""
        if fields.keys() <= _NOT_PARAMETERS | _ONLY_MODEL
        else canonical({name: value for name, value in params.items() if name not in _VOLATILE})
    )
    unescaped = unescaped_for_search(body)
    references_found = unescaped.count(b'"file_id"') + len(_FILES(unescaped))
    run_there = _hosted(tools) if any(mark in unescaped for mark in _MARKS) else []
    return Request(
        format="messages",
        fields=fields,
        model=known.model or "",
        links=tuple(links),
        tools=tools,
        tools_sha256=tools_sha256,
        params=canonical(params),
        stable_params=stable,
        stream=bool(known.stream),
        prompt_bytes=len(body)
        + references_found * REFERENCED_FILE_BYTES
        + len(run_there) * HOSTED_TOOL_BYTES
        + (TOOLS_BYTES if tools else 0),
        cap=known.max_tokens,
        cap_field="max_tokens",
        wants_usage=True,
        metadata=known.metadata,
        price_context=(("speed", known.speed),) if known.speed else (),
        hosted=hosted_tools(run_there),
        open_ended=references_found > 0 or bool(run_there),
    )


def _recorded_messages(known: _Known, *, marked: bool) -> list[Json]:
    messages = known.messages
    if known.system:
        messages = [{"role": "system", "content": known.system}, *messages]
    return cast("list[Json]", without_cache_markers(messages)) if marked else messages


def _hosted(tools: bytes | None) -> list[Json]:
    """The tools that the provider executes."""
    given: list[Json] = _any(tools) if tools else []
    return [tool for tool in given if str(tool.get("type")).startswith(_HOSTED)]


def usage_of(answer: Json) -> Usage | None:
    return anthropic_usage(answer.get("usage"))


def is_answer(answer: Json) -> bool:
    return isinstance(answer.get("content"), list) and answer.get("type", "message") == "message"


def error_body(message: str, _kind: str, code: str | None, param: str | None, status: int) -> bytes:
    """An error body. Its type is Anthropic's type for the status; `code` is placed where Anthropic's SDKs read it."""
    kind = _ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    error: Json = {"type": kind, "message": message}
    if code or param:
        error["details"] = {"error_code": code, "param": param}
    return _encode({"type": "error", "error": error})


def error_event(body: bytes) -> bytes:
    return encode_event(body, "error")


def estimate_input_tokens(body: Json) -> int:
    """Estimate the input tokens of a request: a quarter of its characters, plus a fixed number per image or file. At
    least 1."""
    asked: list[Any] = [body.get("system") or "", body.get("tools") or [], body.get("messages") or []]
    characters, pictures = _sizes(asked)
    return max(1, -(-characters // 4) + pictures * IMAGE_TOKENS)


def _sizes(value: Any) -> tuple[int, int]:
    """The number of characters, and the number of images and files."""
    characters = pictures = 0
    left = [value]
    while left:  # iterative, so that deeply nested input cannot exceed the recursion limit
        each: Any = left.pop()
        if isinstance(each, str):
            characters += len(each)
        elif isinstance(each, dict):
            entries = cast("Json", each)
            source: Any = entries.get("source")
            if entries.get("type") in ("image", "document") and isinstance(source, dict) and "content" not in source:
                file = cast("Json", source)
                if file.get("type") == "text" and file.get("data"):
                    left.append(file["data"])
                else:
                    pictures += 1
                continue
            for name, inner in entries.items():
                characters += len(name)
                if name != "cache_control":
                    left.append(inner)
        elif isinstance(each, list):
            left += cast("list[Any]", each)
        else:
            characters += 4
    return characters, pictures
