"""Write a batch of commands as one transaction, with retries."""

import time
from collections.abc import Callable
from itertools import chain
from typing import Protocol

from overnight.domain import BadInput, OvernightError, StoreUnavailable, month_of

from .crash_points import crash_point
from .pending_commands import (
    TOO_LATE,
    Entry,
    Outcome,
    Pending,
    for_all,
    is_abandoned,
)
from .unit import BatchTimeout, RetryTransaction, Session, Unit, UnstorableData

MAX_RETRIES = 8
QUICK_FLUSH_S = 0.003
"""A faster flush runs in the loop's thread. While the loop is busy, the interpreter lock passes late to the writer thread and
back: measured at 16 connections, that takes longer than the flush (SQLite 15 % of the calls, PostgreSQL 60 %)."""
SMOOTHING = 0.1
PROBE_S, PROBED_FLUSH_S = 1.0, 0.02
"""While flushes seem slow, one batch per interval is tried in the loop's thread, since flushes in the writer thread seem slower
than they are. Not if the last flush took longer than the second value."""


class Callers(Protocol):
    """Receives the outcomes of a batch."""

    def resolve(self, batch: list[Entry], outcomes: list[Outcome]) -> None: ...

    def deliver(self, answers: list[tuple[Entry, Outcome]]) -> None:
        """As `resolve`, for commands that stay queued."""
        ...

    def drop(self, count: int) -> None:
        """Remove abandoned commands from the queue."""
        ...

    def hand_over(self, pending: Pending) -> None:
        """Pass the batch to the writer thread."""
        ...


class Batches:
    """Runs one transaction at a time; the caller holds the session. `stripe` identifies this process in the rollups."""

    def __init__(self, callers: Callers, clock: Callable[[], int], stripe: str) -> None:
        self._callers, self._clock, self._stripe = callers, clock, stripe
        self.flush_s = QUICK_FLUSH_S
        self.last_failure = (float("-inf"), "")
        self._next_probe = 0.0

    def may_run_in_loop(self, session: Session) -> bool:
        """Whether flushes are fast enough for the loop's thread, or a new measurement is due."""
        if self.flush_s < QUICK_FLUSH_S:
            return True
        now = time.monotonic()
        if now < self._next_probe or session.flush_s > PROBED_FLUSH_S:
            return False
        self._next_probe = now + PROBE_S
        return True

    def run(self, session: Session, batch: list[Entry], until: float | None = None) -> None:
        """Write a batch. `until` is set in the loop's thread; a batch that takes longer is handed over to the writer
        thread."""
        faulty: dict[int, BaseException] = {}
        retries = 0
        while True:
            if any(map(is_abandoned, batch)):
                batch, faulty = self._without_abandoned(batch, faulty)
            if not batch:
                return
            try:
                outcomes = self._transact(session, batch, faulty, until)
                break
            except BatchTimeout as timeout:
                if until is not None:
                    self.flush_s = max(self.flush_s, session.max_block_s)
                    self._callers.hand_over((batch, timeout))
                else:
                    self.finish(session, batch, timeout)
                return
            except _Faulty as found:
                faulty[found.index] = found.error
            except RetryTransaction as retry:
                retries += 1
                if retries == MAX_RETRIES:
                    outcomes = for_all(batch, StoreUnavailable(f"gave up after {retries} attempts: {retry.__cause__}"))
                    break
                time.sleep(0.002)
            except UnstorableData as refusal:
                if len(batch) > 1:  # invalid data of one command: find it by bisection
                    if until is not None:
                        self._callers.hand_over((batch, None))
                        return
                    self.run(session, batch[: len(batch) // 2])
                    self.run(session, batch[len(batch) // 2 :])
                    return
                outcomes = for_all(batch, BadInput(f"the database cannot store this: {refusal}"))
                break
            except OvernightError as error:
                outcomes = self._failed(batch, error)
                break
            except BaseException as error:
                outcomes = self._failed(batch, StoreUnavailable(f"{type(error).__name__}: {error}"))
                break
        self._callers.resolve(batch, outcomes)

    def _failed(self, batch: list[Entry], error: OvernightError) -> list[Outcome]:
        self.last_failure = (time.monotonic(), str(error))
        return for_all(batch, error)

    def finish(self, session: Session, batch: list[Entry], timeout: BatchTimeout | None) -> None:
        """Complete a batch whose transaction was interrupted: write it again unless it was committed."""
        if timeout is None or timeout.transaction_id is None:
            self.run(session, batch)
            return

        def report(error: StoreUnavailable) -> None:
            """Fail the callers without a deadline. The others may still receive the outcome."""
            self._callers.deliver([(entry, (None, error)) for entry in batch if entry[3] is None])

        try:
            committed = session.was_committed(timeout.transaction_id, report)
        except OvernightError as error:
            self._callers.resolve(batch, self._failed(batch, error))
            return
        except Exception as error:
            why = f"the outcome of the write is unknown: {type(error).__name__}: {error}"
            self._callers.resolve(batch, self._failed(batch, StoreUnavailable(why)))
            return
        if committed:
            self._callers.resolve(batch, timeout.outcomes)
        else:
            self.run(session, batch)

    def _without_abandoned(
        self, batch: list[Entry], faulty: dict[int, BaseException]
    ) -> tuple[list[Entry], dict[int, BaseException]]:
        """Remove abandoned commands from the batch."""
        kept = [index for index, entry in enumerate(batch) if not is_abandoned(entry)]
        self._callers.drop(len(batch) - len(kept))
        return [batch[index] for index in kept], {new: faulty[old] for new, old in enumerate(kept) if old in faulty}

    def _transact(
        self, session: Session, batch: list[Entry], faulty: dict[int, BaseException], until: float | None
    ) -> list[Outcome]:
        now = self._clock()
        month = month_of(now)
        if until is None:
            session.create_partitions(month)
        elif not session.has_partitions(month):
            raise BatchTimeout
        outcomes: list[Outcome] = []
        try:
            with session.transaction(until):
                self._decide(session, batch, faulty, outcomes, now)
                crash_point("batch_written")
            crash_point("batch_committed")
        except BatchTimeout as timeout:
            timeout.outcomes = outcomes
            raise
        if until is not None and session.flush_s < QUICK_FLUSH_S <= self.flush_s:
            self.flush_s = session.flush_s  # a measurement: flushes are fast in this thread
        self.flush_s += SMOOTHING * (session.flush_s - self.flush_s)
        return outcomes

    def _decide(
        self, session: Session, batch: list[Entry], faulty: dict[int, BaseException], outcomes: list[Outcome], now: int
    ) -> None:
        unit = Unit(session, now, self._stripe)
        unit.lock(chain.from_iterable(entry[0].locks() for entry in batch))
        for index, entry in enumerate(batch):
            if index in faulty:
                outcomes.append((None, faulty[index]))
                continue
            if is_abandoned(entry):  # abandoned while the locks were acquired
                outcomes.append((None, StoreUnavailable(TOO_LATE)))
                continue
            try:
                outcomes.append((entry[0].decide(unit), None))
            except (StoreUnavailable, session.Error):
                raise
            except OvernightError as refusal:
                outcomes.append((None, refusal))
            except Exception as error:
                # An internal error may have left a partial change in the unit: start over without the command.
                raise _Faulty(index, error) from error
        unit.flush()


class _Faulty(Exception):
    def __init__(self, index: int, error: BaseException) -> None:
        self.index, self.error = index, error
