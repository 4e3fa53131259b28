"""The retry decision after a failed attempt: the same target, the next target, or neither. Pure functions."""

from __future__ import annotations

from random import Random

import msgspec

from overnight.domain.policies import ClassRetries, Retries
from overnight.providers.error_classes import Failure, backoff_ms

from ..call_deadlines import MIN_ATTEMPT_SHARE

ATTEMPT_SHARE = 2 / 3
"""Share of the remaining time of one target while another is left: a provider that hangs must leave time for its fallback."""


class RetrySameTarget(msgspec.Struct, frozen=True):
    """Call the same target again after `delay_s` seconds."""

    delay_s: float


class TryNextTarget(msgspec.Struct, frozen=True):
    """Call the next target. `may_return`: the call may return to this one, which it left because its circuit opened."""

    may_return: bool = False


class GiveUp(msgspec.Struct, frozen=True):
    """The failure is the end of the call."""


RetryDecision = RetrySameTarget | TryNextTarget | GiveUp


class AttemptState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a call after a failed attempt. Times in seconds.

    Fields:
        attempts: the number of attempts at its target.
        is_open: whether the target's circuit is open now.
        has_next: whether another target is left.
        remaining_s: the remaining time of the providers.
        total_s: the total time of the providers.
        queue_s: the queue time of the route.
    """

    attempts: int
    is_open: bool
    has_next: bool
    remaining_s: float
    total_s: float
    queue_s: float


def attempt_share(seconds: float, *, has_next: bool) -> float:
    """The part of the remaining time for one target: all of it if no other target is left."""
    return seconds * ATTEMPT_SHARE if has_next else seconds


def retry_decision(
    failure: Failure, policy: Retries | ClassRetries, state: AttemptState, random: Random
) -> RetryDecision:
    """Decide how a call continues after `failure`.

    The same target is called again, up to `policy.max_attempts`, if the delay leaves time for an attempt and is not longer
    than the queue time. Otherwise the next target is called, if another target may answer and time is left.
    """
    min_s = state.total_s * MIN_ATTEMPT_SHARE
    may_return = False
    if failure.retryable and state.attempts < policy.max_attempts:
        if state.is_open:
            may_return = True
        else:
            delay_s = backoff_ms(state.attempts, policy, failure.retry_after_ms, random) / 1000
            has_time = delay_s + min_s < attempt_share(state.remaining_s, has_next=state.has_next)
            if has_time and delay_s < attempt_share(state.queue_s, has_next=state.has_next):
                return RetrySameTarget(delay_s)
    if not failure.fallback or state.remaining_s <= min_s:
        return GiveUp()
    return TryNextTarget(may_return)
