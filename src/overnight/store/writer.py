"""Group commit: concurrent commands share one transaction, and a command returns when that transaction is durable.

Commands of one iteration of the event loop form a batch. If flushes are fast, the batch is written in the loop's
thread, since two thread switches take longer than the flush. If they are slow, one writer thread writes, and the next
batch fills meanwhile. The queue is bounded: callers wait, so that memory use stays constant and no command is
dropped.
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
    Delivery,
    Entry,
    Outcome,
    Pending,
    expire,
    for_all,
    resolver,
    start_timer,
    thread_resolver,
)
from .unit import Command, Session

T = TypeVar("T")
log = logging.getLogger("overnight.store")
MAX_QUEUE = 4096
MAX_BATCH = 512
LINGER_S = 0.02
BATCH_SIZE_DECAY, MIN_SHARED_BATCH = 0.8, 1.5
"""The usual batch size decays by this factor with each smaller batch. From the second value on, batches count as shared."""
CLOSE_TIMEOUT_S = 10.0
"""How long `close` waits for queued commands to be written."""


class Writer:
    """The only component that writes. `stripe` identifies this process in the rollups."""

    def __init__(self, connect: Callable[[], Session], clock: Callable[[], int]) -> None:
        self._connect = connect
        self._queue: SimpleQueue[Entry | Pending | None] = SimpleQueue()
        self._deferred: deque[Entry] = deque()
        self._lingering = False
        self._usual_batch, self._gathered, self._since = 0.0, 0, 0.0
        self._waiting = 0
        self._waiting_callers: deque[asyncio.Future[None]] = deque()
        self._answers: dict[asyncio.AbstractEventLoop, deque[Delivery]] = {}
        self._lock = threading.Lock()
        self._inbox: list[Entry] = []
        self._main_loop: asyncio.AbstractEventLoop | None = None
        self._main_thread = 0
        self._session: Session | None = None
        self._session_turn = threading.Lock()
        self._closed = self._stopped = False
        self._resolved = 0
        self._batches = Batches(self, clock, stripe=f"{os.getpid()}-{os.urandom(3).hex()}")
        self._thread = threading.Thread(target=self._run_thread, name="overnight-writer", daemon=True)
        self._thread.start()

    async def commit(
        self, command: Command[T], *, until: float | None = None, on_late_commit: Callable[[T], None] | None = None
    ) -> T:
        """Decide and write the command; return when it is durable.

        Args:
            until: the deadline of the caller, in time of the running loop; default: none.
            on_late_commit: called in the caller's loop with the outcome if the command was committed after the caller
                gave up.

        With either argument, a command is skipped if its caller has given up (deadline passed or task cancelled)
        before the batch is decided. It is committed only if its transaction had already started.

        Raises:
            StoreUnavailable: the write failed, or `until` has passed.
            OvernightError: raised by `decide`.
        """
        loop = self.running_loop()
        while self._waiting >= MAX_QUEUE:
            await self._wait_for_capacity(loop, until)
        if until is None and on_late_commit is None:
            return await self.submit(command, loop)
        if until is not None and until <= loop.time():
            raise StoreUnavailable(TOO_LATE)
        future: asyncio.Future[T] = loop.create_future()
        self._enqueue_in_loop((command, resolver(future, on_late_commit), loop, future, until), loop)
        try:
            return await future
        except asyncio.CancelledError:
            # The outcome may have arrived although the task has not run yet.
            if on_late_commit is not None and not future.cancelled() and future.exception() is None:
                loop.call_soon(on_late_commit, future.result())
            raise

    def running_loop(self) -> asyncio.AbstractEventLoop:
        """The loop of the caller. It is cached, since asyncio takes a system call to find it on Python 3.11."""
        home = self._main_loop
        if home is not None and home.is_running() and threading.get_ident() == self._main_thread:
            return home
        return asyncio.get_running_loop()

    @property
    def last_failure(self) -> tuple[float, str]:
        """When the database last failed a batch (time.monotonic), and the error."""
        return self._batches.last_failure

    @property
    def waiting(self) -> int:
        """The number of queued commands."""
        return self._waiting

    def submit(self, command: Command[T], loop: asyncio.AbstractEventLoop) -> "asyncio.Future[T]":
        """As `commit`, without back-pressure, for callers that must not await before their command is queued."""
        future: asyncio.Future[T] = loop.create_future()
        self._enqueue_in_loop((command, resolver(future), loop, None, None), loop)
        return future

    def _enqueue_in_loop(self, entry: Entry, loop: asyncio.AbstractEventLoop) -> None:
        if self._main_loop is None:
            self._main_loop, self._main_thread = loop, threading.get_ident()
        if loop is not self._main_loop:
            start_timer(entry)
            self._enqueue(entry)
            return
        with self._lock:
            self._check_open()
            self._waiting += 1
            self._inbox.append(entry)
            first = len(self._inbox) == 1
        if first:
            loop.call_soon(self._tick)

    def _tick(self) -> None:
        """Write the commands of this loop iteration, here or in the writer thread if it is busy or flushes are slow."""
        if self._is_worth_waiting(len(self._inbox)):
            self.running_loop().call_soon(self._tick)
            return
        with self._lock:
            batch, self._inbox = self._inbox, []
        self._gathered, self._usual_batch = 0, max(len(batch), self._usual_batch * BATCH_SIZE_DECAY)
        if not batch:
            return  # the store was closed, and the thread has the queued commands
        session = self._session
        here = (
            session is not None
            and len(batch) <= MAX_BATCH
            and self._waiting <= len(batch) + len(self._deferred)  # no command is queued before them
            and self._batches.may_run_in_loop(session)
            and self._session_turn.acquire(blocking=False)
        )
        if session is None or not here:
            for entry in batch:
                start_timer(entry)
                self._queue.put(entry)
            return
        try:
            self._batches.run(session, self._with_deferred(batch), time.monotonic() + session.max_block_s)
        finally:
            self._session_turn.release()

    def _is_worth_waiting(self, count: int) -> bool:
        """Whether to wait for further commands in the next loop iteration.

        This helps where batches are usually shared: as long as commands arrive, or up to the usual size and the
        duration of one flush. If flushes are slow, batches fill while the thread writes.
        """
        if self._usual_batch < MIN_SHARED_BATCH or not 0 < count < MAX_BATCH or self._batches.flush_s >= QUICK_FLUSH_S:
            return False
        now = time.perf_counter()
        if self._gathered == 0:
            self._since = now
        waits = self._gathered < count or (count < self._usual_batch and now - self._since < self._batches.flush_s)
        self._gathered = count
        return waits

    def _with_deferred(self, batch: list[Entry]) -> list[Entry]:
        """Put deferred commands before those of the batch, since they were queued earlier."""
        if not self._deferred:
            return batch
        return [*(self._deferred.popleft() for _ in range(len(self._deferred))), *batch]

    def defer(self, command: Command[Any], loop: asyncio.AbstractEventLoop) -> "asyncio.Future[Any]":
        """Write the command with the next batch and before it, or alone after a short delay."""
        future: asyncio.Future[Any] = loop.create_future()
        with self._lock:
            self._check_open()
            self._waiting += 1
            self._deferred.append((command, resolver(future), loop, None, None))
        if not self._lingering:
            self._lingering = True
            loop.call_later(LINGER_S, self._linger_over)
        return future

    def _linger_over(self) -> None:
        self._lingering = False
        if self._deferred:
            self._queue.put(None)

    def commit_blocking(self, command: Command[T]) -> T:
        """As `commit`, for threads without an event loop."""
        future: ThreadFuture[T] = ThreadFuture()
        self._enqueue((command, thread_resolver(future), None, None, None))
        return future.result()

    def close(self) -> None:
        """Write queued commands, then stop. If the database does not answer, queued commands fail."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for entry in self._inbox:
                self._queue.put(entry)
            self._inbox = []
            self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        self._stopped = True
        if (session := self._session) is not None:
            session.stop()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")

    def _enqueue(self, entry: Entry) -> None:
        with self._lock:
            self._check_open()
            self._waiting += 1
            self._queue.put(entry)

    async def _wait_for_capacity(self, loop: asyncio.AbstractEventLoop, until: float | None = None) -> None:
        turn: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if self._waiting < MAX_QUEUE:
                return
            self._waiting_callers.append(turn)
        timer = None if until is None else loop.call_at(until, expire, turn)
        try:
            await turn
        except asyncio.CancelledError:
            self._admit_waiting()  # this caller may have been admitted already: admit the next one
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _admit_waiting(self) -> None:
        with self._lock:
            free = min(MAX_QUEUE - self._waiting, len(self._waiting_callers))
            turns = [self._waiting_callers.popleft() for _ in range(free)]
        for turn in turns:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                turn.get_loop().call_soon_threadsafe(self._admit, turn)

    def _admit(self, turn: "asyncio.Future[None]") -> None:
        if turn.done():
            self._admit_waiting()
        else:
            turn.set_result(None)

    def _run_thread(self) -> None:
        while True:
            batch, pending = self._next_batch()
            with self._session_turn:
                self._resolved = 0
                try:
                    if self._session is None:
                        self._session = self._connect_or_stop()
                    if pending is not None:
                        self._batches.finish(self._session, *pending)
                    batch = self._with_deferred(batch)
                    if batch:
                        self._batches.run(self._session, batch)
                except OvernightError as error:  # no connection
                    self._fail_rest(self._with_deferred([*(pending[0] if pending else []), *batch]), error)
                except (
                    Exception
                ) as error:  # after any error, callers must be notified and the next batch must be written
                    log.exception("a batch could not be written because of an internal error of the store")
                    failed = StoreUnavailable(f"{type(error).__name__}: {error}")
                    self._fail_rest(self._with_deferred([*(pending[0] if pending else []), *batch]), failed)
                if self._closed and self._queue.empty() and not self._deferred:
                    if self._session is not None:
                        self._session.close()
                    return

    def _fail_rest(self, entries: list[Entry], error: OvernightError) -> None:
        """Fail the unresolved commands of this batch. A resolved command must not get a second outcome."""
        with self._lock:
            self._waiting -= len(entries) - self._resolved
        self.deliver(zip(entries, for_all(entries, error), strict=True))
        if self._waiting_callers:
            self._admit_waiting()

    def _connect_or_stop(self) -> Session:
        if self._stopped:
            raise StoreUnavailable("the store is closed")
        return self._connect()

    def _next_batch(self) -> tuple[list[Entry], Pending | None]:
        """Wait for commands. Returns those queued, up to the maximum batch, or a batch that the loop handed over."""
        batch: list[Entry] = []
        item = self._queue.get()
        while True:
            if item is not None:
                if len(item) == 2:
                    return batch, item
                batch.append(item)
            if len(batch) >= MAX_BATCH:
                return batch, None
            try:
                item = self._queue.get_nowait()
            except Empty:
                return batch, None

    def resolve(self, batch: list[Entry], outcomes: list[Outcome]) -> None:
        """Deliver outcomes. The caller holds the session, so that outcomes are delivered in the order of the commits."""
        with self._lock:
            self._waiting -= len(batch)
            self._resolved += len(batch)
        self.deliver(zip(batch, outcomes, strict=True))
        if self._waiting_callers:
            self._admit_waiting()

    def drop(self, count: int) -> None:
        with self._lock:
            self._waiting -= count
            self._resolved += count
        if self._waiting_callers:
            self._admit_waiting()

    def hand_over(self, pending: Pending) -> None:
        for entry in pending[0]:
            start_timer(entry)
        self._queue.put(pending)

    def deliver(self, answers: Iterable[tuple[Entry, Outcome]]) -> None:
        loops: set[asyncio.AbstractEventLoop] = set()
        for (_, resolve, loop, _, _), outcome in answers:
            if loop is None:
                resolve(*outcome)
            else:
                loops.add(loop)
                self._answers.setdefault(loop, deque()).append((resolve, outcome))
        for loop in loops:
            if loop is self._main_loop and threading.get_ident() == self._main_thread:
                self._deliver(loop)
                continue
            try:
                loop.call_soon_threadsafe(self._deliver, loop)
            except RuntimeError:
                self._answers.pop(loop)  # the loop is closed, and its callers with it

    def _deliver(self, loop: asyncio.AbstractEventLoop) -> None:
        answers = self._answers.get(loop)
        while answers:
            resolve, outcome = answers.popleft()
            resolve(*outcome)
