"""How an attempt came out, as its settlement writes it."""

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
    """How an attempt came out.

    Fields:
        call_id: the attempt and its reservation.
        event: its fact, `model_succeeded` or `model_failed`.
        model: the target, for the usage counters.
        tokens: what was used.
        cost_microusd: the known cost. None where nothing is known: all that was reserved is then booked as a bound.
        content: the answer in the client's format.
        also: a row that is written with the answer.
        breaker_update: what the attempt says of its target.
        bound_microusd: what it may have cost beyond a known cost.
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
        """The rows that its settlement changes, beside the job and the budgets."""
        reservation = (RESERVATION, self.call_id)
        update = self.breaker_update
        return [reservation] if update is None else [reservation, *((CIRCUIT, key) for key in update.keys)]
