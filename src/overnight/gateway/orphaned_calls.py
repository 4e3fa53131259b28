"""Calls whose process died: their reservations are settled as lost by any process that survives."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

import msgspec

from overnight.budgets import BUDGET_SQL
from overnight.domain import StoreUnavailable
from overnight.ledger import RENEWAL_INTERVAL_S, JobRow, delete_dead_processes, is_dead
from overnight.store import Store

from .admission.commands import SettleLost
from .admission.due_settlements import Settlements

log = logging.getLogger("overnight.gateway")
UNSERVED_EVERY = 5
"""Sweeps between two looks for reservations of this process that no call of it holds."""

FORGET_EVERY = 3600
"""Sweeps between two looks for rows of dead processes."""

SILENT_AFTER_S = 15.0
"""Three beats of a registration."""

SUSPECT_AFTER_S = 6.0
"""A beat and a second. From then on the calls of a silent owner are noted, and each new one has to stand as long as its owner."""

MIN_RENEWALS = 3
"""Renewals of this process' own row that were seen while another one stood still."""

MAX_RENEWAL_S = RENEWAL_INTERVAL_S + 3.0
"""Between two renewals of this process' own row. After a longer time nobody could write, or this process was asleep."""

MAX_GAP_S = 5.0
"""Between two reads."""

WATCH_EVERY_S = 1.0
PEERS_EVERY = 10
"""Looks for dead processes between two looks for live ones: each of these has renewed its row meanwhile."""

AT_ONCE = 1000
LOST_GATEWAY = "its gateway died while the call was in flight"


class Dead(msgspec.Struct, frozen=True):
    """An owner that is dead. `silent` where only its silence tells so: its `seen_at`, in a tuple since it may be missing."""

    owner: str
    silent: tuple[int | None] | None = None


class Silence(msgspec.Struct, frozen=True):
    """A row of an owner that stands still at `seen_at`.

    Fields:
        since: when this process saw it first, in its monotonic seconds.
        renewals: those of this process' own row at that time.
    """

    seen_at: int | None
    since: float
    renewals: int

    def is_long(self, now: float, renewals: int) -> bool:
        return now - self.since >= SILENT_AFTER_S and renewals - self.renewals >= MIN_RENEWALS


class NotedCalls(msgspec.Struct, frozen=True):
    """The calls of a silent owner, while its row stands still at `seen_at`.

    Fields:
        calls: by call id: the call, its job, and the silence in which it is in flight. This is the owner's for the calls that
            were there when it became suspect. A call seen later is one that the owner made after it woke, before it renewed
            its row: its own silence begins at its first sight.
    """

    seen_at: int | None
    calls: dict[str, tuple[str, str, Silence]]


class OrphanWatch:
    """Find owners of reservations that are dead.

    An owner is dead when its process is gone from this host, or when its row in `worker` has not changed (or is missing)
    during 15 seconds in which this process has read without a gap and renewed its own row in time. Where its own renewals
    are late, the store takes no writes, so nobody's silence means anything. `monotonic` gives seconds.

    Attributes:
        suspects: the owners that are silent but may be alive.
        renewals: of this process' own row, without an interruption.
    """

    def __init__(self, store: Store, owner: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store, self._owner, self._monotonic = store, owner, monotonic
        self._watched: dict[str, Silence] = {}
        self._read_at = 0.0
        self._own_seen_at: int | None = None
        self._renewed_at = 0.0
        self.suspects: dict[str, Silence] = {}
        self.renewals = 0

    async def dead_owners(self) -> list[Dead]:
        """Read once; call it about every second. Raises StoreUnavailable."""
        rows = await self._store.read(BUDGET_SQL["list_reservation_owners"], {"owner": self._owner})
        now = self._monotonic()
        own = next((seen_at for owner, _, _, seen_at in rows if owner == self._owner), None)
        if own is None or now - self._read_at > MAX_GAP_S or now - self._renewed_at > MAX_RENEWAL_S:
            self._watched.clear()
            self.renewals = 0
        if own != self._own_seen_at:
            self._own_seen_at, self._renewed_at = own, now
            self.renewals += 1
        self._read_at = now
        before, self._watched = self._watched, {}
        self.suspects = {}
        dead: list[Dead] = []
        for owner, host, pid, seen_at in rows:
            if owner == self._owner:
                continue
            fresh = Silence(seen_at, now, self.renewals)
            last = before.get(owner, fresh)
            self._watched[owner] = last = last if last.seen_at == seen_at else fresh
            if host is not None and is_dead(host, pid):
                dead.append(Dead(owner))
                continue
            if now - last.since >= SUSPECT_AFTER_S:
                self.suspects[owner] = last
            if self.is_long(last):
                dead.append(Dead(owner, (seen_at,)))
        return dead

    def is_long(self, silence: Silence) -> bool:
        """Whether a silence that was seen at the last read has lasted long enough."""
        return silence.is_long(self._read_at, self.renewals)

    def silence_at_first_sight(self, owner: Silence) -> Silence:
        """The silence of the calls that an owner has when it becomes suspect: its own, and no longer than it usually is then."""
        return Silence(owner.seen_at, max(owner.since, self._read_at - SUSPECT_AFTER_S - WATCH_EVERY_S), owner.renewals)

    def silence_of_call(self, owner: Silence) -> Silence:
        """The silence of a call that this process sees for the first time."""
        return Silence(owner.seen_at, self._read_at, self.renewals)


class OrphanedCalls:
    """Settle calls as lost. `freed` is called after some were: others may have room now. `monotonic` gives seconds.

    Attributes:
        has_peers: whether other processes share the store, as far as their rows in `worker` are renewed.
    """

    def __init__(
        self,
        store: Store,
        owner: str,
        settlements: Settlements,
        freed: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._owner, self._settlements, self._freed = store, owner, settlements, freed
        self._watch = OrphanWatch(store, owner, monotonic)
        self.has_peers = False
        self._peers_renewed = ""
        self._looks = 0
        self._dead: list[Dead] = []
        self._noted: dict[str, NotedCalls] = {}
        self._unserved: set[str] = set()
        self._sweeps = 0

    async def watch(self) -> None:
        """Look for dead processes about every second, whatever else a sweep has to do, until it is cancelled."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            try:
                await self.look()
            except StoreUnavailable:
                self._dead = []
            except Exception:
                log.exception("dead processes could not be looked for by a fault of ours, trying again")

    async def look(self) -> None:
        """Look for dead processes once; the next sweep settles their calls. Raises StoreUnavailable."""
        self._dead = await self._watch.dead_owners()
        await self._note_calls()
        if self._looks % PEERS_EVERY == 0:
            await self._look_for_peers()
        self._looks += 1

    async def sweep(self) -> None:
        """Write what is due, and settle the calls of dead processes; call it about every second. Raises StoreUnavailable."""
        await self._settlements.write_due()
        dead, self._dead = self._dead, []
        for each in dead:
            if each.silent is None:
                count = await self.settle_owner(each.owner)
            else:
                count = await self._settle_silent(each.owner, each.silent[0])
            if count:
                log.warning("process %s ended; settled %d of its calls in flight as lost", each.owner, count)
        if self._sweeps % UNSERVED_EVERY == 0:
            await self._lose_unserved()
        if self._sweeps % FORGET_EVERY == 0:
            await delete_dead_processes(self._store)
        self._sweeps += 1

    async def settle_lost(self, job: JobRow) -> int:
        """Settle the calls that older leases of this job left in flight as lost; how many there were.

        Calls of HTTP clients for the job are not among them: their gateway serves them regardless of leases."""
        values = {"job_id": job.job_id, "lease_epoch": job.lease_epoch}
        rows = await self._store.read(BUDGET_SQL["list_reservations"], values)
        return await self._lose([(row[0], row[1]) for row in rows], "its worker was lost while the call was in flight")

    async def settle_owner(self, owner: str) -> int:
        """Settle what a process that is known to be dead has left in flight; how many calls there were."""
        return await self._lose(await self._owned(owner), LOST_GATEWAY)

    async def _look_for_peers(self) -> None:
        count, renewed = (await self._store.read(BUDGET_SQL["sum_renewals_of_others"], {"owner": self._owner}))[0]
        self.has_peers = count > 0 and renewed != self._peers_renewed
        self._peers_renewed = renewed

    async def _note_calls(self) -> None:
        """Note the calls of silent owners, and which of their calls were noted before."""
        before, self._noted = self._noted, {}
        for owner, silence in self._watch.suspects.items():
            noted = before.get(owner)
            known: dict[str, tuple[str, str, Silence]] = {}
            fresh = self._watch.silence_at_first_sight(silence)
            if noted is not None and noted.seen_at == silence.seen_at:
                known, fresh = noted.calls, self._watch.silence_of_call(silence)
            calls = {call[0]: known.get(call[0], (*call, fresh)) for call in await self._owned(owner)}
            self._noted[owner] = NotedCalls(silence.seen_at, calls)

    async def _settle_silent(self, owner: str, seen_at: int | None) -> int:
        """Settle the calls of an owner whose row stands still at `seen_at`; how many there were.

        The owner may wake meanwhile, make new calls before it renews its row, and be stopped again. So each call has to stand as
        long as a silent owner; and nothing is settled once the owner has renewed its row.
        """
        noted = self._noted.get(owner)
        if noted is None or noted.seen_at != seen_at:
            return 0
        calls = [(call_id, job_id) for call_id, job_id, silence in noted.calls.values() if self._watch.is_long(silence)]
        return await self._lose(calls, LOST_GATEWAY, (owner, seen_at))

    async def _owned(self, owner: str) -> list[tuple[str, str]]:
        calls: list[tuple[str, str]] = []
        after = ""
        while rows := await self._store.read(BUDGET_SQL["list_owned_reservations"], {"owner": owner, "after": after}):
            calls += [(row[0], row[1]) for row in rows]
            after = rows[-1][0]
        return calls

    async def _lose(
        self, calls: Sequence[tuple[str, str]], why: str, silent: tuple[str, int | None] | None = None
    ) -> int:
        lost = 0
        for first in range(0, len(calls), AT_ONCE):
            commands = [SettleLost(call_id, job_id, why, silent) for call_id, job_id in calls[first : first + AT_ONCE]]
            lost += sum(await asyncio.gather(*map(self._store.commit, commands)))
        if calls:
            self._freed()
        return lost

    async def _lose_unserved(self) -> None:
        """Settle reservations of this process that no call of it holds: seen twice, so that none is just being settled."""
        unserved = {row[0]: row for row in await self._owned(self._owner) if not self._settlements.holds(row[0])}
        seen_twice = self._unserved & unserved.keys()
        await self._lose([unserved[each] for each in seen_twice], "no call of its process held it")
        self._unserved = set(unserved) - seen_twice
