"""Recovery: replays recorded answers in recorded order. Boundaries without an answer wait until the history is used up."""

import asyncio
from typing import Any

from overnight.domain import Event, Recorded
from overnight.ledger import Append

from ..boundary_log import BoundaryLog
from ..branch_scheduler import BranchScheduler
from ..positions import Position, Scope, enclosing
from ..run_state import RunState
from ..task_registry import TaskRegistry, Work

POLL_S = 0.002


class Recovery:
    """The replay of one job. `pending`: answers that its code has not received yet, by position, in order."""

    def __init__(self, log: BoundaryLog, scheduler: BranchScheduler, tasks: TaskRegistry, state: RunState) -> None:
        self._log, self._scheduler, self._tasks, self._state = log, scheduler, tasks, state
        self.pending = {(a.path or "", a.ordinal or 0): a for a in log.history.order if a.facts.kind != "value"}
        # Steps without an answer that contain recorded answers: their bodies run during the replay.
        self._reopened = {step for answer in self.pending.values() for step in enclosing(answer.path or "")}
        scheduler.replaying = bool(self.pending)
        self._asked: dict[Position, asyncio.Future[Recorded | None]] = {}
        self._held: list[asyncio.Future[None]] = []

    def holds(self, position: Position) -> bool:
        """Whether a boundary without an answer must wait for the end of the replay."""
        return self._scheduler.replaying and position not in self._reopened

    async def wait_answer(self, position: Position, scope: Scope) -> Recorded | None:
        """Wait for the turn of the recorded answer and return it; None if it has been dropped."""
        turn: asyncio.Future[Recorded | None] = asyncio.get_running_loop().create_future()
        self._asked[position] = turn
        return await self._scheduler.suspend(turn, scope)

    async def hold(self, scope: Scope, settle: Work | None) -> None:
        """Wait for the end of the replay. If the branch is cancelled meanwhile, `settle` is run then."""
        held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held.append(held)
        try:
            await self._scheduler.suspend(held, scope)
        except asyncio.CancelledError:
            if settle is not None and not self._state.evicted:
                self._tasks.add_interrupted(scope, settle)
            raise

    async def run(self, root: "asyncio.Task[Any]") -> None:
        """Deliver every recorded answer, then let the held boundaries go live. `root`: the task of the job function."""
        log, scheduler, count = self._log, self._scheduler, 0
        for position, answer in list(self.pending.items()):
            if not await self._wait_asked(position, answer, root):
                return
            if self.pending.pop(position, None) is None:
                continue  # a retry of its step has dropped it, or it was retained
            count += 1
            turn = self._asked.pop(position)
            if not turn.done():
                turn.set_result(answer)
                scheduler.order.record_activity()
            if not scheduler.is_sequential():
                await scheduler.order.wait_idle()
        scheduler.replaying = False
        log.defer_fact(Event("replay_ended", attempt=log.job.attempt, detail={"answers": count}))
        for held in self._held:
            if not held.done():
                held.set_result(None)
        self._held.clear()
        self._tasks.finish_interrupted_effects()
        scheduler.consider_parking()

    async def _wait_asked(self, position: Position, answer: Recorded, root: "asyncio.Task[Any]") -> bool:
        """Wait until the code asks for the answer, or it is dropped. False ends the replay: the job leaves, or diverges."""
        while position not in self._asked and position in self.pending:
            await self._scheduler.order.wait_idle()
            if position in self._asked or self._state.evicted:
                break
            if root.done():
                return False
            if self._scheduler.is_busy():
                await asyncio.sleep(POLL_S)
                continue
            await self.miss(answer)
        return not self._state.evicted

    async def finish(self) -> None:
        """Handle a job function that has ended during the replay: the first answer that it did not reach is missed."""
        await self._scheduler.order.wait_idle()
        if self.pending and not self._state.evicted:
            await self.miss(next(iter(self.pending.values())), hold=False)

    async def miss(self, answer: Recorded, *, hold: bool = True) -> None:
        """Handle a recorded answer that the code does not reach. A retry may skip loose ones; otherwise the job diverges."""
        if answer.seq in self._log.history.loose:
            await self.retain(answer.seq)
        else:
            await self._log.diverge(missing(answer), hold=hold)

    async def retain(self, since: int, stale: list[int] | None = None, step: Position | None = None) -> None:
        """Stop replaying answers from the seq `since` on, and drop the stale seqs; with `step`, only inside that step."""
        log = self._log
        event = Event("answers_dropped", attempt=log.job.attempt, detail={"seqs": stale or [], "since": since})
        if step is not None:
            event.detail = {**(event.detail or {}), "position": {"path": step[0], "ordinal": step[1]}}
        await log.commit(Append(log.job.job_id, event, None, log.job.lease_epoch))
        log.history.retain(since, stale or [], step)
        self._prune()

    def _prune(self) -> None:
        """Stop waiting for answers that have left the history. A branch that has asked for one receives None."""
        for position in self.pending.keys() - self._log.history.answers.keys():
            del self.pending[position]
            turn = self._asked.pop(position, None)
            if turn is not None and not turn.done():
                turn.set_result(None)
                self._scheduler.order.record_activity()


def missing(answer: Recorded) -> dict[str, Any]:
    """The difference when the code no longer asks for a recorded answer."""
    boundary = f"{answer.facts.kind} {answer.facts.name}"
    return {
        "position": {"path": answer.path, "ordinal": answer.ordinal},
        "seq": answer.seq,
        "boundary": boundary,
        "changed": {"boundary": {"recorded": boundary, "asked": "nothing"}},
        "why": f"the history has {boundary}, which the code no longer reaches",
    }
