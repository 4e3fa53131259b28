"""The embedding of a question: the interface between the semantic cache and the embedding call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from ..identity import Subject


class Embedded(msgspec.Struct, frozen=True):
    """The result of an embedding call.

    Fields:
        subject: the job of the call, updated by the embedding call.
        numbers: the vector; None after a failure.
        cost_microusd: the cost, also after a failure.
        why: the reason of a failure.
    """

    subject: Subject
    numbers: list[float] | None
    cost_microusd: int = 0
    why: str = ""


Embed = Callable[[Subject, str, str, float], Awaitable[Embedded]]
"""Embed a text for a subject, with a model, until a time of the loop."""
