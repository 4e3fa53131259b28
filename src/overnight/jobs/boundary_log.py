"""The boundary log of one running job: it writes events under the job's lease, and keeps the history."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from overnight.domain import Event, Fenced, Recorded, StoreUnavailable
from overnight.ledger import Append, JobRow, Ledger
from overnight.store import Command, Store

from .commands import Park
from .lease import Lease, LeaseLost
from .positions import Position, Scope
from .replay.history import BoundaryState, History, position_of
from .run_state import JobEvicted, RunState


class BoundaryLog:
    """Reads and writes the log of a leased job. When the lease is lost or the store is gone, the job is evicted."""

    def __init__(self, store: Store, job: JobRow, history: History, lease: Lease, state: RunState) -> None:
        self.store, self.job, self.history, self.lease = store, job, history, lease
        self.ledger = Ledger(store)
        self._state = state
        self._is_leaving = False

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def check_lease(self) -> None:
        """Raise LeaseLost if the job has left, or its lease may have run out.

        Call it directly before a call with external effects or costs, in the thread of that call.
        """
        if self._state.evicted:
            raise LeaseLost(f"{self.job.job_id} has left this worker")
        self.lease.check()

    async def commit(self, command: Command[Any]) -> Any:
        """Commit a command as this job's worker; see `or_evict`."""
        self._state.check()
        return await self.or_evict(self.store.commit(command))

    async def or_evict(self, operation: Coroutine[Any, Any, Any]) -> Any:
        """Await an operation. If the lease is lost or the store is gone, evict the job and raise JobEvicted."""
        try:
            return await operation
        except (Fenced, StoreUnavailable) as error:
            self._state.evict(error)
            raise JobEvicted(self.job.job_id) from None

    async def record(
        self,
        event: Event,
        position: Position,
        fingerprint: str | None = None,
        content: bytes | None = None,
    ) -> Recorded:
        """Commit an event at a position. Returns it as it will be read back."""
        seq = await self.commit(self._append(event, position, fingerprint, content))
        return Recorded(
            job_id=self.job.job_id,
            seq=seq,
            at=0,
            facts=event,
            path=position[0],
            ordinal=position[1],
            fingerprint=fingerprint,
            content=content,
            tenant_id=self.job.tenant_id,
        )

    def _append(
        self, event: Event, position: Position, fingerprint: str | None = None, content: bytes | None = None
    ) -> Append:
        return Append(
            job_id=self.job.job_id,
            event=event,
            content=content,
            lease_epoch=self.job.lease_epoch,
            path=position[0],
            ordinal=position[1],
            fingerprint=fingerprint,
        )

    def defer(
        self,
        event: Event,
        position: Position,
        fingerprint: str | None = None,
        content: bytes | None = None,
        then: Callable[[int], None] | None = None,
    ) -> None:
        """Write an event no later than the next commit of this worker; `then` is called with its seq."""
        self._state.check()
        self._ride(self._append(event, position, fingerprint, content), then)

    def defer_fact(self, event: Event) -> None:
        """Defer an event without a position (see `defer`). It is written even while the job leaves."""
        self._ride(Append(self.job.job_id, event, None, self.job.lease_epoch), None)

    def _ride(self, command: Append, then: Callable[[int], None] | None) -> None:
        self.store.defer(command).add_done_callback(functools.partial(self._rode, then))

    def _rode(self, then: Callable[[int], None] | None, future: "asyncio.Future[int]") -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            if then is not None:
                then(future.result())
        elif not self._state.evicted:
            self._state.evict(error)

    async def diverge(self, difference: dict[str, Any], *, hold: bool = True) -> None:
        """Park the job with the first difference between its code and its history. With `hold`, never return."""
        event = Event("diverged", attempt=self.job.attempt, name=difference.get("boundary"), detail=difference)
        event.decision = {"why": difference.get("why")}
        await self._park_and_leave({"for": "divergence", **difference}, [event])
        if hold:
            await self._hold()

    async def quarantine(self, why: str) -> NoReturn:
        """Park the job until a person has repaired what it lacks. Never returns."""
        await self._park_and_leave({"for": "quarantine", "why": why}, [])
        await self._hold()

    async def _park_and_leave(self, wait: dict[str, Any], events: list[Event]) -> None:
        """Park the job for a person, once: further branches with a reason to park wait for their eviction."""
        if self._is_leaving:
            await self._hold()
        self._is_leaving = True
        await self.commit(Park(self.job.job_id, self.job.lease_epoch, [wait], events))
        self._state.evict()

    async def _hold(self) -> NoReturn:
        while True:
            await asyncio.get_running_loop().create_future()

    # ── the history ──────────────────────────────────────────────────────────────────────────────────────────────────

    def add_answer(self, scope: Scope, answer: Recorded) -> None:
        """Keep an answer inside a step: a retry of the step may need it."""
        place = position_of(answer)
        if scope.steps and place is not None:
            self.history.answers[place] = answer

    def add_entry(self, position: Position, entry: Recorded) -> None:
        """Keep the entry of a boundary that an external event will answer."""
        self.history.entries[position] = entry
        self.history.retained.pop(position, None)

    def find_entry(self, scope: Scope, position: Position) -> Recorded | None:
        """The entry of a boundary that was reached before: in an earlier lease, or retained from an earlier attempt."""
        retained = self.history.retained.get(position)
        if retained is not None and retained.entry is not None:
            self.defer(self.kept_event(scope, retained, entry_only=True), position)
            self.history.keep(position, None)
        return self.history.entries.get(position)

    def kept_event(self, scope: Scope, retained: BoundaryState, *, entry_only: bool = False) -> Event:
        """The `boundary_kept` event: a retained answer is valid, or with `entry_only` its entry."""
        recorded = retained.entry if entry_only or retained.answer is None else retained.answer
        event = Event("boundary_kept", step=scope.name, attempt=self.job.attempt, about=scope.about, detail={})
        if recorded is not None:
            event.kind, event.name = recorded.facts.kind, recorded.facts.name
            event.detail = {} if recorded is retained.entry else {"of": recorded.seq}
        if retained.was is not None:
            event.detail = {**(event.detail or {}), "was": {"path": retained.was[0], "ordinal": retained.was[1]}}
        return event
