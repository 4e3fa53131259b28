"""Leases: a worker may act for a job for a fixed time after it has sent the last acknowledged renewal.

The fence in the database keeps a lost worker from writing. Only the worker's own clocks can keep it from calling: a process
that was stopped, or a machine that slept, continues in the middle of a function without notice. Nothing can stop a process
between the check and the call, so the check is the last statement before the call, in the thread that makes it.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec

from overnight.domain import Fenced, OvernightError
from overnight.store import Command, Store

FRESH_US = 2_000_000
"""How long an external program may act on a claim without asking the store again, in microseconds."""
_UPTIME = getattr(time, "CLOCK_BOOTTIME", None) or getattr(time, "CLOCK_MONOTONIC", None)


class LeaseLost(Fenced):
    """The lease of a job may have run out: this worker may not act for the job."""


def uptime_us() -> int:
    """Microseconds since the machine was started, its sleep included: CLOCK_BOOTTIME.

    Systems without that clock use the monotonic one. Some of these leave sleep out; there only the wall clock shows it.
    """
    return (time.monotonic_ns() if _UPTIME is None else time.clock_gettime_ns(_UPTIME)) // 1000


class ClockReading(msgspec.Struct, frozen=True):
    """A reading of both clocks in microseconds. `setbacks`: how often the wall clock was seen to go back before."""

    wall_us: int
    uptime_us: int
    setbacks: int


class Clocks:
    """The wall clock and the uptime clock of a worker. May be read in any thread."""

    def __init__(self, wall: Callable[[], int], uptime: Callable[[], int] = uptime_us) -> None:
        self._wall, self._uptime = wall, uptime
        self._latest = wall()
        self._setbacks = 0

    def read(self) -> ClockReading:
        # Read the earlier value first: a later reading of another thread must not look like a clock that went back.
        before = self._latest
        wall = self._wall()
        if wall < before:
            self._setbacks += 1
        self._latest = wall
        return ClockReading(wall, self._uptime(), self._setbacks)


class Lease:
    """One job's lease for `duration_us` microseconds. `sent`: the clocks before the command that took it was sent."""

    def __init__(self, clocks: Clocks, duration_us: int, sent: ClockReading) -> None:
        self._clocks, self._duration_us, self._sent = clocks, duration_us, sent
        self._lost = False

    def renewed(self, sent: ClockReading) -> None:
        """Take the acknowledgement of a renewal sent at `sent`. One that comes too late renews nothing.

        The database extends no lease that has run out, and another worker may hold the job by now.
        """
        if not self.is_lost():
            self._sent = sent

    def is_lost(self) -> bool:
        """Whether it may have run out by either clock. A wall clock that went back counts as lost; a lost lease stays lost."""
        sent, now = self._sent, self._clocks.read()
        by_wall, by_uptime = now.wall_us - sent.wall_us, now.uptime_us - sent.uptime_us
        went_back = by_wall < 0 or now.setbacks != sent.setbacks
        if went_back or max(by_wall, by_uptime) >= self._duration_us:
            self._lost = True
        return self._lost

    def check(self) -> None:
        """Raise LeaseLost if it may have run out."""
        if self.is_lost():
            raise LeaseLost(
                "its lease has run out, or the wall clock went back: another worker may have the job by now"
            )


class AttemptCheck:
    """The check of an external program, which has no lease: its attempt lasts until the next one begins.

    The write of a claim has shown that the attempt is the current one. A call that begins more than `FRESH_US` later, by
    either clock, asks the store again: the process may have been suspended, or the call waited for a thread.
    """

    def __init__(self, store: Store, ask: Callable[[], Command[Any]]) -> None:
        self._store, self._ask = store, ask
        self._clocks = Clocks(store.clock)
        self._claim = Lease(self._clocks, FRESH_US, self._clocks.read())

    def begin(self) -> None:
        """A write that shows whose attempt it is follows."""
        self._claim = Lease(self._clocks, FRESH_US, self._clocks.read())

    def check(self) -> None:
        """Raise LeaseLost if the attempt may have ended. In a thread of its own, the store is asked."""
        if not self._claim.is_lost():
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            try:
                while self._claim.is_lost():
                    self.begin()
                    self._store.commit_blocking(self._ask())
            except OvernightError as error:
                raise LeaseLost(str(error)) from None
        else:
            raise LeaseLost("more time has passed since the claim than a call needs to begin")
