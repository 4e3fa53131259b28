"""An attempt whose answer comes whole: send the request, read the answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, TypeVar

from overnight.providers import UpstreamError
from overnight.providers.error_classes import exception_failure, response_failure

from ..attempt import Attempt, AttemptFailure, Dispatch, PartialAnswer, Reply
from ..call_context import CallContext
from .answer_reading import read_answer

T_co = TypeVar("T_co", covariant=True)


class ProviderTime:
    """A context manager that sums up the seconds of a call at its providers."""

    __slots__ = ("_began", "seconds")

    def __init__(self) -> None:
        self.seconds = self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.seconds += time.perf_counter() - self._began


class Sender(Protocol[T_co]):
    """Sends the request of an attempt and reads the reply."""

    async def send(
        self,
        context: CallContext,
        attempt: Attempt,
        dispatch: Dispatch,
        provider_time: ProviderTime,
        check: Callable[[], None] | None,
    ) -> T_co | AttemptFailure:
        """Send the request. Returns the answer, or the failure.

        Args:
            provider_time: measures the time at the provider.
            check: called immediately before the request is sent; an error that it raises ends the call.
        """
        ...

    def received(self) -> PartialAnswer:
        """The part of an answer received before the attempt failed."""
        ...


class WholeAnswer:
    """Sends a request without streaming."""

    async def send(
        self,
        context: CallContext,
        attempt: Attempt,
        dispatch: Dispatch,
        provider_time: ProviderTime,
        check: Callable[[], None] | None,
    ) -> Reply | AttemptFailure:
        """See `Sender.send`."""
        target, prepared = attempt.target, dispatch.prepared
        try:
            with provider_time:
                response = await target.pool.request(
                    "POST", prepared.path, dispatch.headers, prepared.body, dispatch.deadline, check
                )
        except UpstreamError as error:
            return AttemptFailure(exception_failure(error))
        attempt.provider_headers = response.headers
        if 200 <= response.status < 300:
            return read_answer(context, attempt, response.status, response.headers, response.body)
        body = target.without_key(response.body)
        return AttemptFailure(response_failure(response.status, response.headers, body), body)

    def received(self) -> PartialAnswer:
        """Always empty: there are no partial answers without streaming."""
        return PartialAnswer()


WHOLE_ANSWER = WholeAnswer()
