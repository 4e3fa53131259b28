"""A request of a model call, read once, whatever its wire format: what is recorded of it and what it may cost.

Prompts stay bytes: a body passed on keeps the client's own messages, whatever was changed around them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, cast

import msgspec

from overnight.domain import BadInput
from overnight.ledger import Link
from overnight.pricing.price_book import Context
from overnight.pricing.provider_tools import Hosted

POINTED_TO_BYTES = 16_384
"""Counted for each picture or file that a request only points to: it costs tokens that its bytes here do not show."""

LARGEST_KEPT_TOOLS = 64 * 1024
TOOLS_BYTES = 512
"""Counted for tools: some providers put instructions of their own before them, which are billed."""

NOT_FINGERPRINTED = frozenset({"model", "metadata", "user", "safety_identifier", "prompt_cache_key", "service_tier"})


class InvalidBody(BadInput):
    """`param` names the part of the body that is off, where it is known."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Request(msgspec.Struct, frozen=True):
    """A request in neutral form; it never changes, so that each attempt is prepared from the same request.

    `format` is the wire format's name, `fields` the top-level fields of the client's body, read-only.

    `links`, `tools` and `params` are what is recorded; `stable_params` what of them counts for the fingerprint. `cap` is the
    client's own limit of output tokens, `choices` the number of answers asked for, `prompt_bytes` what bounds the input.
    `pass_headers` are the client's headers that a target of the same format gets too. `left_out` names what was taken out of the
    body because a target refused it. `hosted` are the tools that the provider runs itself.
    An `open_ended` request may use input that its bytes do not bound: what it points to, and what such tools bring.
    """

    format: str
    fields: Mapping[str, msgspec.Raw]
    model: str
    links: tuple[Link, ...]
    tools: bytes | None
    tools_sha256: str
    params: bytes
    stable_params: bytes
    stream: bool
    prompt_bytes: int
    cap: int | None = None
    cap_field: str | None = None
    wants_usage: bool = False
    choices: int = 1
    metadata: Mapping[str, Any] | None = None
    price_context: Context = ()
    pass_headers: tuple[tuple[bytes, bytes], ...] = ()
    left_out: tuple[str, ...] = ()
    hosted: Hosted = ()
    open_ended: bool = False

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "fields", MappingProxyType(dict(self.fields)))

    def with_pass_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> Request:
        return msgspec.structs.replace(self, pass_headers=tuple(headers))

    def without_metadata(self, names: Iterable[str]) -> Request:
        """The request whose body lacks these names of its `metadata`: they address the gateway, not the provider."""
        left = {name: value for name, value in (self.metadata or {}).items() if name not in names}
        fields = {name: value for name, value in self.fields.items() if name != "metadata"}
        if left:
            fields["metadata"] = msgspec.Raw(_encode(left))
        return msgspec.structs.replace(self, fields=fields)

    def fingerprint(self, task: str | None) -> str:
        """What a foreign runtime's repeated request is recognised by; without stream flags, metadata and cache markers."""
        head = self.links[-1].node if self.links else b""
        # Chat came first: its fingerprints stand in ledgers without the format's name.
        form = "" if self.format == "chat" else f"{self.format}\n"
        named = f"{form}{task or ''}\n{self.model}\n{self.tools_sha256}\n".encode()
        return hashlib.sha256(named + head + self.stable_params).hexdigest()


def spelled_out(body: bytes) -> bytes:
    """JSON as text to look for names in, whose characters may each be written as an escape. It can no longer be decoded: quotes
    within texts must not look like those of a name."""
    if b"\\u00" not in body:
        return body
    return body.replace(b"\\u0022", b"'").decode("raw_unicode_escape").encode("latin-1", "replace")


_encode = msgspec.json.Encoder().encode
canonical = msgspec.json.Encoder(order="deterministic").encode
_tools = msgspec.json.Decoder(list[dict[str, Any]] | None).decode


def tools_of(raw: msgspec.Raw | None) -> tuple[bytes | None, str]:
    """The tools in canonical form, and their hash. Raises InvalidBody."""
    if raw is None:
        return None, ""
    body = bytes(raw)
    try:
        return _tool_set(body) if len(body) <= LARGEST_KEPT_TOOLS else _tool_set.__wrapped__(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidBody("tools: must be a list of objects; see the reference of the API you call", "tools") from None


@lru_cache(maxsize=256)
def _tool_set(raw: bytes) -> tuple[bytes | None, str]:
    # An agent sends the same tools with every turn, and they are often larger than what is said.
    tools = _tools(raw)
    if not tools:
        return None, ""
    text = canonical(unmarked(tools) if b"cache_control" in raw else tools)
    return text, hashlib.sha256(text).hexdigest()


def unmarked(value: Any) -> Any:
    """Without cache markers: they steer the provider's cache and say nothing."""
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value)
        return {key: unmarked(each) for key, each in entries.items() if key != "cache_control"}
    if isinstance(value, list):
        return [unmarked(each) for each in cast("list[Any]", value)]
    return value


def invalid_body(error: Exception, *, says: str, example: str, called: str) -> InvalidBody:
    """The error for a body that could not be decoded. `says` is the field that holds the conversation, `example` what may stand
    there, `called` the name of the API."""
    if isinstance(error, UnicodeDecodeError):
        return InvalidBody("the body is not UTF-8 text; send JSON encoded as UTF-8")
    if isinstance(error, RecursionError):
        return InvalidBody(f"the body is nested too deep; send plain {called}")
    if not isinstance(error, msgspec.ValidationError):
        return InvalidBody(f"the body is not valid JSON: {error}; send one JSON object")
    problem, _, place = str(error).partition(" - at `$")
    param = place.rstrip("`").lstrip(".") or None
    if param is None and f"missing required field `{says}`" in problem:
        return InvalidBody(f"`{says}` is missing: send {example}", says)
    if param == says and "length" in problem:
        return InvalidBody(f"`{says}` is empty: send {example}", says)
    return InvalidBody(f"{param or 'the body'}: {problem[:1].lower()}{problem[1:]}; see the {called} reference", param)
