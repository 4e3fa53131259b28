"""The open reservations of this process, and the settlements deferred until the store is available."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial

from overnight.domain import OvernightError, StoreUnavailable
from overnight.store import Command, Store

from .commands import Settle, Settled, SettleLost
from .unsent_calls import SettleUnsent

log = logging.getLogger("overnight.gateway")
ClosingCommand = Settle | SettleLost | SettleUnsent
"""A command that ends a reservation."""

MAX_LATE = 10_000
"""The maximum number of deferred events. Beyond it the oldest is dropped."""


class Settlements:
    """The open calls of this process, each with a reservation in the store.

    A settlement that cannot be written in time is deferred, and `write_due` writes it. Settlements are idempotent, so a first
    write with an unknown outcome does no harm. `wrote` is called after each deferred settlement.
    """

    def __init__(self, store: Store, wrote: Callable[[], None]) -> None:
        self._store, self._wrote = store, wrote
        self._open: set[str] = set()
        self._due: dict[str, ClosingCommand] = {}
        self._late: deque[Command[None]] = deque()
        self._noting: set[asyncio.Task[None]] = set()

    def opened(self, call_id: str) -> None:
        """Note a durable reservation of this process."""
        self._open.add(call_id)

    def is_open(self, call_id: str) -> bool:
        """Whether a call has a reservation and no settlement, neither written nor deferred."""
        return call_id in self._open

    def holds(self, call_id: str) -> bool:
        """Whether this process will still settle the reservation."""
        return call_id in self._open or call_id in self._due

    def closed(self, call_id: str) -> None:
        """Note that another command has settled the call."""
        self._open.discard(call_id)

    async def write(self, command: Settle, until: float) -> Settled:
        """Settle a call; wait for the store until `until` (a time of the loop).

        Raises StoreUnavailable after that. The settlement is then deferred, as it is after a cancellation.
        """
        call_id = command.result.call_id
        try:
            ended = await self._store.commit(command, until=until, on_late_commit=partial(self._written_late, call_id))
        except (StoreUnavailable, asyncio.CancelledError):
            # Otherwise the call would be settled as lost, at its upper bound.
            self.defer(call_id, command)
            raise
        self._open.discard(call_id)
        return ended

    def defer(self, call_id: str, command: ClosingCommand) -> None:
        """Defer the command until the store is available."""
        self._open.discard(call_id)
        self._due[call_id] = command

    def _written_late(self, call_id: str, _: object) -> None:
        self._due.pop(call_id, None)
        self._wrote()

    async def note(self, command: Command[None], until: float) -> None:
        """Write an event that no answer depends on. Returns when it is durable, or at `until`, a time of the loop; after that
        it is deferred. Raises the errors of the command."""
        loop = asyncio.get_running_loop()
        noting = loop.create_task(self._note(command))
        self._noting.add(noting)
        noting.add_done_callback(self._noting.discard)
        try:
            await asyncio.wait((noting,), timeout=max(0.0, until - loop.time()))
        finally:
            if not noting.done():
                noting.add_done_callback(self._noted_late)
        if noting.done():
            noting.result()

    async def _note(self, command: Command[None]) -> None:
        try:
            await self._store.commit(command)
        except StoreUnavailable as error:
            if len(self._late) >= MAX_LATE:
                log.error("event dropped: %d other events wait for the store: %s", MAX_LATE, error)
                self._late.popleft()
            self._late.append(command)

    def _noted_late(self, noting: asyncio.Task[None]) -> None:
        if noting.cancelled():
            return
        if (error := noting.exception()) is not None:
            log.error("event rejected and abandoned: %s", error)
        else:
            self._wrote()

    async def write_due(self) -> None:
        """Write all deferred settlements. Raises StoreUnavailable at the first one that cannot be written."""
        for call_id, command in list(self._due.items()):
            try:
                await self._store.commit(command)
            except StoreUnavailable:
                raise
            except OvernightError as error:
                log.error("settlement of %s rejected and abandoned: %s", call_id, error)
            if self._due.pop(call_id, None) is not None:
                self._wrote()
        while self._late:
            await self._note_due(self._late.popleft())

    async def _note_due(self, command: Command[None]) -> None:
        try:
            await self._store.commit(command)
        except StoreUnavailable:
            self._late.appendleft(command)
            raise
        except OvernightError as error:
            log.error("event rejected and abandoned: %s", error)
        else:
            self._wrote()
