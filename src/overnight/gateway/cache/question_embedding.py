"""The vector of a question, as the semantic cache gets it from the call that makes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from ..identity import Subject


class Embedded(msgspec.Struct, frozen=True):
    """A vector, or why there is none.

    Fields:
        subject: whose call it was, as the embedding call has found out.
        numbers: the vector; None where there is none.
        cost_microusd: what was spent either way.
        why: why there is no vector.
    """

    subject: Subject
    numbers: list[float] | None
    cost_microusd: int = 0
    why: str = ""


Embed = Callable[[Subject, str, str, float], Awaitable[Embedded]]
"""Embed a text for a subject, with a model, until a time of the loop."""
