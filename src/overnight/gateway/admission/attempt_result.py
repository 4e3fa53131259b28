"""The result of an attempt, as its settlement records it."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from overnight.budgets import RESERVATION
from overnight.circuit_breakers import CIRCUIT, BreakerUpdate
from overnight.domain import Event, Recorded
from overnight.store import Unit

Locks = list[tuple[Any, Any]]
Tokens = tuple[int, int, int]
"""Input, cached and output tokens."""


class Rider(Protocol):
    """A row that is written with the answer of a call, in the same transaction."""

    def write(self, unit: Unit, answer: Recorded) -> None: ...


class AttemptResult(msgspec.Struct, frozen=True):
    """The result of an attempt.

    Fields:
        call_id: the attempt and its reservation.
        event: `model_succeeded` or `model_failed`.
        model: the target, for the usage counters.
        tokens: the usage.
        cost_microusd: the known cost. If it is None, the whole reservation is booked as a bound.
        content: the answer in the client's format.
        also: a row that is written in the same transaction.
        breaker_update: the update of the target's circuit breaker.
        bound_microusd: the maximum cost beyond a known cost.
    """

    call_id: str
    event: Event
    model: str
    tokens: Tokens
    cost_microusd: int | None
    content: bytes | None = None
    also: Rider | None = None
    breaker_update: BreakerUpdate | None = None
    bound_microusd: int = 0

    def locks(self) -> Locks:
        """The rows that its settlement changes, except for the job and the budgets."""
        reservation = (RESERVATION, self.call_id)
        update = self.breaker_update
        return [reservation] if update is None else [reservation, *((CIRCUIT, key) for key in update.keys)]
