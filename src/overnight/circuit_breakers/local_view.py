"""This process' picture of all circuits: asked without I/O before every call, told by every outcome, refreshed every second.

The shared rows are the truth, so that failures spread over many processes add up and one probe serves all. The picture
changes at once by what this process sees itself, and goes on alone while the store cannot be read.
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
    claim,
    count_for_tenant,
    counts_for_all,
    fail,
    release,
    shared_breaker,
    tenant_account,
)

log = logging.getLogger("overnight.gateway")
POLL_S = 1.0
LEAST_PAUSE_S = 0.05
CONFIRMED_WITHIN_US = 2_000_000
"""An opening seen here alone is forgotten after that, unless the store has it too: then another process closed it."""

STALE_AFTER_US = 60_000_000
STALE_OPEN_AFTER_US = 24 * 3600 * 1_000_000
MOST_TARGETS = 4096
"""Closed circuits that are kept; the one that failed longest ago gives way. Names that only a glob covers come from outside."""

LEAST_SHARE = 0.5
"""A failure counts while at least this share of the target's calls fail here, so that one in a hundred does not open the
circuit of a busy target."""


class _Seen(msgspec.Struct):
    """A target that failed lately: its circuit, and how its calls came out in this window and the one before.
    `own_at` is when this process last opened it or made it stay open longer."""

    circuit: Circuit
    began: int
    own_at: int = 0
    failed: int = 0
    answered: int = 0
    failed_before: int = 0
    answered_before: int = 0

    def turn(self, now: int, window_us: int) -> None:
        passed = (now - self.began) // window_us
        if passed > 0:
            last = (self.failed, self.answered) if passed == 1 else (0, 0)
            self.failed_before, self.answered_before = last
            self.failed = self.answered = 0
            self.began += passed * window_us

    @property
    def quiet(self) -> bool:
        return not (self.failed or self.failed_before)

    @property
    def mostly_fails(self) -> bool:
        failed, answered = self.failed + self.failed_before, self.answered + self.answered_before
        return failed >= LEAST_SHARE * (failed + answered)


class CircuitBreakers:
    """`start` it before the first call, in the loop of the calls. Times are the store's clock, in microseconds."""

    def __init__(self, store: Store, breaker: Breakers) -> None:
        self._store, self._breaker = store, breaker
        self._seen: dict[Key, _Seen] = {}
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
        """May any call go there, of this caller (see `caller_account`)? The hot path: no I/O."""
        return not self._open or self.open_circuit(account, model, own) is None

    def open_circuit(self, account: str, model: str, own: str | None = None) -> Circuit | None:
        """The circuit where it is not closed: of all, else the caller's own. `blocked_until` tells when a call may ask to be its
        probe."""
        if not self._open:
            return None
        return self._open.get((account, model)) or (self._open.get((own, model)) if own is not None else None)

    async def probe(self, circuit: Circuit, call: str, until: int, deadline: float | None = None) -> bool:
        """May this call be the one that tries? Only one may, over all processes; until `until` no other may.

        `deadline`, a time of the loop, bounds the wait for the store; then this process decides alone."""
        key, now = key_of(circuit), self._store.clock()
        held = self._open.get(key)
        if held is None:
            return True  # closed meanwhile
        if not claim(held, now, call, until):  # before asking the store, so that a thousand callers here ask once
            return False
        wanted = True

        def claimed_late(outcome: tuple[bool, Circuit | None]) -> None:
            if not wanted and outcome[0]:
                self._keep(self._release(key, call))

        try:
            granted, shared = await self._store.commit(ClaimProbe(key, call, until), until=deadline, left=claimed_late)
        except StoreUnavailable:
            return True  # alone, the picture of this process has to do
        except BaseException:
            wanted = False
            release(held, call)
            raise
        if shared is None:
            self._forget(key)
        else:
            self._open[key] = self._seen[key].circuit = shared
        return granted

    async def give_back(self, account: str, model: str, call: str, own: str | None = None) -> None:
        """The probe came to nothing that speaks of its target: it was stopped, or its caller left."""
        for key in _keys(account, model, own):
            held = self._open.get(key)
            if held is not None and release(held, call):
                self._news()
                await self._release(key, call)

    async def _release(self, key: Key, call: str) -> None:
        with suppress(StoreUnavailable):  # then its claim ends by itself
            await self._store.commit(ReleaseProbe(key, call))

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def change(self, circuits: Iterable[Circuit], deadline: float) -> None:
        """Wait until one of these may have closed, or wants a probe; at most until `deadline`, a time of the loop."""
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

    def answered(
        self, account: str, model: str, call: str | None = None, own: str | None = None
    ) -> BreakerUpdate | None:
        """A call came to an answer. `call` names it where its circuit was open. The mark belongs into its settlement."""
        if not self._seen:
            return None
        seen = {key: each for key in _keys(account, model, own) if (each := self._seen.get(key)) is not None}
        for each in seen.values():
            each.answered += 1
        if call is None or all(each.circuit.opened_at is None for each in seen.values()):
            return None
        now = self._store.clock()
        for key in seen:
            self._forget(key)
            self._closed_at[key] = now
        if (counted := _tenant_key(account, model, own)) is not None:
            self._forget(counted)
        return BreakerUpdate(account, model, now, self._breaker, call=call, own=own)

    def failed(
        self, account: str, model: str, failure: Failure, call: str | None = None, own: str | None = None
    ) -> BreakerUpdate | None:
        """A call failed; as `answered`. A refusal of the request itself is an answer: it says that the target works.

        It counts in the caller's own circuit, and there alone once the caller, or its tenant with other keys, has failed half as
        often as opens one: a caller whose requests fail does not keep the others out."""
        if not self._breaker.failures:
            return None
        if not speaks_of_target(failure, self._breaker, probing=call is not None):
            return self.answered(account, model, call, own)
        now, first = self._store.clock(), self._seen_of(_keys(account, model, own)[0])
        shared = self._seen_of((account, model)) if own is not None else None
        if shared is not None:
            shared.turn(now, self._breaker.window_ms * 1000)
            shared.failed += 1
        why = f"{failure.error_class}: {failure.code}"
        mark = BreakerUpdate(
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
        if not self._counts(first, mark) or (shared_open and call is None and not failure.retry_after_ms):
            return None
        self._fail(first, mark, self._breaker)
        counts = counts_for_all(first.circuit, now, self._breaker)
        if shared is not None and (shared_open or (counts and self._count_for_tenant(mark))):
            self._fail(shared, mark, shared_breaker(self._breaker))
        return mark

    def _seen_of(self, key: Key) -> _Seen:
        """What was seen of a target that has just failed; the latest stand at the end."""
        seen = self._seen.pop(key, None)
        if seen is None:
            if len(self._seen) - len(self._open) >= MOST_TARGETS:
                del self._seen[next(each for each in self._seen if each not in self._open)]
            seen = _Seen(Circuit(account=key[0], model=key[1]), self._store.clock())
        self._seen[key] = seen
        return seen

    def _count_for_tenant(self, mark: BreakerUpdate) -> bool:
        key = _tenant_key(mark.account, mark.model, mark.own)
        if key is None:
            return True
        seen = self._seen_of(key)
        seen.turn(mark.at, self._breaker.window_ms * 1000)
        seen.failed += 1
        return count_for_tenant(seen.circuit, mark.at, self._breaker)

    def _counts(self, seen: _Seen, mark: BreakerUpdate) -> bool:
        """Whether the failure says something new of the target."""
        seen.turn(mark.at, self._breaker.window_ms * 1000)
        seen.failed += 1
        if mark.call is not None:
            return True
        # Else it was under way when the circuit opened, and says nothing new.
        return seen.mostly_fails and (seen.circuit.opened_at is None or bool(mark.retry_after_ms))

    def _fail(self, seen: _Seen, mark: BreakerUpdate, breaker: Breakers) -> None:
        until = seen.circuit.open_until
        opened = fail(seen.circuit, mark.at, breaker, mark.why or "", mark.retry_after_ms, mark.call)
        if seen.circuit.open_until > until:
            seen.own_at = mark.at
        if opened:
            self._open[key_of(seen.circuit)] = seen.circuit
            self._news()

    def written(self) -> None:
        """A mark is durable: look what the others have made of it."""
        self._wake.set()

    # ── the picture ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def refresh(self) -> None:
        """Take over what the store says. Raises StoreUnavailable."""
        began = self._store.clock()
        shared = {key_of(each): each for each in await list_circuits(self._store, only_open=True)}
        for key, circuit in shared.items():
            # Closed here just now, which may not be written yet.
            if circuit.changed_at > self._closed_at.get(key, 0):
                self._adopt(key, circuit, began)
        for key in self._closed_at.keys() - shared.keys():
            del self._closed_at[key]
        now, window_us = self._store.clock(), self._breaker.window_ms * 1000
        for key, seen in list(self._seen.items()):
            seen.turn(now, window_us)
            is_open = seen.circuit.opened_at is not None
            if key not in shared and (seen.own_at < began - CONFIRMED_WITHIN_US if is_open else seen.quiet):
                self._forget(key)

    def _adopt(self, key: Key, circuit: Circuit, asked_at: int) -> None:
        seen = self._seen.get(key)
        if seen is None:
            seen = self._seen[key] = _Seen(circuit, asked_at)
        elif seen.own_at > asked_at - CONFIRMED_WITHIN_US:
            # What was seen here may not be written yet.
            circuit.open_until = max(circuit.open_until, seen.circuit.open_until)
        was, seen.circuit = seen.circuit, circuit
        self._open[key] = circuit
        if was.blocked_until != circuit.blocked_until:
            self._news()

    def _forget(self, key: Key) -> None:
        self._seen.pop(key, None)
        if self._open.pop(key, None) is not None:
            self._news()

    def _news(self) -> None:
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
            await asyncio.sleep(LEAST_PAUSE_S)

    async def _sweep(self) -> None:
        now = self._store.clock()
        if now - self._swept_at > STALE_AFTER_US:
            self._swept_at = now
            closed_before = now - max(STALE_AFTER_US, 2000 * self._breaker.window_ms)
            await forget_circuits(self._store, closed_before, now - STALE_OPEN_AFTER_US)


def _keys(account: str, model: str, own: str | None) -> list[Key]:
    """The circuits that stand in a caller's way, its own first."""
    return [(account, model)] if own is None else [(own, model), (account, model)]


def _tenant_key(account: str, model: str, own: str | None) -> Key | None:
    """What counts the failures of the caller's tenant."""
    counted = tenant_account(account, own) if own is not None else None
    return (counted, model) if counted is not None else None


def speaks_of_target(failure: Failure, breaker: Breakers, *, probing: bool = False) -> bool:
    """Does this failure say that the target does not work? A limit of speed does when the provider asks for a long wait;
    for a probe always, since more calls would not help."""
    if failure.error_class == "rate_limited":
        return probing or (failure.retry_after_ms or 0) >= breaker.cool_down_ms
    return CLASSES[failure.error_class].of_target
