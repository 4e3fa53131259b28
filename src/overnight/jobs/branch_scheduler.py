"""The scheduler of the branches of one running job: it orders the delivery of answers, and parks the job."""

import asyncio
import contextlib
from collections.abc import Generator
from typing import Any, TypeVar

import msgspec

from overnight.domain import Recorded

from .background_tasks import BackgroundTasks
from .boundary_log import BoundaryLog
from .commands import ClearWakeSignal, Park
from .external_events import ExternalEvents
from .positions import Position, Scope
from .replay.delivery_order import DeliveryOrder
from .replay.history import position_of
from .run_state import JobEvicted, RunState

T = TypeVar("T")
SHORT_WAIT_US = 1_000_000
WITHOUT_EVENTS = frozenset({"timer", "budget"})
"""Kinds of waits that end without an event in the job's own log."""


class PendingWait(msgspec.Struct):
    """A boundary that only an external event, or time, can answer."""

    facts: dict[str, Any]
    future: "asyncio.Future[Recorded]"
    scope: Scope


class BranchScheduler:
    """Counts work in progress, orders deliveries, and parks the job when nothing can run.

    `replaying` is set while recorded answers are replayed: until then the job does not park.
    """

    def __init__(
        self, log: BoundaryLog, state: RunState, background: BackgroundTasks, external_events: ExternalEvents
    ) -> None:
        self._log, self._state, self._background, self._external = log, state, background, external_events
        self.order = DeliveryOrder(background.start, self._read_expected_events, self.consider_parking)
        self.replaying = False
        self._waits: dict[Position, PendingWait] = {}
        self._deadlines: dict[Position, int] = {}
        self._suspended: dict[asyncio.Future[Any], Scope] = {}
        self._branches = self._in_progress = self._timeouts = self._receiving = 0
        self._parking = False

    # ── what is in progress ──────────────────────────────────────────────────────────────────────────────────────────

    def branch_started(self) -> None:
        self.order.record_activity()
        self._branches += 1

    def branch_ended(self) -> None:
        self.order.record_activity()
        self._branches -= 1
        self.consider_parking()

    @contextlib.contextmanager
    def in_progress(self) -> Generator[None]:
        """Keep the job from parking while the block runs."""
        self._in_progress += 1
        try:
            yield
        finally:
            self._in_progress -= 1
            self.consider_parking()

    async def suspend(self, future: "asyncio.Future[T]", scope: Scope) -> T:
        """Await a future of the replay. Meanwhile the steps around it do not count as in progress."""
        self._suspended[future] = scope
        try:
            return await future
        finally:
            del self._suspended[future]

    def is_busy(self) -> bool:
        """Whether anything is in progress. A step that only waits is not."""
        scopes = [wait.scope for wait in self._waits.values()]
        scopes += [scope for future, scope in self._suspended.items() if not future.done()]
        waiting_steps = {id(step) for scope in scopes for step in scope.steps}
        return self._receiving > 0 or self._in_progress > len(waiting_steps)

    # ── delivery ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def is_sequential(self) -> bool:
        """Whether the order of deliveries cannot matter: a single branch, and no time limit that could interrupt it."""
        return self._branches <= 1 and not self._timeouts

    async def wait_turn(self, seq: int) -> None:
        """Wait until the answer with this seq may be delivered."""
        if not self.is_sequential():
            await self.order.enqueue(seq)

    async def deliver(self, scope: Scope, answer: Recorded) -> Recorded:
        """Wait for the turn of a committed answer, and keep it for a retry of the step."""
        await self.wait_turn(answer.seq)
        self._log.add_answer(scope, answer)
        return answer

    # ── time limits ──────────────────────────────────────────────────────────────────────────────────────────────────

    def open_timeout(self) -> None:
        self._timeouts += 1

    def set_deadline(self, position: Position, due_at: int) -> None:
        """Set the end of a time limit, in microseconds: a parked job is woken at `due_at`."""
        self._deadlines[position] = due_at

    def close_timeout(self, position: Position) -> None:
        self._timeouts -= 1
        self._deadlines.pop(position, None)

    # ── waits ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def wait_outside(self, scope: Scope, position: Position, facts: dict[str, Any]) -> Recorded:
        """The answer to a boundary that only an external event or time can give. Meanwhile the job may park."""
        early = self._log.history.answers.get(position) or self._external.decisions.get(facts.get("review_id", ""))
        if early is not None:
            await self.wait_turn(early.seq)
            return early
        future: asyncio.Future[Recorded] = asyncio.get_running_loop().create_future()
        facts = {**facts, "path": position[0], "ordinal": position[1]}
        self._waits[position] = PendingWait(facts, future, scope)
        self.consider_parking()
        try:
            return await future
        finally:
            self._waits.pop(position, None)

    def end_wait(self, position: Position, answer: Recorded) -> None:
        """Answer the wait at this position, if there is one."""
        wait = self._waits.get(position)
        if wait is not None:
            _resolve(wait, answer)

    # ── external events ──────────────────────────────────────────────────────────────────────────────────────────────

    async def receive_events(self) -> None:
        """React to the job's wake signal. During a replay the signal stays set until the replay is over."""
        if self.replaying:
            return
        self._receiving += 1
        try:
            await self._log.commit(ClearWakeSignal(self._log.job.job_id, self._log.job.lease_epoch))
            await self.read_events()
        finally:
            self._receiving -= 1
        self.consider_parking()

    async def _read_expected_events(self) -> None:
        """Deliver external events before an answer of this worker that was recorded later, as every replay does."""
        waits = self._waits.values()
        if not self.replaying and (
            self._external.expected or any(wait.facts["for"] not in WITHOUT_EVENTS for wait in waits)
        ):
            await self.read_events()

    async def read_events(self) -> None:
        """Read new external events, and queue each for the branch that waits for it."""
        for event in await self._external.read():
            wait = self._find_wait(event)
            if wait is None:
                continue
            if self.is_sequential():
                _resolve(wait, event)
            else:
                turn = self.order.enqueue(event.seq)
                turn.add_done_callback(lambda _, wait=wait, event=event: _resolve(wait, event))

    def _find_wait(self, event: Recorded) -> PendingWait | None:
        place, review_id = position_of(event), (event.facts.detail or {}).get("review_id")
        if place is not None:
            return self._waits.get(place) if self._log.history.answers.get(place) is event else None
        waits = self._waits.values()
        return next((wait for wait in waits if review_id and wait.facts.get("review_id") == review_id), None)

    # ── parking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def consider_parking(self) -> None:
        """Begin to park if nothing can run."""
        if self._parking or self._state.evicted:
            return
        if self._waits and not self.replaying and not self.is_busy():
            self._parking = True
            self._background.start(self._park_when_idle())

    async def _park_when_idle(self) -> None:
        await self.order.wait_idle()
        self._parking = False
        state = self._state
        if self.is_busy() or not self._waits or self.replaying or self.order.delivering:
            return
        if state.evicted or state.cancelling:
            return
        due = [wait.facts["due_at"] for wait in self._waits.values() if wait.facts.get("due_at") is not None]
        due += self._deadlines.values()
        if due and min(due) - self._log.store.clock() < SHORT_WAIT_US:
            return
        waits = [wait.facts for wait in self._waits.values()]
        waits += [{"for": "timer", "due_at": at, "path": p, "ordinal": o} for (p, o), at in self._deadlines.items()]
        with contextlib.suppress(JobEvicted):
            if await self._log.commit(Park(self._log.job.job_id, self._log.job.lease_epoch, waits)):
                state.evict()


def _resolve(wait: PendingWait, event: Recorded) -> None:
    if not wait.future.done():
        wait.future.set_result(event)
