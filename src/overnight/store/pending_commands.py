"""Queued commands, and the delivery of their outcomes to the callers."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future as ThreadFuture
from typing import Any

from overnight.domain import StoreUnavailable

from .unit import BatchTimeout, Command

TOO_LATE = "the store did not answer in time"

Outcome = tuple[Any, BaseException | None]
Resolver = Callable[[Any, BaseException | None], None]
Entry = tuple[Command[Any], Resolver, asyncio.AbstractEventLoop | None, "asyncio.Future[Any] | None", float | None]
"""A command, the function that receives its outcome, the loop of that function, the future of a caller that may give up, and
the deadline of that caller. A command whose future is done is abandoned."""
Pending = tuple[list[Entry], BatchTimeout | None]
"""A batch that the event loop handed over to the writer thread."""
Delivery = tuple[Resolver, Outcome]


def for_all(batch: list[Entry], error: BaseException) -> list[Outcome]:
    return [(None, error)] * len(batch)


def is_abandoned(entry: Entry) -> bool:
    """Whether the caller of the command has given up."""
    caller = entry[3]
    return caller is not None and caller.done()


def expire(future: "asyncio.Future[Any]") -> None:
    """Fail a future whose deadline has passed."""
    if not future.done():
        future.set_exception(StoreUnavailable(TOO_LATE))


def start_timer(entry: Entry) -> None:
    """Fail the caller at its deadline. A command that the loop's thread writes at once needs no timer."""
    _, _, loop, caller, until = entry
    if loop is not None and caller is not None and until is not None and not caller.done():
        timer = loop.call_at(until, expire, caller)
        caller.add_done_callback(lambda _: timer.cancel())


def resolver(future: "asyncio.Future[Any]", on_late_commit: Callable[[Any], None] | None = None) -> Resolver:
    """Resolve a future of an event loop. `on_late_commit` receives the outcome if the caller has given up."""

    def resolve(outcome: Any, error: BaseException | None) -> None:
        if future.done():
            if on_late_commit is not None and error is None:
                future.get_loop().call_soon(on_late_commit, outcome)
            return
        if error is None:
            future.set_result(outcome)
        else:
            future.set_exception(error)

    return resolve


def thread_resolver(future: "ThreadFuture[Any]") -> Resolver:
    """Resolve the future of a thread without an event loop."""

    def resolve(outcome: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(outcome)
        else:
            future.set_exception(error)

    return resolve
