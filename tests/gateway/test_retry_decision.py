"""The retry decision: same target, next target or neither, without a gateway."""

from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.domain.policies import ClassRetries
from overnight.gateway.call.retry_decision import (
    AttemptState,
    GiveUp,
    RetrySameTarget,
    TryNextTarget,
    attempt_share,
    retry_decision,
)
from overnight.providers.error_classes import CLASSES, Failure

POLICY = ClassRetries(max_attempts=3, backoff_ms=100, max_backoff_ms=2_000, jitter="none")
STATE = AttemptState(attempts=1, is_open=False, has_next=True, remaining_s=30.0, total_s=60.0, queue_s=10.0)
OVERLOADED = Failure("overloaded", "overloaded", "busy", retryable=True, fallback=True, status=529)
INVALID = Failure("invalid_request", "bad", "no such field", retryable=False, fallback=False, status=400)
QUOTA = Failure("quota", "quota", "no money left", retryable=False, fallback=True, status=429)


def decide(failure: Failure, **state: Any) -> RetrySameTarget | TryNextTarget | GiveUp:
    return retry_decision(failure, POLICY, msgspec.structs.replace(STATE, **state), Random(0))


def test_a_retryable_failure_is_retried_after_the_backoff() -> None:
    assert decide(OVERLOADED) == RetrySameTarget(0.1)
    assert decide(OVERLOADED, attempts=2) == RetrySameTarget(0.2)


def test_the_next_target_is_tried_after_the_last_attempt() -> None:
    assert decide(OVERLOADED, attempts=3) == TryNextTarget(may_return=False)


def test_a_target_whose_circuit_opened_may_be_returned_to() -> None:
    assert decide(OVERLOADED, is_open=True) == TryNextTarget(may_return=True)
    assert decide(OVERLOADED, is_open=True, attempts=3) == TryNextTarget(may_return=False)


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_failure_of_the_request_itself_ends_the_call(attempts: int) -> None:
    assert decide(INVALID, attempts=attempts) == GiveUp()


def test_a_final_failure_of_one_target_goes_to_the_next() -> None:
    assert decide(QUOTA) == TryNextTarget()


def test_a_wait_longer_than_the_queue_time_goes_to_the_next_target() -> None:
    slow = msgspec.structs.replace(OVERLOADED, retry_after_ms=8_000)
    assert decide(slow) == TryNextTarget(), "two thirds of ten seconds may be waited while another target is left"
    assert decide(slow, has_next=False) == RetrySameTarget(8.1)


def test_backoff_without_time_for_an_attempt_is_skipped() -> None:
    assert decide(OVERLOADED, remaining_s=3.2, has_next=False) == RetrySameTarget(0.1)
    assert decide(OVERLOADED, remaining_s=3.05, has_next=False) == TryNextTarget()
    assert decide(OVERLOADED, remaining_s=3.0, has_next=False) == GiveUp()


def test_no_target_is_tried_without_time_for_an_answer() -> None:
    assert decide(QUOTA, remaining_s=3.0) == GiveUp()
    assert decide(QUOTA, remaining_s=3.1) == TryNextTarget()


def test_last_target_receives_all_remaining_time() -> None:
    assert attempt_share(30.0, has_next=False) == 30.0
    assert attempt_share(30.0, has_next=True) == 20.0


@given(
    st.sampled_from(sorted(CLASSES)),
    st.integers(1, 6),
    st.floats(-5, 120),
    st.booleans(),
    st.booleans(),
    st.none() | st.integers(0, 100_000),
)
def test_decisions_satisfy_their_invariants(
    error_class: Any, attempts: int, remaining_s: float, is_open: bool, has_next: bool, retry_after_ms: int | None
) -> None:
    rule = CLASSES[error_class]
    failure = Failure(error_class, "code", "message", rule.retryable, rule.fallback, retry_after_ms)
    state = AttemptState(
        attempts=attempts, is_open=is_open, has_next=has_next, remaining_s=remaining_s, total_s=60.0, queue_s=10.0
    )
    decision = retry_decision(failure, msgspec.structs.replace(POLICY, jitter="full"), state, Random(0))
    match decision:
        case RetrySameTarget(delay_s=delay_s):
            assert failure.retryable
            assert not is_open
            assert attempts < 3
            assert delay_s + 3.0 < remaining_s
            assert delay_s < 10.0
            assert delay_s >= (retry_after_ms or 0) / 1000
        case TryNextTarget(may_return=may_return):
            assert failure.fallback
            assert remaining_s > 3.0
            assert not may_return or is_open
        case GiveUp():
            assert not failure.fallback or remaining_s <= 3.0
