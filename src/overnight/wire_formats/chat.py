"""OpenAI chat completions: the format of most agent runtimes and providers."""

from __future__ import annotations

from typing import Annotated, Any, cast

import msgspec

from overnight.domain.json_text import encode_json
from overnight.ledger import address_chain
from overnight.pricing.usage import Usage, openai_usage

from .chat_stream import Assembly, stream_events
from .chat_whole import decode_answer
from .contract import Json
from .dialects import DEFAULT_DIALECT, Dialect
from .request import (
    NOT_FINGERPRINTED,
    REFERENCED_FILE_BYTES,
    TOOLS_BYTES,
    Request,
    canonical,
    invalid_body,
    tools_of,
    unescaped_for_search,
    without_cache_markers,
)
from .sse import encode_event

__all__ = [
    "Assembly",
    "decode_answer",
    "encode",
    "error_body",
    "error_event",
    "is_answer",
    "read",
    "stream_events",
    "usage_of",
]

Positive = Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]

_POINTERS = (b'"image_url"', b'"file_id"', b'"file_url"', b'"file_data"', b'"input_audio"')
_NOT_PARAMETERS = frozenset({"messages", "tools", "stream", "stream_options"})
_NEUTRAL = _NOT_PARAMETERS | {"model"}
CAP_FIELDS = ("max_tokens", "max_completion_tokens")


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Known(msgspec.Struct):
    """The fields of the body that the gateway reads."""

    messages: Annotated[list[Json], msgspec.Meta(min_length=1)]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Annotated[str, msgspec.Meta(max_length=64)] | None = None


_known = msgspec.json.Decoder(_Known).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_any = msgspec.json.Decoder().decode
_WITH_USAGE = msgspec.Raw(b'{"include_usage":true}')
_EXAMPLE = 'a list of chat messages, such as [{"role": "user", "content": "hello"}]'


def read(body: bytes) -> Request:
    """Decode a request body.

    Raises:
        InvalidBody: a field is invalid; the error names the field and the expected value.
    """
    try:
        known = _known(body)
        fields = _fields(body)
        params = {name: _any(raw) for name, raw in fields.items() if name not in _NOT_PARAMETERS}
        messages = (
            cast("list[Json]", without_cache_markers(known.messages))
            if body.find(b"cache_control") >= 0
            else known.messages
        )
        links = address_chain([canonical(message) for message in messages])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_body(
            error, conversation_field="messages", example=_EXAMPLE, api_name="chat completions"
        ) from None
    tools, tools_sha256 = tools_of(fields.get("tools"))
    stable = (
        b""
        if fields.keys() <= _NEUTRAL
        else canonical({name: value for name, value in params.items() if name not in NOT_FINGERPRINTED})
    )
    completion = known.max_completion_tokens is not None
    unescaped = unescaped_for_search(body)
    references_found = sum(map(unescaped.count, _POINTERS))
    return Request(
        format="chat",
        fields=fields,
        model=known.model or "",
        links=tuple(links),
        tools=tools,
        tools_sha256=tools_sha256,
        params=canonical(params),
        stable_params=stable,
        stream=bool(known.stream),
        prompt_bytes=len(body) + references_found * REFERENCED_FILE_BYTES + (TOOLS_BYTES if tools else 0),
        cap=known.max_completion_tokens if completion else known.max_tokens,
        cap_field="max_completion_tokens" if completion else "max_tokens",
        wants_usage=bool(known.stream_options and known.stream_options.include_usage),
        choices=known.n or 1,
        metadata=known.metadata,
        price_context=(("service_tier", known.service_tier),) if known.service_tier else (),
        open_ended=references_found > 0,
    )


def passthrough_body(request: Request, model: msgspec.Raw, tokens: int, dialect: Dialect = DEFAULT_DIALECT) -> bytes:
    """The client's body with the target's model, the output limit and a request for usage."""
    fields = {**request.fields, "model": model}
    for name in CAP_FIELDS:
        fields.pop(name, None)
    fields[dialect.cap_field or request.cap_field or "max_tokens"] = msgspec.Raw(b"%d" % tokens)
    if request.stream:
        fields.pop("stream_options", None)
        if dialect.stream_options:
            fields["stream_options"] = _WITH_USAGE
    return _encode(fields)


_BUDGETS = (("reasoning", "max_tokens"), ("thinking", "budget_tokens"))
_MIN_BUDGET_TOKENS = 1024


def limit_reasoning_budgets(fields: dict[str, msgspec.Raw], tokens: int) -> list[str]:
    """Reduce reasoning budgets below the output limit, in place. The limit includes reasoning, so a target rejects
    larger budgets.

    Returns: the names of changed fields.
    Raises:
        msgspec.DecodeError, RecursionError: a field cannot be decoded.
    """
    changed: list[str] = []
    for name, field in _BUDGETS:
        given = _any(fields[name]) if name in fields else None
        budget = cast("Json", given).get(field) if isinstance(given, dict) else None
        if type(budget) is int and budget >= tokens:
            changed.append(f"{name}.{field}")
            if tokens > _MIN_BUDGET_TOKENS:
                fitting = {**cast("Json", given), field: max(tokens // 2, _MIN_BUDGET_TOKENS)}
                fields[name] = msgspec.Raw(_encode(fitting))
            else:
                del fields[name]
    return changed


def usage_of(answer: Json) -> Usage | None:
    return openai_usage(answer.get("usage"))


def is_answer(answer: Json) -> bool:
    return bool(answer.get("choices")) and not answer.get("error")


def encode(event: Json) -> bytes:
    return b"data: %b\n\n" % encode_json(event)


def error_body(message: str, kind: str, code: str | None, param: str | None, _status: int) -> bytes:
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_event(body: bytes) -> bytes:
    return encode_event(body)


def adapt_body(body: Json, tokens: int, dialect: Dialect, *, stream: bool) -> None:
    """Adapt a body that was translated to chat: the target's field for the output limit, and a request for usage."""
    for name in CAP_FIELDS:
        body.pop(name, None)
    body[dialect.cap_field or "max_tokens"] = tokens
    body.pop("stream_options", None)
    if stream:
        body["stream"] = True
        if dialect.stream_options:
            body["stream_options"] = {"include_usage": True}


def usage_json(usage: Usage) -> Json:
    """Usage in the chat format."""
    total = usage.input_tokens + usage.output_tokens
    return {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens, "total_tokens": total}
