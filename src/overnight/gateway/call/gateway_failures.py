"""Failures of an attempt that the gateway detects, and no provider reports."""

from __future__ import annotations

from overnight.providers.error_classes import OURS, Failure

NOT_CARRIED, UNREAD, TOTAL_PASSED = "not_carried", "internal_fault", "total_timeout"
_NOT_OF_TARGET = OURS | {NOT_CARRIED, UNREAD, TOTAL_PASSED}


def is_of_target(failure: Failure) -> bool:
    """Whether the failure counts against its target."""
    return failure.code not in _NOT_OF_TARGET


def not_carried(message: str) -> Failure:
    """The target's format cannot represent the request, so it was not sent. Another target may support it."""
    return Failure("invalid_request", NOT_CARRIED, message, retryable=False, fallback=True)


def unread() -> Failure:
    """An internal error prevented reading the answer. It does not count against the target, which may have billed it."""
    message = "internal error: the answer could not be read; see the log of the gateway"
    return Failure("malformed", UNREAD, message, retryable=False, fallback=True)


def not_sent() -> Failure:
    """An internal error before the request was sent."""
    message = "internal error: the request could not be sent; see the log of the gateway"
    return Failure("malformed", UNREAD, message, retryable=False, fallback=True, unbilled=True)


def cut(message: str) -> Failure:
    """A stream that ended too early."""
    return Failure("cut", "stream_cut", message, retryable=True, fallback=True, status=200)


def total_passed(total_ms: int) -> Failure:
    """A stream whose chunks still came when the call's total time was over: its provider did not fail."""
    message = (
        f"the stream had not ended after {total_ms} ms (deadlines.total_ms) and was closed; its chunks came until then"
    )
    return Failure("timeout", TOTAL_PASSED, message, retryable=False, fallback=False, status=200)


def malformed(message: str) -> Failure:
    """A stream that cannot be read."""
    return Failure("malformed", "malformed_stream", message, retryable=True, fallback=True, status=200)


def circuits_open(message: str, retry_after_ms: int) -> Failure:
    """No target could be called, because all circuits are open."""
    return Failure(
        error_class="circuit_open",
        code="circuit_open",
        message=message,
        retryable=False,
        fallback=False,
        retry_after_ms=retry_after_ms,
    )
