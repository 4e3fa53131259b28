"""OpenAI embeddings. All inputs of a request are one link of its chain, since they form no conversation. No streaming."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from overnight.ledger import address_chain
from overnight.pricing.usage import Cost, Usage, openai_usage

from .chat import encode, error_body, error_event
from .contract import Json
from .request import (
    NOT_FINGERPRINTED,
    InvalidBody,
    Request,
    canonical,
    invalid_body,
)

__all__ = ["Assembly", "encode", "error_body", "error_event", "is_answer", "read", "stream_events", "usage_of"]

MAX_INPUTS = 2048
_NOT_PARAMETERS = frozenset({"input"})
_EXAMPLE = 'a string, or a list of strings such as ["hello", "world"]'


class _Known(msgspec.Struct):
    """The fields of the body that the gateway reads. Inputs are strings or lists of tokens."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    metadata: Json | None = None
    stream: bool | None = None


_known = msgspec.json.Decoder(_Known).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_any = msgspec.json.Decoder().decode


def read(body: bytes) -> Request:
    """Decode a request body.

    Raises:
        InvalidBody: a field is invalid; the error names the field and the expected value.
    """
    try:
        known = _known(body)
        fields = _fields(body)
        params = {name: _any(raw) for name, raw in fields.items() if name not in _NOT_PARAMETERS}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_body(error, conversation_field="input", example=_EXAMPLE, api_name="embeddings") from None
    _check(known)
    return Request(
        format="embeddings",
        fields=fields,
        model=known.model or "",
        links=tuple(address_chain([canonical(known.input)])),
        tools=None,
        tools_sha256="",
        params=canonical(params),
        stable_params=canonical({name: value for name, value in params.items() if name not in NOT_FINGERPRINTED}),
        stream=False,
        prompt_bytes=len(body),
        metadata=known.metadata,
    )


def _check(known: _Known) -> None:
    inputs = known.input
    if known.stream:
        raise InvalidBody("stream: embeddings do not support streaming; remove it", "stream")
    if not inputs:
        raise InvalidBody(f"`input` is empty: send {_EXAMPLE}", "input")
    if isinstance(inputs, str):
        return
    if len({type(each) for each in inputs}) > 1:
        raise InvalidBody("input: a list must not mix strings and tokens", "input")
    if isinstance(inputs[0], int):
        return  # one string, as tokens
    if len(inputs) > MAX_INPUTS:
        raise InvalidBody(f"input: {len(inputs):,} strings in one request; send at most {MAX_INPUTS:,}", "input")
    if not all(inputs):
        raise InvalidBody(
            f"input[{inputs.index('' if isinstance(inputs[0], str) else [])}] is empty; remove it", "input"
        )


def usage_of(answer: Json) -> Usage | None:
    """The reported usage. Some servers report only the total."""
    usage: Json = answer.get("usage") or {}
    return openai_usage(
        {"prompt_tokens": usage.get("prompt_tokens", usage.get("total_tokens")), "completion_tokens": 0}
    )


def is_answer(answer: Json) -> bool:
    return bool(answer.get("data")) and not answer.get("error")


class Assembly:
    """A placeholder that satisfies the contract; `read` rejects requests for a stream."""

    characters = 0
    usage: Json | None = None
    is_complete = has_output = is_ended = is_odd = False

    def take(self, event: Json) -> bool:
        raise ValueError(f"embeddings do not support streaming, but an event arrived: {sorted(event)[:5]}")

    def closing_events(self) -> list[Json]:
        return []

    def completion(self) -> bytes:
        raise ValueError("embeddings do not support streaming")


def stream_events(body: bytes, cost_usd: Cost | None) -> Iterator[bytes]:  # noqa: ARG001 - the form of all formats
    """The answer unchanged, since embeddings do not support streaming."""
    yield body
