"""The outcome of one attempt to deliver a message."""

from __future__ import annotations

import msgspec


class Delivered(msgspec.Struct, frozen=True):
    """The receiver took the message."""


class NotDelivered(msgspec.Struct, frozen=True):
    """The receiver certainly did not take the message.

    Attributes:
        why: the reason, without secrets.
        retry_after_s: when the receiver wants the next attempt.
        is_final: whether no later attempt can succeed.
        is_gone: whether the receiver wants no more messages at all.
    """

    why: str
    retry_after_s: float | None = None
    is_final: bool = False
    is_gone: bool = False


class OutcomeUnknown(msgspec.Struct, frozen=True):
    """The receiver may have taken the message."""

    why: str
    retry_after_s: float | None = None


Outcome = Delivered | NotDelivered | OutcomeUnknown


def outcome_name(outcome: Outcome) -> str:
    """The public name: delivered, not_delivered or unknown."""
    match outcome:
        case Delivered():
            return "delivered"
        case NotDelivered():
            return "not_delivered"
        case OutcomeUnknown():
            return "unknown"
