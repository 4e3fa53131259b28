"""Write a batch of commands as one transaction, and try again what may be tried again."""

import time
from collections.abc import Callable
from typing import Protocol

from overnight.domain import BadInput, OvernightError, StoreUnavailable, month_of

from .pending_commands import (
    TOO_LATE,
    Entry,
    Outcome,
    Pending,
    for_all,
    has_left,
)
from .unit import Later, Redo, Session, Unit, Unwritable

MOST_REDOS = 8
QUICK_FLUSH_S = 0.003
"""A flush that takes less is made in the loop's own thread. The interpreter's lock is handed to the writing thread and back late
while the loop is busy: measured at 16 connections, that costs more than waiting (SQLite 15 % of the calls, PostgreSQL 60 %)."""
SMOOTHING = 0.1
PROBE_S, PROBED_FLUSH_S = 1.0, 0.02
"""While flushes seem slow, a batch is tried in the loop's thread this often (in the writing thread they look slower than they
are), but not where the last flush took longer than the second figure."""


class Callers(Protocol):
    """What a batch tells of its commands."""

    def resolve(self, batch: list[Entry], outcomes: list[Outcome]) -> None: ...

    def hand_on(self, answers: list[tuple[Entry, Outcome]]) -> None:
        """As `resolve`, for commands that stay in line."""
        ...

    def drop(self, count: int) -> None:
        """Commands that nobody waits for any more."""
        ...

    def put_off(self, pending: Pending) -> None:
        """Leave the batch to the writing thread."""
        ...


class Batches:
    """Transactions, one at a time; the caller has the session's turn. `stripe` names this process in the rollups."""

    def __init__(self, callers: Callers, clock: Callable[[], int], stripe: str) -> None:
        self._callers, self._clock, self._stripe = callers, clock, stripe
        self.flush_s = QUICK_FLUSH_S
        self.last_failure = (float("-inf"), "")
        self._next_probe = 0.0

    def fit_the_loop(self, session: Session) -> bool:
        """Whether flushes are quick enough for the loop's own thread, or it is time to look whether they are."""
        if self.flush_s < QUICK_FLUSH_S:
            return True
        now = time.monotonic()
        if now < self._next_probe or session.flush_s > PROBED_FLUSH_S:
            return False
        self._next_probe = now + PROBE_S
        return True

    def run(self, session: Session, batch: list[Entry], until: float | None = None) -> None:
        """Write a batch. In the loop's thread, where there is an `until`, what takes longer is left to the writing thread."""
        faulty: dict[int, BaseException] = {}
        redos = 0
        while True:
            if any(has_left(entry) for entry in batch):
                batch, faulty = self._without_left(batch, faulty)
            if not batch:
                return
            try:
                outcomes = self._transact(session, batch, faulty, until)
                break
            except Later as later:
                if until is not None:
                    self.flush_s = max(self.flush_s, session.patience_s)
                    self._callers.put_off((batch, later))
                else:
                    self.finish(session, batch, later)
                return
            except _Faulty as found:
                faulty[found.index] = found.error
            except Redo as redo:
                redos += 1
                if redos == MOST_REDOS:
                    outcomes = for_all(batch, StoreUnavailable(f"gave up after {redos} tries: {redo.__cause__}"))
                    break
                time.sleep(0.002)
            except Unwritable as refusal:
                if len(batch) > 1:  # somebody's data: find whose by halves
                    if until is not None:
                        self._callers.put_off((batch, None))
                        return
                    self.run(session, batch[: len(batch) // 2])
                    self.run(session, batch[len(batch) // 2 :])
                    return
                outcomes = for_all(batch, BadInput(f"the database cannot keep this: {refusal}"))
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

    def finish(self, session: Session, batch: list[Entry], later: Later | None) -> None:
        """Write a batch whose transaction broke off, unless that was committed after all."""
        if later is None or later.lost is None:
            self.run(session, batch)
            return

        def tell(error: StoreUnavailable) -> None:
            """Who has set no time for it waits no longer; the others may still hear that it was committed."""
            self._callers.hand_on([(entry, (None, error)) for entry in batch if entry[3] is None])

        try:
            committed = session.was_committed(later.lost, tell)
        except OvernightError as error:
            self._callers.resolve(batch, self._failed(batch, error))
            return
        except Exception as error:
            why = f"the outcome of the write is not known: {type(error).__name__}: {error}"
            self._callers.resolve(batch, self._failed(batch, StoreUnavailable(why)))
            return
        if committed:
            self._callers.resolve(batch, later.outcomes)
        else:
            self.run(session, batch)

    def _without_left(
        self, batch: list[Entry], faulty: dict[int, BaseException]
    ) -> tuple[list[Entry], dict[int, BaseException]]:
        """The batch without the commands whose callers have left."""
        kept = [index for index, entry in enumerate(batch) if not has_left(entry)]
        self._callers.drop(len(batch) - len(kept))
        return [batch[index] for index in kept], {new: faulty[old] for new, old in enumerate(kept) if old in faulty}

    def _transact(
        self, session: Session, batch: list[Entry], faulty: dict[int, BaseException], until: float | None
    ) -> list[Outcome]:
        now = self._clock()
        month = month_of(now)
        if until is None:
            session.month(month)
        elif not session.has_month(month):
            raise Later
        outcomes: list[Outcome] = []
        try:
            with session.transaction(until):
                self._decide(session, batch, faulty, outcomes, now)
        except Later as later:
            later.outcomes = outcomes
            raise
        if until is not None and session.flush_s < QUICK_FLUSH_S <= self.flush_s:
            self.flush_s = session.flush_s  # a probe: flushes are quick here
        self.flush_s += SMOOTHING * (session.flush_s - self.flush_s)
        return outcomes

    def _decide(
        self, session: Session, batch: list[Entry], faulty: dict[int, BaseException], outcomes: list[Outcome], now: int
    ) -> None:
        unit = Unit(session, now, self._stripe)
        unit.lock(lock for command, *_ in batch for lock in command.locks())
        for index, entry in enumerate(batch):
            if index in faulty:
                outcomes.append((None, faulty[index]))
                continue
            if has_left(entry):  # while the locks were waited for
                outcomes.append((None, StoreUnavailable(TOO_LATE)))
                continue
            try:
                outcomes.append((entry[0].decide(unit), None))
            except (StoreUnavailable, session.Error):
                raise
            except OvernightError as refusal:
                outcomes.append((None, refusal))
            except Exception as error:
                # A fault in our own rules may have left half a change in the unit: start over without it.
                raise _Faulty(index, error) from error
        unit.flush()


class _Faulty(Exception):
    def __init__(self, index: int, error: BaseException) -> None:
        self.index, self.error = index, error
