"""A chat-completions request, read once: what is recorded of it, what it may cost, and the body that goes upstream.

Prompts stay bytes: the body sent on keeps the client's own messages, whatever was changed around them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Any, cast

import msgspec

from overnight.domain import BadInput
from overnight.ledger import Link, address_chain

from .dialects import USUAL, Dialect
from .prices import Context

Message = dict[str, Any]
Positive = Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
POINTED_TO_BYTES = 16_384
"""Counted for each picture or file that a request only points to: it costs tokens that its bytes here do not show."""

LARGEST_KEPT_TOOLS = 64 * 1024
TOOLS_BYTES = 512
"""Counted for tools: some providers put instructions of their own before them, which are billed."""

_POINTERS = (b'"image_url"', b'"file_id"', b'"file_url"', b'"input_audio"')
_NOT_PARAMETERS = frozenset({"messages", "tools", "stream", "stream_options"})
_NOT_FINGERPRINTED = frozenset({"model", "metadata", "user", "safety_identifier", "prompt_cache_key", "service_tier"})


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Known(msgspec.Struct):
    """The parts of the body that the gateway itself looks at."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Annotated[str, msgspec.Meta(max_length=64)] | None = None


class InvalidBody(BadInput):
    """`param` names the part of the body that is off, where it is known."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ChatRequest(msgspec.Struct):
    """`fields` is the whole body by name. `cap` is the client's own limit of output tokens; `choices` is `n`."""

    fields: dict[str, msgspec.Raw]
    model: str
    links: list[Link]
    tools: bytes | None
    tools_sha256: str
    params: bytes
    stable_params: bytes
    stream: bool
    wants_usage: bool
    cap: int | None
    cap_field: str
    choices: int
    prompt_bytes: int
    metadata: dict[str, Any] | None
    price_context: Context

    def upstream_body(self, model: msgspec.Raw, tokens: int, dialect: Dialect = USUAL) -> bytes:
        """The body for one target: the client's, with the target's model, the output cap, and usage asked for."""
        fields = self.fields
        fields["model"] = model
        for name in _CAP_FIELDS:
            fields.pop(name, None)
        fields[dialect.cap_field or self.cap_field] = msgspec.Raw(b"%d" % tokens)
        if self.stream:
            fields.pop("stream_options", None)
            if dialect.stream_options:
                fields["stream_options"] = _WITH_USAGE
        return _encode(fields)

    def forget_metadata(self, names: Iterable[str]) -> None:
        """Leave what was meant for the gateway out of the body that goes upstream."""
        left = {name: value for name, value in (self.metadata or {}).items() if name not in names}
        if left:
            self.fields["metadata"] = msgspec.Raw(_encode(left))
        else:
            self.fields.pop("metadata", None)

    def fingerprint(self, task: str | None) -> str:
        """What a foreign runtime's repeated request is recognised by; without stream flags, metadata and cache markers."""
        head = self.links[-1].node if self.links else b""
        named = f"{task or ''}\n{self.model}\n{self.tools_sha256}\n".encode()
        return hashlib.sha256(named + head + self.stable_params).hexdigest()


_known = msgspec.json.Decoder(_Known).decode
_tools = msgspec.json.Decoder(list[dict[str, Any]] | None).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_canonical = msgspec.json.Encoder(order="deterministic").encode
_any = msgspec.json.Decoder().decode
_WITH_USAGE = msgspec.Raw(b'{"include_usage":true}')
_CAP_FIELDS = ("max_tokens", "max_completion_tokens")
_ONLY_MODEL = frozenset({"model"})


def read_request(body: bytes) -> ChatRequest:
    """Raises InvalidBody, naming the part and what it should be."""
    try:
        known = _known(body)
        fields = _fields(body)
        params = {name: _any(raw) for name, raw in fields.items() if name not in _NOT_PARAMETERS}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(error) from None
    tools, tools_sha256 = _tools_of(fields.get("tools"))
    marked = b"cache_control" in body
    messages = known.messages
    if marked:
        messages = cast("list[Message]", _unmarked(messages))
    stream = bool(known.stream)
    wants_usage = bool(known.stream_options and known.stream_options.include_usage)
    stable = (
        b""
        if fields.keys() <= _NOT_PARAMETERS | _ONLY_MODEL
        else _canonical({name: value for name, value in params.items() if name not in _NOT_FINGERPRINTED})
    )
    completion = known.max_completion_tokens is not None
    pointed = sum(body.count(mark) for mark in _POINTERS)
    return ChatRequest(
        fields=fields,
        model=known.model or "",
        links=address_chain([_canonical(message) for message in messages]),
        tools=tools,
        tools_sha256=tools_sha256,
        params=_canonical(params),
        stable_params=stable,
        stream=stream,
        wants_usage=wants_usage,
        cap=known.max_completion_tokens if completion else known.max_tokens,
        cap_field="max_completion_tokens" if completion else "max_tokens",
        choices=known.n or 1,
        prompt_bytes=len(body) + pointed * POINTED_TO_BYTES + (TOOLS_BYTES if tools else 0),
        metadata=known.metadata,
        price_context=(("service_tier", known.service_tier),) if known.service_tier else (),
    )


def _tools_of(raw: msgspec.Raw | None) -> tuple[bytes | None, str]:
    """The tools in canonical form, and their hash. Raises InvalidBody."""
    if raw is None:
        return None, ""
    body = bytes(raw)
    try:
        return _tool_set(body) if len(body) <= LARGEST_KEPT_TOOLS else _tool_set.__wrapped__(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidBody("tools: must be a list of objects; see the chat completions reference", "tools") from None


@lru_cache(maxsize=256)
def _tool_set(raw: bytes) -> tuple[bytes | None, str]:
    # An agent sends the same tools with every turn, and they are often larger than what is said.
    tools = _tools(raw)
    if not tools:
        return None, ""
    canonical = _canonical(_unmarked(tools) if b"cache_control" in raw else tools)
    return canonical, hashlib.sha256(canonical).hexdigest()


def _unmarked(value: Any) -> Any:
    """Without cache markers: they steer the provider's cache and say nothing."""
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value)
        return {key: _unmarked(each) for key, each in entries.items() if key != "cache_control"}
    if isinstance(value, list):
        return [_unmarked(each) for each in cast("list[Any]", value)]
    return value


def _invalid(error: Exception) -> InvalidBody:
    if isinstance(error, UnicodeDecodeError):
        return InvalidBody("the body is not UTF-8 text; send JSON encoded as UTF-8")
    if isinstance(error, RecursionError):
        return InvalidBody("the body is nested too deep; send plain chat messages")
    if not isinstance(error, msgspec.ValidationError):
        return InvalidBody(f"the body is not valid JSON: {error}; send one JSON object")
    problem, _, place = str(error).partition(" - at `$")
    param = place.rstrip("`").lstrip(".") or None
    if param is None and "missing required field `messages`" in problem:
        param, problem = "messages", "`messages` is missing: send a list of chat messages, such as "
        problem += '[{"role": "user", "content": "hello"}]'
    elif param == "messages" and "length" in problem:
        problem = "`messages` is empty: send at least one message"
    else:
        problem = f"{param or 'the body'}: {problem[:1].lower()}{problem[1:]}; see the chat completions reference"
    return InvalidBody(problem, param)
