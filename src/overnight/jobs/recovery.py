"""Recovery: recorded answers are handed on in recorded order, live boundaries wait until the history is used up."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from overnight.domain import Event, Recorded
from overnight.ledger import Append

from .history import History
from .positions import Position, Scope, enclosing

if TYPE_CHECKING:
    from .execution import Execution

Work = Callable[[], Coroutine[Any, Any, Any]]
POLL_S = 0.002


class Replay:
    """What is still to be given back. `active` until the history is used up; a job without a history was never in replay."""

    def __init__(self, execution: "Execution", history: History) -> None:
        self._execution = execution
        self.pending = {(a.path or "", a.ordinal or 0): a for a in history.order if a.facts.kind != "value"}
        # Steps that hold recorded answers but have none themselves: their bodies run, and ask for those, during the replay.
        self._reopened = {step for answer in self.pending.values() for step in enclosing(answer.path or "")}
        self.active = bool(self.pending)
        self._asked: dict[Position, tuple[asyncio.Future[Recorded | None], Scope]] = {}
        self._held: list[tuple[asyncio.Future[None], Scope]] = []
        self.cut_short: list[tuple[Scope, Work]] = []

    def holds(self, position: Position) -> bool:
        """Whether a boundary without an answer has to wait for the end of the replay."""
        return self.active and position not in self._reopened

    def scopes_waiting(self) -> list[Scope]:
        """Where branches wait for their turn or for the end of the replay."""
        asked = [scope for turn, scope in self._asked.values() if not turn.done()]
        return asked + [scope for held, scope in self._held if not held.done()]

    async def answer(self, position: Position, scope: Scope) -> Recorded | None:
        """The recorded answer, when it is its turn; None when it does not come to that."""
        turn: asyncio.Future[Recorded | None] = asyncio.get_running_loop().create_future()
        self._asked[position] = (turn, scope)
        return await turn

    def prune(self) -> None:
        """Some answers are not in the history any more. Who has asked for them is told so."""
        for position in self.pending.keys() - self._execution.history.answers.keys():
            del self.pending[position]
            turn, _ = self._asked.pop(position, (None, None))
            if turn is not None and not turn.done():
                turn.set_result(None)
                self._execution.turns.moved()

    async def hold(self, scope: Scope, settle: Work | None) -> None:
        """Wait for the end of the replay. `settle` is done then when the branch is cancelled meanwhile."""
        held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held.append((held, scope))
        try:
            await held
        except asyncio.CancelledError:
            if settle is not None and not self._execution.evicted:
                self.cut_short.append((scope, settle))
            raise

    async def run(self, root: "asyncio.Task[Any]") -> None:
        """Hand on every recorded answer, then let the held boundaries go live."""
        execution, count = self._execution, 0
        for position, answer in list(self.pending.items()):
            if not await self._is_asked(position, answer, root):
                return
            if self.pending.pop(position, None) is None:
                continue  # a step that is tried again has dropped it, or it was set aside
            count += 1
            turn, _ = self._asked.pop(position)
            if not turn.done():
                turn.set_result(answer)
                execution.turns.moved()
            if not execution.alone():
                await execution.turns.settled()
        self.active = False
        event = Event("replay_ended", attempt=execution.job.attempt, detail={"answers": count})
        execution.ride_along(Append(execution.job.job_id, event, None, execution.job.lease_epoch))
        for held, _ in self._held:
            if not held.done():
                held.set_result(None)
        self._held.clear()
        execution.branches.see_through()
        execution.consider_parking()

    async def _is_asked(self, position: Position, answer: Recorded, root: "asyncio.Task[Any]") -> bool:
        """Wait until the code asks for the answer, or has dropped it. False ends the replay: the job has left, or diverges."""
        execution = self._execution
        while position not in self._asked and position in self.pending:
            await execution.turns.settled()
            if position in self._asked or execution.evicted:
                break
            if root.done():
                return False
            if execution.busy():
                await asyncio.sleep(POLL_S)
                continue
            await execution.miss(answer)
        return not execution.evicted


def missing(answer: Recorded) -> dict[str, Any]:
    """The difference when the code no longer asks for what is recorded."""
    boundary = f"{answer.facts.kind} {answer.facts.name}"
    return {
        "position": {"path": answer.path, "ordinal": answer.ordinal},
        "seq": answer.seq,
        "boundary": boundary,
        "changed": {"boundary": {"recorded": boundary, "asked": "nothing"}},
        "why": f"the history has {boundary}, which the code no longer reaches",
    }
