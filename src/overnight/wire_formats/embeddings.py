"""OpenAI embeddings. The inputs of a request are one link of its chain: they are no conversation. Nothing is streamed."""

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

__all__ = ["Assembly", "encode", "error_body", "error_event", "is_answer", "read", "taken_apart", "usage_of"]

MOST_INPUTS = 2048
_NOT_PARAMETERS = frozenset({"input"})
_SAYS = 'a text, or a list of texts such as ["hello", "world"]'


class _Known(msgspec.Struct):
    """The parts of the body that the gateway itself looks at. Inputs are texts, or texts as tokens."""

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
    """Raises InvalidBody, naming the part and what it should be."""
    try:
        known = _known(body)
        fields = _fields(body)
        params = {name: _any(raw) for name, raw in fields.items() if name not in _NOT_PARAMETERS}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_body(error, says="input", example=_SAYS, called="embeddings") from None
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
    said = known.input
    if known.stream:
        raise InvalidBody("stream: embeddings are not streamed; leave it out", "stream")
    if not said:
        raise InvalidBody(f"`input` is empty: send {_SAYS}", "input")
    if isinstance(said, str):
        return
    if len({type(each) for each in said}) > 1:
        raise InvalidBody("input: texts and tokens cannot stand in one list", "input")
    if isinstance(said[0], int):
        return  # one text, as tokens
    if len(said) > MOST_INPUTS:
        raise InvalidBody(f"input: {len(said):,} texts at once; send at most {MOST_INPUTS:,}", "input")
    if not all(said):
        raise InvalidBody(
            f"input[{said.index('' if isinstance(said[0], str) else [])}] is empty; leave it out", "input"
        )


def usage_of(answer: Json) -> Usage | None:
    """Some servers tell the total only."""
    usage: Json = answer.get("usage") or {}
    return openai_usage(
        {"prompt_tokens": usage.get("prompt_tokens", usage.get("total_tokens")), "completion_tokens": 0}
    )


def is_answer(answer: Json) -> bool:
    return bool(answer.get("data")) and not answer.get("error")


class Assembly:
    """There are no streams to put together; nobody asks for one, because `read` refuses it."""

    characters = 0
    usage: Json | None = None
    whole = False

    def take(self, event: Json) -> bool:
        raise ValueError(f"embeddings are not streamed, yet a piece came: {sorted(event)[:5]}")

    def completion(self) -> bytes:
        raise ValueError("embeddings are not streamed")


def taken_apart(body: bytes, cost_usd: Cost | None) -> Iterator[bytes]:  # noqa: ARG001 - the form of all formats
    """The answer as it is: embeddings are not streamed."""
    yield body
