"""The local view of all circuits: read without I/O before each call, updated by each result, refreshed every second.

The shared rows are authoritative, so that failures of all processes add up and one probe serves all of them. The
local view changes at once with the results of this process, and works alone while the store is unavailable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from contextlib import suppress

import msgspec

from overnight.domain import StoreUnavailable
from overnight.domain.policies import Breakers
from overnight.providers.error_classes import CLASSES, Failure
from overnight.store import Store

from .rows import (
    BreakerUpdate,
    ClaimProbe,
    Key,
    ReleaseProbe,
    forget_circuits,
    key_of,
    list_circuits,
)
from .state import (
    Circuit,
    claim_probe,
    count_failure,
    count_for_tenant,
    counts_for_all,
    release_probe,
    shared_breaker,
    tenant_account,
)

log = logging.getLogger("overnight.gateway")
POLL_S = 1.0
MIN_PAUSE_S = 0.05
CONFIRMED_WITHIN_US = 2_000_000
"""A local opening is dropped after this time if the store does not confirm it: another process closed the circuit."""

STALE_AFTER_US = 60_000_000
STALE_OPEN_AFTER_US = 24 * 3600 * 1_000_000
MAX_TARGETS = 4096
"""Maximum number of closed circuits. The one with the oldest failure is evicted, since model names may come from requests."""

MIN_FAILURE_SHARE = 0.5
"""Minimum share of failed calls for a failure to count, so that 1 % failures do not open the circuit of a busy target."""


class _TargetStats(msgspec.Struct):
    """A target with recent failures: its circuit, and its results in the current and the previous window.

    `own_at` is when this process last opened the circuit or extended its opening.
    """

    circuit: Circuit
    began: int
    own_at: int = 0
    failed: int = 0
    answered: int = 0
    failed_before: int = 0
    answered_before: int = 0

    def rotate_window(self, now: int, window_us: int) -> None:
        passed = (now - self.began) // window_us
        if passed > 0:
            last = (self.failed, self.answered) if passed == 1 else (0, 0)
            self.failed_before, self.answered_before = last
            self.failed = self.answered = 0
            self.began += passed * window_us

    @property
    def has_no_failures(self) -> bool:
        return not (self.failed or self.failed_before)

    @property
    def mostly_fails(self) -> bool:
        failed, answered = self.failed + self.failed_before, self.answered + self.answered_before
        return failed >= MIN_FAILURE_SHARE * (failed + answered)


class CircuitBreakers:
    """The local view. Call `start` before the first model call, in the same event loop. Times are in microseconds of
    the store's clock."""

    def __init__(self, store: Store, breaker: Breakers) -> None:
        self._store, self._breaker = store, breaker
        self._targets: dict[Key, _TargetStats] = {}
        self._open: dict[Key, Circuit] = {}
        self._wake = asyncio.Event()
        self._waiters: set[asyncio.Future[None]] = set()
        self._closed_at: dict[Key, int] = {}
        self._watcher: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._swept_at = 0

    def configure(self, breaker: Breakers) -> None:
        """Replace the settings. Open circuits stay open."""
        self._breaker = breaker

    async def start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])

    # ── before a call ───────────────────────────────────────────────────────────────────────────────────────────────

    def allows(self, account: str, model: str, own: str | None = None) -> bool:
        """Whether the circuits admit a call of this caller. No I/O, since every call passes here.

        `own` is the account of the caller's own circuit (see `caller_account`).
        """
        return not self._open or self.open_circuit(account, model, own) is None

    def open_circuit(self, account: str, model: str, own: str | None = None) -> Circuit | None:
        """The open or half-open circuit of a target: the shared one, else the caller's own. `blocked_until` is the
        earliest time of a probe.
        """
        if not self._open:
            return None
        return self._open.get((account, model)) or (self._open.get((own, model)) if own is not None else None)

    async def probe(self, circuit: Circuit, call: str, until: int, deadline: float | None = None) -> bool:
        """Claim the probe of a circuit for `call`. It excludes all other calls of all processes until `until`.

        `deadline`, in seconds of the event loop's clock, limits the wait for the store. After it this process decides
        alone.
        """
        key, now = key_of(circuit), self._store.clock()
        held = self._open.get(key)
        if held is None:
            return True  # closed in the meantime
        if not claim_probe(
            held, now, call, until
        ):  # claimed locally first, so that a thousand local callers send one request to the store
            return False
        wanted = True

        def claimed_late(outcome: tuple[bool, Circuit | None]) -> None:
            if not wanted and outcome[0]:
                self._run_in_background(self._release(key, call))

        try:
            granted, shared = await self._store.commit(
                ClaimProbe(key, call, until), until=deadline, on_late_commit=claimed_late
            )
        except StoreUnavailable:
            return True  # without the store, the local claim decides
        except BaseException:
            wanted = False
            release_probe(held, call)
            raise
        if shared is None:
            self._forget(key)
        else:
            self._open[key] = self._targets[key].circuit = shared
        return granted

    async def release(self, account: str, model: str, call: str, own: str | None = None) -> None:
        """Release the probe of a call that was cancelled or whose client disconnected."""
        for key in _keys(account, model, own):
            held = self._open.get(key)
            if held is not None and release_probe(held, call):
                self._notify_waiters()
                await self._release(key, call)

    async def _release(self, key: Key, call: str) -> None:
        with suppress(StoreUnavailable):  # the claim expires by itself
            await self._store.commit(ReleaseProbe(key, call))

    def _run_in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait_for_change(self, circuits: Iterable[Circuit], deadline: float) -> None:
        """Wait until one of the circuits may have closed or admits a probe, at most until `deadline` (event loop
        time)."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.add(waiter)
        left_us = min((each.blocked_until for each in circuits), default=0) - self._store.clock()
        try:
            async with asyncio.timeout_at(min(deadline, loop.time() + max(left_us / 1_000_000, 0.001))):
                await waiter
        except TimeoutError:
            return
        finally:
            self._waiters.discard(waiter)

    # ── after a call ────────────────────────────────────────────────────────────────────────────────────────────────

    def record_success(
        self, account: str, model: str, call: str | None = None, own: str | None = None
    ) -> BreakerUpdate | None:
        """Record a successful call. `call` is its id if its circuit was open.

        Returns: the update to commit with the settlement; None if no circuit changes.
        """
        if not self._targets:
            return None
        stats = {key: each for key in _keys(account, model, own) if (each := self._targets.get(key)) is not None}
        for each in stats.values():
            each.answered += 1
        if call is None or all(each.circuit.opened_at is None for each in stats.values()):
            return None
        now = self._store.clock()
        for key in stats:
            self._forget(key)
            self._closed_at[key] = now
        if (counted := _tenant_key(account, model, own)) is not None:
            self._forget(counted)
        return BreakerUpdate(account, model, now, self._breaker, call=call, own=own)

    def record_failure(
        self, account: str, model: str, failure: Failure, call: str | None = None, own: str | None = None
    ) -> BreakerUpdate | None:
        """Record a failed call. A rejection of the request itself counts as a success, since the target works.

        A failure counts in the caller's own circuit. It also counts in the shared circuit, until the key or its
        tenant reaches half of the failures that open it. So one caller's failing requests do not block the others.

        Returns: the update to commit with the failure; None if no circuit changes.
        """
        if not self._breaker.failures:
            return None
        if not indicates_target_fault(failure, self._breaker, probing=call is not None):
            return self.record_success(account, model, call, own)
        now, first = self._store.clock(), self._stats_of(_keys(account, model, own)[0])
        shared = self._stats_of((account, model)) if own is not None else None
        if shared is not None:
            shared.rotate_window(now, self._breaker.window_ms * 1000)
            shared.failed += 1
        why = f"{failure.error_class}: {failure.code}"
        update = BreakerUpdate(
            account=account,
            model=model,
            at=now,
            breaker=self._breaker,
            why=why,
            retry_after_ms=failure.retry_after_ms,
            call=call,
            own=own,
        )
        shared_open = (account, model) in self._open
        if not self._counts(first, update) or (shared_open and call is None and not failure.retry_after_ms):
            return None
        self._fail(first, update, self._breaker)
        counts = counts_for_all(first.circuit, now, self._breaker)
        if shared is not None and (shared_open or (counts and self._count_for_tenant(update))):
            self._fail(shared, update, shared_breaker(self._breaker))
        return update

    def _stats_of(self, key: Key) -> _TargetStats:
        """The statistics of a target that failed now. The order of the dict is the order of the last failure."""
        stats = self._targets.pop(key, None)
        if stats is None:
            if len(self._targets) - len(self._open) >= MAX_TARGETS:
                del self._targets[next(each for each in self._targets if each not in self._open)]
            stats = _TargetStats(Circuit(account=key[0], model=key[1]), self._store.clock())
        self._targets[key] = stats
        return stats

    def _count_for_tenant(self, update: BreakerUpdate) -> bool:
        key = _tenant_key(update.account, update.model, update.own)
        if key is None:
            return True
        stats = self._stats_of(key)
        stats.rotate_window(update.at, self._breaker.window_ms * 1000)
        stats.failed += 1
        return count_for_tenant(stats.circuit, update.at, self._breaker)

    def _counts(self, stats: _TargetStats, update: BreakerUpdate) -> bool:
        """Whether the failure is new information about the target."""
        stats.rotate_window(update.at, self._breaker.window_ms * 1000)
        stats.failed += 1
        if update.call is not None:
            return True
        # A call that started before the circuit opened is no new information.
        return stats.mostly_fails and (stats.circuit.opened_at is None or bool(update.retry_after_ms))

    def _fail(self, stats: _TargetStats, update: BreakerUpdate, breaker: Breakers) -> None:
        until = stats.circuit.open_until
        opened = count_failure(stats.circuit, update.at, breaker, update.why or "", update.retry_after_ms, update.call)
        if stats.circuit.open_until > until:
            stats.own_at = update.at
        if opened:
            self._open[key_of(stats.circuit)] = stats.circuit
            self._notify_waiters()

    def refresh_soon(self) -> None:
        """Refresh the view after an update was committed."""
        self._wake.set()

    # ── refresh ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def refresh(self) -> None:
        """Adopt the stored circuits. Raises StoreUnavailable."""
        began = self._store.clock()
        shared = {key_of(each): each for each in await list_circuits(self._store, only_open=True)}
        for key, circuit in shared.items():
            # A circuit that this process just closed may still be open in the store.
            if circuit.changed_at > self._closed_at.get(key, 0):
                self._adopt(key, circuit, began)
        for key in self._closed_at.keys() - shared.keys():
            del self._closed_at[key]
        now, window_us = self._store.clock(), self._breaker.window_ms * 1000
        for key, stats in list(self._targets.items()):
            stats.rotate_window(now, window_us)
            is_open = stats.circuit.opened_at is not None
            if key not in shared and (stats.own_at < began - CONFIRMED_WITHIN_US if is_open else stats.has_no_failures):
                self._forget(key)

    def _adopt(self, key: Key, circuit: Circuit, asked_at: int) -> None:
        stats = self._targets.get(key)
        if stats is None:
            stats = self._targets[key] = _TargetStats(circuit, asked_at)
        elif stats.own_at > asked_at - CONFIRMED_WITHIN_US:
            # A circuit that this process just opened may not be in the store yet.
            circuit.open_until = max(circuit.open_until, stats.circuit.open_until)
        was, stats.circuit = stats.circuit, circuit
        self._open[key] = circuit
        if was.blocked_until != circuit.blocked_until:
            self._notify_waiters()

    def _forget(self, key: Key) -> None:
        self._targets.pop(key, None)
        if self._open.pop(key, None) is not None:
            self._notify_waiters()

    def _notify_waiters(self) -> None:
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _watch(self) -> None:
        readable = True
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self.refresh()
                await self._sweep()
                readable = True
            except StoreUnavailable as error:
                if readable:
                    log.warning("circuits cannot be read; using the local view: %s", error)
                readable = False
            except Exception:
                log.exception("internal error while refreshing circuits, will retry")
            await asyncio.sleep(MIN_PAUSE_S)

    async def _sweep(self) -> None:
        now = self._store.clock()
        if now - self._swept_at > STALE_AFTER_US:
            self._swept_at = now
            closed_before = now - max(STALE_AFTER_US, 2000 * self._breaker.window_ms)
            await forget_circuits(self._store, closed_before, now - STALE_OPEN_AFTER_US)


def _keys(account: str, model: str, own: str | None) -> list[Key]:
    """The keys of the circuits that may block a caller, its own first."""
    return [(account, model)] if own is None else [(own, model), (account, model)]


def _tenant_key(account: str, model: str, own: str | None) -> Key | None:
    """The key of the row that counts failures of the caller's tenant."""
    counted = tenant_account(account, own) if own is not None else None
    return (counted, model) if counted is not None else None


def indicates_target_fault(failure: Failure, breaker: Breakers, *, probing: bool = False) -> bool:
    """Whether a failure indicates a fault of the target.

    A rate limit does so only with a long Retry-After, or for a probe, because more calls would not succeed.
    """
    if failure.error_class == "rate_limited":
        return probing or (failure.retry_after_ms or 0) >= breaker.cool_down_ms
    return CLASSES[failure.error_class].of_target
