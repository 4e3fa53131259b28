"""The contract of a wire format: pure codecs, with no way to a provider, to money or to the ledger.

A *client format* is what the caller speaks, a *spoken format* what a target speaks. Where they are the same, bytes are
passed through. Where they differ, a translation module `X_over_Y` (client X, target Y) has `request`, `answer` and `Pieces`;
`answer` and `Pieces` go back, from Y to X. Whatever cannot be carried over is named in `Losses`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import msgspec

from overnight.pricing.usage import Cost, Usage

from .request import InvalidBody, Request

__all__ = [
    "Asked",
    "Assembly",
    "Codec",
    "InvalidBody",
    "Json",
    "Losses",
    "Pieces",
    "Prepared",
    "Request",
    "Translation",
]

Json = dict[str, Any]


class Losses(list[str]):
    """Names of what could not be carried over, such as `messages[2].content[0].cache_control` or `top_k`."""

    __slots__ = ()


class Asked(msgspec.Struct, frozen=True):
    """What an answer must agree with: the id it carries (item ids are derived from it), the model as the client is told it,
    the client's own body, and when it was asked (Unix seconds)."""

    answer_id: str
    model: str
    body: Json
    created_at: int


class Assembly(Protocol):
    """The answer of a stream, put together from its events, in one spoken format.

    `characters` counts what was received; `usage` is the last one told; `whole`: has it come to its end?
    """

    @property
    def characters(self) -> int: ...
    @property
    def usage(self) -> Json | None: ...
    @property
    def whole(self) -> bool: ...

    def take(self, event: Json) -> bool:
        """Put an event in its place. True when it is *telling*: it completes a tool call or has the finish reason.

        Raises TypeError, ValueError, KeyError or AttributeError for a shape unknown.
        """
        ...

    def completion(self) -> bytes:
        """The whole answer, as if it had not been streamed."""
        ...


class Pieces(Protocol):
    """Events of the spoken format → events of the client's format."""

    def take(self, event: Json) -> list[Json]: ...

    def end(self, cost_usd: Cost | None, usage: Usage) -> list[Json]:
        """What closes the stream, once the answer is durable. Of chat, usage is told only with a cost."""
        ...


class Codec(NamedTuple):
    """One wire format: the functions of a module `formats/F.py`.

    `path`: where a target takes it. `last`: the types of the events that end a stream (chat has an end mark instead).
    `cap_field`: the name of the output cap in a body; None where nothing is capped. `streams`: may an answer be streamed?
    `decoded`: a whole answer as a translation is given it. `headers`: what every target of the format is told. `passes`: which of
    the client's headers (lower case) go to a target of the same format.
    """

    name: str
    path: str
    last: frozenset[str]
    cap_field: str | None
    streams: bool
    read: Callable[[bytes], Request]
    usage_of: Callable[[Json], Usage | None]
    is_answer: Callable[[Json], bool]
    assembly: Callable[[], Assembly]
    taken_apart: Callable[[bytes, float | None], Iterator[bytes]]
    encode: Callable[[Json], bytes]
    error_body: Callable[[str, str, str | None, str | None, int], bytes]
    error_event: Callable[[bytes], bytes]
    decoded: Callable[[bytes], Any] = msgspec.json.decode
    headers: tuple[tuple[bytes, bytes], ...] = ()
    passes: frozenset[bytes] = frozenset()


class Translation(NamedTuple):
    """The functions of a module `formats/X_over_Y.py`. `request` gets the client's decoded body, with the output cap under the
    client's own name for it, and the target's name of the model."""

    request: Callable[[Json, Losses], Json]
    answer: Callable[[Json, Asked], Json]
    pieces: Callable[[Asked], Pieces]


class Prepared(msgspec.Struct, frozen=True):
    """What goes to a target: `body` to `path`, with `headers` beside the target's own."""

    path: str
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    losses: tuple[str, ...] = ()
