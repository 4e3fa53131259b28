"""Who waits for a command, and how its outcome reaches the caller."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future as ThreadFuture
from typing import Any

from overnight.domain import StoreUnavailable

from .unit import Command, Later

TOO_LATE = "the store did not answer in time"

Outcome = tuple[Any, BaseException | None]
Resolver = Callable[[Any, BaseException | None], None]
Entry = tuple[Command[Any], Resolver, asyncio.AbstractEventLoop | None, "asyncio.Future[Any] | None"]
"""A command, what hears of its outcome, the loop to say it in, and the future of a caller that may leave: once that is done,
the command is no longer wanted."""
Pending = tuple[list[Entry], Later | None]
"""A batch that the loop's thread left to the writing thread."""
Answer = tuple[Resolver, Outcome]


def for_all(batch: list[Entry], error: BaseException) -> list[Outcome]:
    return [(None, error)] * len(batch)


def has_left(entry: Entry) -> bool:
    """Whether the caller of the command waits no longer."""
    caller = entry[3]
    return caller is not None and caller.done()


def give_up(future: "asyncio.Future[Any]") -> None:
    """The time of a caller is over."""
    if not future.done():
        future.set_exception(StoreUnavailable(TOO_LATE))


def resolver(future: "asyncio.Future[Any]", left: Callable[[Any], None] | None = None) -> Resolver:
    """Resolve a future of an event loop; call `left` with what was committed after its caller had left."""

    def resolve(outcome: Any, error: BaseException | None) -> None:
        if future.done():
            if left is not None and error is None:
                future.get_loop().call_soon(left, outcome)
            return
        if error is None:
            future.set_result(outcome)
        else:
            future.set_exception(error)

    return resolve


def thread_resolver(future: "ThreadFuture[Any]") -> Resolver:
    """Resolve what a thread without an event loop waits for."""

    def resolve(outcome: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(outcome)
        else:
            future.set_exception(error)

    return resolve
