"""One attempt of a call: one try of one target, with its reservation, its request and what came back."""

from __future__ import annotations

import time
from typing import NamedTuple

import msgspec

from overnight.budgets import ReservationGrant
from overnight.pricing.usage import Usage
from overnight.providers.error_classes import Failure
from overnight.providers.targets import Target
from overnight.wire_formats import Json, Prepared, Wire


class Attempt(msgspec.Struct, kw_only=True):
    """One try of one target. Only the pipeline changes it.

    Fields:
        call_id: the id of the attempt and of its reservation.
        called_seq: the sequence number of its `model_called` event.
        target, wire: where it goes, and how the client's format reaches it.
        grant: what was reserved for it.
        began: when its request was prepared, in seconds of `time.perf_counter`.
        sent_at: when its request went out, a time of the loop; None before.
        seconds: how long it may take.
        losses: what the target's format cannot carry.
        markers: how many prompt-cache markers were placed.
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

    def latency_ms(self) -> float:
        """Since the request was prepared, to the microsecond."""
        return round((time.perf_counter() - self.began) * 1000, 3)


class Dispatch(msgspec.Struct, frozen=True):
    """A request ready to be sent: its parts, all headers, and until when its attempt may take (a time of the loop)."""

    prepared: Prepared
    headers: tuple[tuple[bytes, bytes], ...]
    deadline: float


class Reply(msgspec.Struct, frozen=True):
    """An answer in the client's format, what it used, and the provider's own id of the request."""

    body: bytes
    usage: Usage
    request_id: bytes | None = None


class PartialAnswer(NamedTuple):
    """What of a streamed answer came before its attempt failed: whether it had begun, its characters of output, and the usage as
    the provider reported it, if it did."""

    begun: bool = False
    characters: int = 0
    usage: Json | None = None


class AttemptFailure(msgspec.Struct, frozen=True):
    """An attempt without a usable answer: why, the body of the provider's error (without the key), and what came before."""

    failure: Failure
    body: bytes = b""
    received: PartialAnswer = PartialAnswer()
