"""Group commit: concurrent commands share one transaction, and a command returns when that transaction is durable.

Commands that arrive in one turn of the event loop make a batch. Where a flush is quick, the batch is written in the loop's own
thread: two thread switches cost more than the flush. Where it is slow, one writing thread takes it, and the next batch gathers
while it flushes. The line is bounded: callers wait, so memory stays flat and nothing is dropped.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future as ThreadFuture
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from overnight.domain import BadInput, OvernightError, StoreUnavailable, month_of

from .unit import Command, Redo, Unit, Unwritable

T = TypeVar("T")
LONGEST_QUEUE = 4096
TOO_LATE = "the store did not answer in time"
LARGEST_BATCH = 512
LINGER_S = 0.02
MOST_REDOS = 8
QUICK_FLUSH_S = 0.003
"""A flush that takes less is made in the loop's own thread. The interpreter's lock is handed to the writing thread and back late
while the loop is busy: measured at 16 connections, that costs more than waiting (SQLite 15 % of the calls, PostgreSQL 60 %)."""
SMOOTHING = 0.1
FADING, SHARED = 0.8, 1.5
"""The usual size of a batch fades to this part with each smaller one; from this size on, batches are shared."""

Outcome = tuple[Any, BaseException | None]
Resolver = Callable[[Any, BaseException | None], None]
Entry = tuple[Command[Any], Resolver, asyncio.AbstractEventLoop | None, "asyncio.Future[Any] | None"]
"""A command, what hears of its outcome, the loop to say it in, and the future of a caller that may leave: once that is done,
the command is no longer wanted."""
Answer = tuple[Resolver, Outcome]


class Writer:
    """The only way to write. `stripe` names this process in the rollups."""

    def __init__(self, connect: Callable[[], Any], clock: Callable[[], int]) -> None:
        self._connect, self._clock = connect, clock
        self._queue: SimpleQueue[Entry | None] = SimpleQueue()
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
        self._session: Any = None
        self._session_turn = threading.Lock()
        self._flush_s = QUICK_FLUSH_S
        self._closed = False
        self._stripe = f"{os.getpid()}-{os.urandom(3).hex()}"
        self._thread = threading.Thread(target=self._work, name="overnight-writer", daemon=True)
        self._opened: ThreadFuture[None] = ThreadFuture()
        self._thread.start()
        self._opened.result()

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
        loop = asyncio.get_running_loop()
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
        self._put(command, _resolver(future, left), loop, future)
        timer = None if until is None else loop.call_at(until, _give_up, future)
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

    @property
    def waiting(self) -> int:
        """How many commands are in line."""
        return self._waiting

    def submit(self, command: Command[T], loop: asyncio.AbstractEventLoop) -> "asyncio.Future[T]":
        """As `commit`, without back-pressure; for callers that must not await before their command is in line."""
        future: asyncio.Future[T] = loop.create_future()
        self._put(command, _resolver(future), loop)
        return future

    def _put(
        self,
        command: Command[Any],
        resolve: Resolver,
        loop: asyncio.AbstractEventLoop,
        caller: "asyncio.Future[Any] | None" = None,
    ) -> None:
        entry: Entry = (command, resolve, loop, caller)
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
            asyncio.get_running_loop().call_soon(self._tick)
            return
        with self._lock:
            batch, self._inbox = self._inbox, []
        self._gathered, self._usual = 0, max(len(batch), self._usual * FADING)
        if not batch:
            return  # the store was closed meanwhile, and the thread has what was in line
        quick = self._flush_s < QUICK_FLUSH_S and len(batch) <= LARGEST_BATCH
        here = quick and self._queue.empty() and self._session_turn.acquire(blocking=False)
        if not here:
            for entry in batch:
                self._queue.put(entry)
            return
        try:
            self._run(self._session, self._with_riders(batch))
        finally:
            self._session_turn.release()

    def _is_worth_waiting(self, count: int) -> bool:
        """Where batches are usually shared, the next turn may bring somebody: as long as it does, or until the batch is as large
        as they are, but then no longer than a flush takes. Where flushes are slow, the thread's batch gathers by itself."""
        if self._usual < SHARED or not 0 < count < LARGEST_BATCH or self._flush_s >= QUICK_FLUSH_S:
            return False
        now = time.perf_counter()
        if self._gathered == 0:
            self._since = now
        waits = self._gathered < count or (count < self._usual and now - self._since < self._flush_s)
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
            self._riders.append((command, _resolver(future), loop, None))
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

        def resolve(outcome: Any, error: BaseException | None) -> None:
            if error is None:
                future.set_result(outcome)
            else:
                future.set_exception(error)

        self._enter((command, resolve, None, None))
        return future.result()

    def close(self) -> None:
        """Write what is in line, then stop."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for entry in self._inbox:
                self._queue.put(entry)
            self._inbox = []
            self._queue.put(None)
        self._thread.join(60)

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
        timer = None if until is None else loop.call_at(until, _give_up, turn)
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
        try:
            self._session = self._connect()
        except BaseException as error:
            self._opened.set_exception(error)
            return
        self._opened.set_result(None)
        while True:
            first = self._queue.get()
            batch: list[Entry] = [] if first is None else [first]
            while len(batch) < LARGEST_BATCH:
                try:
                    entry = self._queue.get_nowait()
                except Empty:
                    break
                if entry is not None:
                    batch.append(entry)
            with self._session_turn:
                batch = self._with_riders(batch)
                if batch:
                    self._run(self._session, batch)
                if self._closed and self._queue.empty() and not self._riders:
                    self._session.close()
                    return

    def _run(self, session: Any, batch: list[Entry]) -> None:
        faulty: dict[int, BaseException] = {}
        redos = 0
        while True:
            if any(caller is not None and caller.done() for *_, caller in batch):
                batch, faulty = self._without_left(batch, faulty)
            if not batch:
                return
            try:
                outcomes = self._transact(session, batch, faulty)
                break
            except _Faulty as found:
                faulty[found.index] = found.error
            except Redo as redo:
                redos += 1
                if redos == MOST_REDOS:
                    outcomes = _for_all(batch, StoreUnavailable(f"gave up after {redos} tries: {redo.__cause__}"))
                    break
                time.sleep(0.002)
            except Unwritable as refusal:
                if len(batch) > 1:  # somebody's data: find whose by halves
                    self._run(session, batch[: len(batch) // 2])
                    self._run(session, batch[len(batch) // 2 :])
                    return
                outcomes = _for_all(batch, BadInput(f"the database cannot keep this: {refusal}"))
                break
            except OvernightError as error:
                outcomes = _for_all(batch, error)
                break
            except BaseException as error:
                outcomes = _for_all(batch, StoreUnavailable(f"{type(error).__name__}: {error}"))
                break
        self._resolve(batch, outcomes)

    def _without_left(
        self, batch: list[Entry], faulty: dict[int, BaseException]
    ) -> tuple[list[Entry], dict[int, BaseException]]:
        """The batch without the commands whose callers have left."""
        kept = [index for index, (*_, caller) in enumerate(batch) if caller is None or not caller.done()]
        with self._lock:
            self._waiting -= len(batch) - len(kept)
        if self._room:
            self._make_room()
        return [batch[index] for index in kept], {new: faulty[old] for new, old in enumerate(kept) if old in faulty}

    def _transact(self, session: Any, batch: list[Entry], faulty: dict[int, BaseException]) -> list[Outcome]:
        now = self._clock()
        session.month(month_of(now))
        outcomes: list[Outcome] = []
        with session.transaction():
            unit = Unit(session, now, self._stripe)
            unit.lock(lock for command, *_ in batch for lock in command.locks())
            for index, (command, *_) in enumerate(batch):
                if index in faulty:
                    outcomes.append((None, faulty[index]))
                    continue
                try:
                    outcomes.append((command.decide(unit), None))
                except (StoreUnavailable, session.Error):
                    raise
                except OvernightError as refusal:
                    outcomes.append((None, refusal))
                except Exception as error:
                    # A fault in our own rules may have left half a change in the unit: start over without it.
                    raise _Faulty(index, error) from error
            unit.flush()
        self._flush_s += SMOOTHING * (session.flush_s - self._flush_s)
        return outcomes

    def _resolve(self, batch: list[Entry], outcomes: list[Outcome]) -> None:
        """Hand the outcomes on; the caller has the session's turn, so they stand in line in the order of the commits."""
        with self._lock:
            self._waiting -= len(batch)
        loops: set[asyncio.AbstractEventLoop] = set()
        for (_, resolve, loop, _), outcome in zip(batch, outcomes, strict=True):
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
        if self._room:
            self._make_room()

    def _deliver(self, loop: asyncio.AbstractEventLoop) -> None:
        answers = self._answers.get(loop)
        while answers:
            resolve, outcome = answers.popleft()
            resolve(*outcome)


def _for_all(batch: list[Entry], error: BaseException) -> list[Outcome]:
    return [(None, error)] * len(batch)


class _Faulty(Exception):
    def __init__(self, index: int, error: BaseException) -> None:
        self.index, self.error = index, error


def _give_up(future: "asyncio.Future[Any]") -> None:
    if not future.done():
        future.set_exception(StoreUnavailable(TOO_LATE))


def _resolver(future: "asyncio.Future[Any]", left: Callable[[Any], None] | None = None) -> Resolver:
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
