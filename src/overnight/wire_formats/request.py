"""The request of a model call in a neutral form: the recorded parts, and the bounds of its cost.

The fields stay JSON bytes, so a body that is passed through keeps the client's messages unchanged.
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

REFERENCED_FILE_BYTES = 16_384
"""Added to the prompt size for each image or file that a request references or contains: its tokens can exceed its bytes."""

MAX_CACHED_TOOLS_BYTES = 64 * 1024
TOOLS_BYTES = 512
"""Added to the prompt size if tools are present: some providers insert instructions, which are billed."""

NOT_FINGERPRINTED = frozenset({"model", "metadata", "user", "safety_identifier", "prompt_cache_key", "service_tier"})


class InvalidBody(BadInput):
    """A request body is invalid. `param` names the invalid field, if known."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Request(msgspec.Struct, frozen=True):
    """A decoded request. It is immutable, so that each attempt is prepared from the same request.

    - `format`: the name of the wire format; `fields`: the top-level fields of the client's body, read-only.
    - `links`, `tools`, `params`: the recorded parts; `stable_params`: the parameters that are part of the
    fingerprint.
    - `cap`: the client's output limit in tokens; `choices`: the number of requested answers.
    - `prompt_bytes`: the upper bound of the input.
    - `pass_headers`: client headers that a target of the same format receives.
    - `left_out`: fields that were removed because a target rejected them.
    - `hosted`: tools that the provider executes.
    - `open_ended`: whether the input may exceed its bytes, through referenced files or results of hosted tools.
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
        """A copy whose body lacks these `metadata` names. They are options of the gateway, not of the provider."""
        left = {name: value for name, value in (self.metadata or {}).items() if name not in names}
        fields = {name: value for name, value in self.fields.items() if name != "metadata"}
        if left:
            fields["metadata"] = msgspec.Raw(_encode(left))
        return msgspec.structs.replace(self, fields=fields)

    def fingerprint(self, task: str | None) -> str:
        """The fingerprint that identifies a repeated request of an external runtime.

        Streaming options, metadata and cache markers are excluded.
        """
        head = self.links[-1].node if self.links else b""
        # Existing ledgers contain chat fingerprints without the name of the format.
        form = "" if self.format == "chat" else f"{self.format}\n"
        named = f"{form}{task or ''}\n{self.model}\n{self.tools_sha256}\n".encode()
        return hashlib.sha256(named + head + self.stable_params).hexdigest()


def unescaped_for_search(body: bytes) -> bytes:
    """Replace JSON escapes of ASCII characters, so that names can be searched for.

    The result cannot be decoded: quotes within strings become apostrophes.
    """
    if body.find(b"\\u00") < 0:  # `in` would first try the bytes as an integer, and raise and catch a TypeError
        return body
    return body.replace(b"\\u0022", b"'").decode("raw_unicode_escape").encode("latin-1", "replace")


_encode = msgspec.json.Encoder().encode
canonical = msgspec.json.Encoder(order="deterministic").encode
_tools = msgspec.json.Decoder(list[dict[str, Any]] | None).decode


def tools_of(raw: msgspec.Raw | None) -> tuple[bytes | None, str]:
    """The tools as canonical JSON, and the hash of it. Raises InvalidBody."""
    if raw is None:
        return None, ""
    body = bytes(raw)
    try:
        return _tool_set(body) if len(body) <= MAX_CACHED_TOOLS_BYTES else _tool_set.__wrapped__(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidBody("tools: must be a list of objects; see the reference of the API you call", "tools") from None


@lru_cache(maxsize=256)
def _tool_set(raw: bytes) -> tuple[bytes | None, str]:
    # An agent sends the same tools with every turn, and they are often larger than the messages.
    tools = _tools(raw)
    if not tools:
        return None, ""
    text = canonical(without_cache_markers(tools) if b"cache_control" in raw else tools)
    return text, hashlib.sha256(text).hexdigest()


def without_cache_markers(value: Any) -> Any:
    """Remove cache markers, which control the provider's cache and carry no content."""
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value)
        return {key: without_cache_markers(each) for key, each in entries.items() if key != "cache_control"}
    if isinstance(value, list):
        return [without_cache_markers(each) for each in cast("list[Any]", value)]
    return value


def invalid_body(error: Exception, *, conversation_field: str, example: str, api_name: str) -> InvalidBody:
    """The error for a body that could not be decoded.

    Args:
        error: the exception of the decoder.
        conversation_field: the field that holds the conversation.
        example: a valid value of that field.
        api_name: the name of the API.
    """
    if isinstance(error, UnicodeDecodeError):
        return InvalidBody("the body is not UTF-8 text; send JSON encoded as UTF-8")
    if isinstance(error, RecursionError):
        return InvalidBody(f"the body is nested too deep; send plain {api_name}")
    if not isinstance(error, msgspec.ValidationError):
        return InvalidBody(f"the body is not valid JSON: {error}; send one JSON object")
    problem, _, place = str(error).partition(" - at `$")
    param = place.rstrip("`").lstrip(".") or None
    if param is None and f"missing required field `{conversation_field}`" in problem:
        return InvalidBody(f"`{conversation_field}` is missing: send {example}", conversation_field)
    if param == conversation_field and "length" in problem:
        return InvalidBody(f"`{conversation_field}` is empty: send {example}", conversation_field)
    return InvalidBody(
        f"{param or 'the body'}: {problem[:1].lower()}{problem[1:]}; see the {api_name} reference", param
    )
