"""Anthropic messages: the format of Claude, its SDKs and its agents."""

from __future__ import annotations

import re
from typing import Annotated, Any, cast

import msgspec

from overnight.ledger import address_chain
from overnight.pricing.provider_tools import hosted
from overnight.pricing.usage import Usage, anthropic_usage

from .contract import Json
from .messages_stream import (
    Assembly,
    decoded,
    encode,
    taken_apart,
)
from .request import (
    NOT_FINGERPRINTED,
    POINTED_TO_BYTES,
    Request,
    canonical,
    invalid_body,
    spelled_out,
    tools_of,
    unmarked,
)
from .sse import encode_event

__all__ = [
    "HEADERS",
    "PASSES",
    "Assembly",
    "counted",
    "decoded",
    "encode",
    "error_body",
    "error_event",
    "is_answer",
    "read",
    "taken_apart",
    "usage_of",
]

TOOLS_BYTES = 1024
"""Counted for tools: the provider puts instructions of its own before them, up to 804 tokens."""
HEADERS = ((b"anthropic-version", b"2023-06-01"),)
"""For what is translated. Later versions refuse `temperature` for every model; in this one, those that take it may be told."""
PASSES = frozenset({b"anthropic-version", b"anthropic-beta"})
PICTURE_TOKENS = 1_600
"""Of a picture, in an estimate: what the largest that is not scaled down comes to."""

HOSTED_TOOL_BYTES = 65_536
"""Counted for each tool that the provider runs: what it finds is billed as input."""

_BY_URL = re.compile(rb'"type"\s*:\s*"url"').findall
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
    """The parts of the body that the gateway itself looks at."""

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
    """Raises InvalidBody, naming the part and what it should be. The system prompt is recorded as the first message."""
    try:
        known = _known(body)
        fields = _fields(body)
        params = {name: _any(raw) for name, raw in fields.items() if name not in _NOT_PARAMETERS}
        links = address_chain([canonical(message) for message in _said(known, marked=b"cache_control" in body)])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_body(error, says="messages", example=_EXAMPLE, called="Anthropic messages") from None
    tools, tools_sha256 = tools_of(fields.get("tools"))
    stable = (
        b""
        if fields.keys() <= _NOT_PARAMETERS | _ONLY_MODEL
        else canonical({name: value for name, value in params.items() if name not in _VOLATILE})
    )
    spelled = spelled_out(body)
    pointed = spelled.count(b'"file_id"') + (len(_BY_URL(spelled)) if b'"url"' in spelled else 0)
    run_there = _hosted(tools) if any(mark in spelled for mark in _MARKS) else []
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
        + pointed * POINTED_TO_BYTES
        + len(run_there) * HOSTED_TOOL_BYTES
        + (TOOLS_BYTES if tools else 0),
        cap=known.max_tokens,
        cap_field="max_tokens",
        wants_usage=True,
        metadata=known.metadata,
        price_context=(("speed", known.speed),) if known.speed else (),
        hosted=hosted(run_there),
        open_ended=pointed > 0 or bool(run_there),
    )


def _said(known: _Known, *, marked: bool) -> list[Json]:
    messages = known.messages
    if known.system:
        messages = [{"role": "system", "content": known.system}, *messages]
    return cast("list[Json]", unmarked(messages)) if marked else messages


def _hosted(tools: bytes | None) -> list[Json]:
    """Those that the provider runs itself."""
    given: list[Json] = _any(tools) if tools else []
    return [tool for tool in given if str(tool.get("type")).startswith(_HOSTED)]


def usage_of(answer: Json) -> Usage | None:
    return anthropic_usage(answer.get("usage"))


def is_answer(answer: Json) -> bool:
    return isinstance(answer.get("content"), list) and answer.get("type", "message") == "message"


def error_body(message: str, _kind: str, code: str | None, param: str | None, status: int) -> bytes:
    """The type is Anthropic's for the status; our code stands where its SDKs look for one."""
    kind = _ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    error: Json = {"type": kind, "message": message}
    if code or param:
        error["details"] = {"error_code": code, "param": param}
    return _encode({"type": "error", "error": error})


def error_event(body: bytes) -> bytes:
    return encode_event(body, "error")


def counted(body: Json) -> int:
    """About how many tokens the request's input comes to: a quarter of its characters, and a flat number for each picture or
    file. At least 1."""
    asked: list[Any] = [body.get("system") or "", body.get("tools") or [], body.get("messages") or []]
    characters, pictures = _sizes(asked)
    return max(1, -(-characters // 4) + pictures * PICTURE_TOKENS)


def _sizes(value: Any) -> tuple[int, int]:
    """(characters of text and of structure, pictures and files)."""
    characters = pictures = 0
    left = [value]
    while left:  # not by recursion: what is nested deep is read all the same
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
