"""Group commit: concurrent commands share one transaction, and a command returns when that transaction is durable.

Commands that arrive in one turn of the event loop make a batch. Where a flush is quick, the batch is written in the loop's own
thread: two thread switches cost more than the flush. Where it is slow, one writing thread takes it, and the next batch gathers
while it flushes. The line is bounded: callers wait, so memory stays flat and nothing is dropped.
"""

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future as ThreadFuture
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from overnight.domain import OvernightError, StoreUnavailable

from .batches import QUICK_FLUSH_S, Batches
from .pending_commands import (
    TOO_LATE,
    Answer,
    Entry,
    Outcome,
    Pending,
    Resolver,
    for_all,
    give_up,
    resolver,
    thread_resolver,
)
from .unit import Command, Session

T = TypeVar("T")
log = logging.getLogger("overnight.store")
LONGEST_QUEUE = 4096
LARGEST_BATCH = 512
LINGER_S = 0.02
FADING, SHARED = 0.8, 1.5
"""The usual size of a batch fades to this part with each smaller one; from this size on, batches are shared."""
CLOSE_S = 10.0
"""How long closing waits for the database to take what is in line."""


class Writer:
    """The only way to write. `stripe` names this process in the rollups."""

    def __init__(self, connect: Callable[[], Session], clock: Callable[[], int]) -> None:
        self._connect = connect
        self._queue: SimpleQueue[Entry | Pending | None] = SimpleQueue()
        self._riders: deque[Entry] = deque()
        self._lingering = False
        self._usual, self._gathered, self._since = 0.0, 0, 0.0
        self._waiting = 0
        self._room: deque[asyncio.Future[None]] = deque()
        self._answers: dict[asyncio.AbstractEventLoop, deque[Answer]] = {}
        self._lock = threading.Lock()
        self._inbox: list[Entry] = []
        self._home: asyncio.AbstractEventLoop | None = None
        self._home_thread = 0
        self._session: Session | None = None
        self._session_turn = threading.Lock()
        self._closed = self._stopped = False
        self._resolved = 0
        self._batches = Batches(self, clock, stripe=f"{os.getpid()}-{os.urandom(3).hex()}")
        self._thread = threading.Thread(target=self._work, name="overnight-writer", daemon=True)
        self._thread.start()

    async def commit(
        self, command: Command[T], *, until: float | None = None, left: Callable[[T], None] | None = None
    ) -> T:
        """Decide and write the command; return when it is durable.

        Args:
            until: a time of the running loop, after which the caller no longer waits.
            left: called in the caller's loop with the outcome of a command that was committed after its caller had left.

        With either of them, a command whose caller has left (`until` has passed, or its task was cancelled) is skipped when its
        batch is decided. It is committed only if its transaction was already under way.

        Raises:
            StoreUnavailable: the write failed, or `until` has passed.
            OvernightError: what `decide` raised.
        """
        loop = self.running_loop()
        while self._waiting >= LONGEST_QUEUE:
            await self._wait_for_room(loop, until)
        if until is None and left is None:
            return await self.submit(command, loop)
        return await self._commit_for_caller(command, loop, until, left)

    async def _commit_for_caller(
        self,
        command: Command[T],
        loop: asyncio.AbstractEventLoop,
        until: float | None,
        left: Callable[[T], None] | None,
    ) -> T:
        future: asyncio.Future[T] = loop.create_future()
        if until is not None and until <= loop.time():
            raise StoreUnavailable(TOO_LATE)
        self._put(command, resolver(future, left), loop, future)
        timer = None if until is None else loop.call_at(until, give_up, future)
        try:
            return await future
        except asyncio.CancelledError:
            # The outcome may be there already although the caller has not been woken yet.
            if left is not None and not future.cancelled() and future.exception() is None:
                loop.call_soon(left, future.result())
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def running_loop(self) -> asyncio.AbstractEventLoop:
        """The loop of the caller. Asking asyncio for it costs a system call on Python 3.11, so the usual one is kept."""
        home = self._home
        if home is not None and home.is_running() and threading.get_ident() == self._home_thread:
            return home
        return asyncio.get_running_loop()

    @property
    def last_failure(self) -> tuple[float, str]:
        """When the database last refused or lost a batch (of time.monotonic), and its words."""
        return self._batches.last_failure

    @property
    def waiting(self) -> int:
        """How many commands are in line."""
        return self._waiting

    def submit(self, command: Command[T], loop: asyncio.AbstractEventLoop) -> "asyncio.Future[T]":
        """As `commit`, without back-pressure; for callers that must not await before their command is in line."""
        future: asyncio.Future[T] = loop.create_future()
        self._put(command, resolver(future), loop)
        return future

    def _put(
        self,
        command: Command[Any],
        resolve: Resolver,
        loop: asyncio.AbstractEventLoop,
        caller: "asyncio.Future[Any] | None" = None,
    ) -> None:
        entry = (command, resolve, loop, caller)
        if self._home is None:
            self._home, self._home_thread = loop, threading.get_ident()
        if loop is not self._home:
            self._enter(entry)
            return
        with self._lock:
            self._check_open()
            self._waiting += 1
            self._inbox.append(entry)
            first = len(self._inbox) == 1
        if first:
            loop.call_soon(self._tick)

    def _tick(self) -> None:
        """Write what came in during this turn of the loop: here, or in the thread when that is busy or flushes are slow."""
        if self._is_worth_waiting(len(self._inbox)):
            self.running_loop().call_soon(self._tick)
            return
        with self._lock:
            batch, self._inbox = self._inbox, []
        self._gathered, self._usual = 0, max(len(batch), self._usual * FADING)
        if not batch:
            return  # the store was closed meanwhile, and the thread has what was in line
        session = self._session
        here = (
            session is not None
            and len(batch) <= LARGEST_BATCH
            and self._waiting <= len(batch) + len(self._riders)  # nobody is in line before them
            and self._batches.fit_the_loop(session)
            and self._session_turn.acquire(blocking=False)
        )
        if session is None or not here:
            for entry in batch:
                self._queue.put(entry)
            return
        try:
            self._batches.run(session, self._with_riders(batch), time.monotonic() + session.patience_s)
        finally:
            self._session_turn.release()

    def _is_worth_waiting(self, count: int) -> bool:
        """Where batches are usually shared, the next turn may bring somebody: as long as it does, or until the batch is as large
        as they are, but then no longer than a flush takes. Where flushes are slow, the thread's batch gathers by itself."""
        if self._usual < SHARED or not 0 < count < LARGEST_BATCH or self._batches.flush_s >= QUICK_FLUSH_S:
            return False
        now = time.perf_counter()
        if self._gathered == 0:
            self._since = now
        waits = self._gathered < count or (count < self._usual and now - self._since < self._batches.flush_s)
        self._gathered = count
        return waits

    def _with_riders(self, batch: list[Entry]) -> list[Entry]:
        """Riders entered before the batch's commands must be decided before them."""
        return [*(self._riders.popleft() for _ in range(len(self._riders))), *batch]

    def ride(self, command: Command[Any], loop: asyncio.AbstractEventLoop) -> "asyncio.Future[Any]":
        """Write the command with the next batch, before it; on its own only after a short linger."""
        future: asyncio.Future[Any] = loop.create_future()
        with self._lock:
            self._check_open()
            self._waiting += 1
            self._riders.append((command, resolver(future), loop, None))
        if not self._lingering:
            self._lingering = True
            loop.call_later(LINGER_S, self._linger_over)
        return future

    def _linger_over(self) -> None:
        self._lingering = False
        if self._riders:
            self._queue.put(None)

    def commit_blocking(self, command: Command[T]) -> T:
        """For threads without an event loop."""
        future: ThreadFuture[T] = ThreadFuture()
        self._enter((command, thread_resolver(future), None, None))
        return future.result()

    def close(self) -> None:
        """Write what is in line, then stop. Where the database does not answer, what is in line fails."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for entry in self._inbox:
                self._queue.put(entry)
            self._inbox = []
            self._queue.put(None)
        self._thread.join(CLOSE_S)
        self._stopped = True
        if (session := self._session) is not None:
            session.stop()
        self._thread.join(CLOSE_S)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")

    def _enter(self, entry: Entry) -> None:
        with self._lock:
            self._check_open()
            self._waiting += 1
            self._queue.put(entry)

    async def _wait_for_room(self, loop: asyncio.AbstractEventLoop, until: float | None = None) -> None:
        turn: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if self._waiting < LONGEST_QUEUE:
                return
            self._room.append(turn)
        timer = None if until is None else loop.call_at(until, give_up, turn)
        try:
            await turn
        except asyncio.CancelledError:
            self._make_room()  # the turn may have been given to this caller already: it goes to the next
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _make_room(self) -> None:
        with self._lock:
            free = min(LONGEST_QUEUE - self._waiting, len(self._room))
            turns = [self._room.popleft() for _ in range(free)]
        for turn in turns:
            with contextlib.suppress(RuntimeError):  # its loop has closed
                turn.get_loop().call_soon_threadsafe(self._give_turn, turn)

    def _give_turn(self, turn: "asyncio.Future[None]") -> None:
        if turn.done():
            self._make_room()
        else:
            turn.set_result(None)

    def _work(self) -> None:
        while True:
            batch, pending = self._take()
            with self._session_turn:
                self._resolved = 0
                try:
                    if self._session is None:
                        self._session = self._connect_or_stop()
                    if pending is not None:
                        self._batches.finish(self._session, *pending)
                    batch = self._with_riders(batch)
                    if batch:
                        self._batches.run(self._session, batch)
                except OvernightError as error:  # there is no connection
                    self._fail_rest(self._with_riders([*(pending[0] if pending else []), *batch]), error)
                except Exception as error:  # whatever happens, callers hear of it and the next batch is written
                    log.exception("a batch could not be written by a fault of the store")
                    failed = StoreUnavailable(f"{type(error).__name__}: {error}")
                    self._fail_rest(self._with_riders([*(pending[0] if pending else []), *batch]), failed)
                if self._closed and self._queue.empty() and not self._riders:
                    if self._session is not None:
                        self._session.close()
                    return

    def _fail_rest(self, entries: list[Entry], error: OvernightError) -> None:
        """Fail the commands of this turn that were not resolved; a resolved one takes no second outcome."""
        with self._lock:
            self._waiting -= len(entries) - self._resolved
        self.hand_on(zip(entries, for_all(entries, error), strict=True))
        if self._room:
            self._make_room()

    def _connect_or_stop(self) -> Session:
        if self._stopped:
            raise StoreUnavailable("the store is closed")
        return self._connect()

    def _take(self) -> tuple[list[Entry], Pending | None]:
        """Wait for commands; as many as there are, up to the largest batch, or a batch that the loop has left."""
        batch: list[Entry] = []
        item = self._queue.get()
        while True:
            if item is not None:
                if len(item) == 2:
                    return batch, item
                batch.append(item)
            if len(batch) >= LARGEST_BATCH:
                return batch, None
            try:
                item = self._queue.get_nowait()
            except Empty:
                return batch, None

    def resolve(self, batch: list[Entry], outcomes: list[Outcome]) -> None:
        """Hand the outcomes on; the caller has the session's turn, so they stand in line in the order of the commits."""
        with self._lock:
            self._waiting -= len(batch)
            self._resolved += len(batch)
        self.hand_on(zip(batch, outcomes, strict=True))
        if self._room:
            self._make_room()

    def drop(self, count: int) -> None:
        with self._lock:
            self._waiting -= count
            self._resolved += count
        if self._room:
            self._make_room()

    def put_off(self, pending: Pending) -> None:
        self._queue.put(pending)

    def hand_on(self, answers: Iterable[tuple[Entry, Outcome]]) -> None:
        loops: set[asyncio.AbstractEventLoop] = set()
        for (_, resolve, loop, _), outcome in answers:
            if loop is None:
                resolve(*outcome)
            else:
                loops.add(loop)
                self._answers.setdefault(loop, deque()).append((resolve, outcome))
        for loop in loops:
            if loop is self._home and threading.get_ident() == self._home_thread:
                self._deliver(loop)
                continue
            try:
                loop.call_soon_threadsafe(self._deliver, loop)
            except RuntimeError:
                self._answers.pop(loop)  # the loop has closed: nobody is left to hear of it

    def _deliver(self, loop: asyncio.AbstractEventLoop) -> None:
        answers = self._answers.get(loop)
        while answers:
            resolve, outcome = answers.popleft()
            resolve(*outcome)
