"""The results of a call, one class for each possible end."""

from __future__ import annotations

import msgspec

from overnight.domain import Recorded
from overnight.providers.error_classes import Failure

from ..admission.admission_outcomes import CacheHit, Replayed
from ..attempt import Reply


class Answered(msgspec.Struct, frozen=True):
    """A target answered. `recorded` is the settled event."""

    reply: Reply
    recorded: Recorded


class Failed(msgspec.Struct, frozen=True):
    """Every target failed or was skipped. `recorded` is the settled event, `body` the error of the last provider."""

    failure: Failure
    recorded: Recorded
    body: bytes = b""


class DegradedAnswer(msgspec.Struct, frozen=True):
    """The route's degraded answer was recorded in place of a provider's."""

    recorded: Recorded


CallResult = Answered | Failed | Replayed | CacheHit | DegradedAnswer


def is_late(recorded: Recorded) -> bool:
    """Whether the call was declared lost before its end. Its end is then no answer in the log."""
    return recorded.facts.event == "cost_corrected"
