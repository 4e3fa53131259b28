"""OpenAI chat completions: the format that most runtimes and providers speak."""

from __future__ import annotations

from typing import Annotated, Any, cast

import msgspec

from overnight.ledger import address_chain
from overnight.pricing.usage import Usage, openai_usage

from .chat_stream import Assembly, taken_apart
from .contract import Json
from .dialects import USUAL, Dialect
from .request import (
    NOT_FINGERPRINTED,
    POINTED_TO_BYTES,
    TOOLS_BYTES,
    Request,
    canonical,
    invalid_body,
    spelled_out,
    tools_of,
    unmarked,
)
from .sse import encode_event

__all__ = ["Assembly", "encode", "error_body", "error_event", "is_answer", "read", "taken_apart", "usage_of"]

Positive = Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]

_POINTERS = (b'"image_url"', b'"file_id"', b'"file_url"', b'"input_audio"')
_NOT_PARAMETERS = frozenset({"messages", "tools", "stream", "stream_options"})
_ONLY_MODEL = frozenset({"model"})
CAP_FIELDS = ("max_tokens", "max_completion_tokens")


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Known(msgspec.Struct):
    """The parts of the body that the gateway itself looks at."""

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
    """Raises InvalidBody, naming the part and what it should be."""
    try:
        known = _known(body)
        fields = _fields(body)
        params = {name: _any(raw) for name, raw in fields.items() if name not in _NOT_PARAMETERS}
        said = cast("list[Json]", unmarked(known.messages)) if b"cache_control" in body else known.messages
        links = address_chain([canonical(message) for message in said])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_body(error, says="messages", example=_EXAMPLE, called="chat completions") from None
    tools, tools_sha256 = tools_of(fields.get("tools"))
    stable = (
        b""
        if fields.keys() <= _NOT_PARAMETERS | _ONLY_MODEL
        else canonical({name: value for name, value in params.items() if name not in NOT_FINGERPRINTED})
    )
    completion = known.max_completion_tokens is not None
    spelled = spelled_out(body)
    pointed = sum(spelled.count(mark) for mark in _POINTERS)
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
        prompt_bytes=len(body) + pointed * POINTED_TO_BYTES + (TOOLS_BYTES if tools else 0),
        cap=known.max_completion_tokens if completion else known.max_tokens,
        cap_field="max_completion_tokens" if completion else "max_tokens",
        wants_usage=bool(known.stream_options and known.stream_options.include_usage),
        choices=known.n or 1,
        metadata=known.metadata,
        price_context=(("service_tier", known.service_tier),) if known.service_tier else (),
        open_ended=pointed > 0,
    )


def passed_on(request: Request, model: msgspec.Raw, tokens: int, dialect: Dialect = USUAL) -> bytes:
    """The body for one target: the client's, with the target's model, the output cap, and usage asked for."""
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
_LEAST_BUDGET = 1024


def fit_budgets(fields: dict[str, msgspec.Raw], tokens: int) -> list[str]:
    """Make the budgets of reasoning fit a cap that is not the client's, in place: they count among the output, and a target
    refuses one that is not below its cap. Returns the names of what was changed. Raises as a decoder."""
    changed: list[str] = []
    for name, field in _BUDGETS:
        told = _any(fields[name]) if name in fields else None
        budget = cast("Json", told).get(field) if isinstance(told, dict) else None
        if type(budget) is int and budget >= tokens:
            changed.append(f"{name}.{field}")
            if tokens > _LEAST_BUDGET:
                fitting = {**cast("Json", told), field: max(tokens // 2, _LEAST_BUDGET)}
                fields[name] = msgspec.Raw(_encode(fitting))
            else:
                del fields[name]
    return changed


def usage_of(answer: Json) -> Usage | None:
    return openai_usage(answer.get("usage"))


def is_answer(answer: Json) -> bool:
    return bool(answer.get("choices")) and not answer.get("error")


def encode(event: Json) -> bytes:
    return b"data: %b\n\n" % _encode(event)


def error_body(message: str, kind: str, code: str | None, param: str | None, _status: int) -> bytes:
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_event(body: bytes) -> bytes:
    return encode_event(body)


def suit(body: Json, tokens: int, dialect: Dialect, *, stream: bool) -> None:
    """Make a body that was translated into chat fit the target: its name of the cap, and usage asked for."""
    for name in CAP_FIELDS:
        body.pop(name, None)
    body[dialect.cap_field or "max_tokens"] = tokens
    body.pop("stream_options", None)
    if stream:
        body["stream"] = True
        if dialect.stream_options:
            body["stream_options"] = {"include_usage": True}


def told(usage: Usage) -> Json:
    """Usage as chat tells it."""
    total = usage.input_tokens + usage.output_tokens
    return {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens, "total_tokens": total}
