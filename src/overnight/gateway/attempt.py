"""One attempt of a call: one request to one target, with its reservation and its reply."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from overnight.budgets import ReservationGrant
from overnight.pricing.usage import Usage
from overnight.providers.error_classes import Failure
from overnight.providers.targets import Target
from overnight.wire_formats import Json, Prepared, Wire


class Attempt(msgspec.Struct, kw_only=True):
    """One request to one target. Only the pipeline changes it, and the reader of its stream sets `first_byte_ms`.

    Fields:
        call_id: the id of the attempt and of its reservation.
        called_seq: the sequence number of its `model_called` event.
        target, wire: the target, and the translation between its format and the client's.
        grant: its reservation.
        began: the start of its preparation, in seconds of `time.perf_counter`.
        sent_at: the time of sending, a time of the loop; None before.
        seconds: its maximum duration.
        losses: the parts of the request that the target's format cannot represent.
        queued_ms: the time in queues and in the store before it, in milliseconds.
        first_byte_ms: the time from the preparation to the first event of a streamed answer; None before, and without a stream.
        markers: the number of prompt-cache markers.
        provider_headers: the headers of the provider's response, also of an error.
    """

    call_id: str
    called_seq: int
    target: Target
    wire: Wire
    grant: ReservationGrant
    began: float = 0.0
    sent_at: float | None = None
    seconds: float = 0.0
    losses: tuple[str, ...] = ()
    markers: int = 0
    queued_ms: float = 0.0
    first_byte_ms: float | None = None
    provider_headers: Mapping[bytes, bytes] = {}

    def latency_ms(self) -> float:
        """The time since the preparation, in milliseconds, to the microsecond."""
        return round((time.perf_counter() - self.began) * 1000, 3)


class Dispatch(msgspec.Struct, frozen=True):
    """A request ready to be sent: its parts, all headers, the deadline of its attempt, and that of a stream once it has begun
    (times of the loop)."""

    prepared: Prepared
    headers: tuple[tuple[bytes, bytes], ...]
    deadline: float
    stream_deadline: float


class Reply(msgspec.Struct, frozen=True):
    """An answer in the client's format, and its usage."""

    body: bytes
    usage: Usage


class PartialAnswer(NamedTuple):
    """The part of a streamed answer that arrived before its attempt failed: whether it had begun, its characters of output,
    and the provider's usage report, if any."""

    begun: bool = False
    characters: int = 0
    usage: Json | None = None


class AttemptFailure(msgspec.Struct, frozen=True):
    """An attempt without a usable answer: the failure, the body of the provider's error (without the key), the partial answer."""

    failure: Failure
    body: bytes = b""
    received: PartialAnswer = PartialAnswer()
