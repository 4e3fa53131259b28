"""The tasks of a running job: the branches of its code, what goes on although its branch was cancelled, and the execution's own
chores."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any

from .positions import Scope
from .recovery import Work

if TYPE_CHECKING:
    from .execution import Execution

EVICTION_TRIES = 50


class JobEvicted(BaseException):
    """The job leaves this worker. It is not an error, and it cannot be caught by `except Exception`."""


class Branches:
    """`stop` ends those inside of a step, `evict` all of them."""

    def __init__(self, execution: "Execution") -> None:
        self._execution = execution
        self._tasks: dict[asyncio.Task[Any], Scope] = {}
        self._protected: dict[asyncio.Task[Any], Scope] = {}
        self._chores: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawned(self, task: "asyncio.Task[Any]", scope: Scope) -> None:
        """Job code has a new branch."""
        self._execution.turns.moved()
        self._tasks[task] = scope
        task.add_done_callback(self._ended)
        if self._execution.evicted:
            task.cancel()

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._execution.turns.moved()
        self._tasks.pop(task, None)
        self._execution.consider_parking()

    def chore(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Work of the execution itself, outside of the job's own context."""
        task = asyncio.get_running_loop().create_task(coroutine, context=Context())
        self._chores.add(task)
        task.add_done_callback(self._chore_ended)
        return task

    def _chore_ended(self, task: "asyncio.Task[None]") -> None:
        self._chores.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, JobEvicted):
            self._execution.services.report(self._execution.job.job_id, error)
            self._execution.leave()

    async def protect(self, scope: Scope, work: Work) -> Any:
        """Await work that goes on to its durable end even when the branch that asked for it is cancelled."""
        task = self._fly(scope, work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_retrieve)
            raise

    def _fly(self, scope: Scope, work: Work) -> "asyncio.Task[Any]":
        async def flying() -> Any:
            with self._execution.flight():
                return await work()

        task = asyncio.get_running_loop().create_task(flying(), context=Context())
        self._protected[task] = scope
        task.add_done_callback(self._protected.pop)
        return task

    def see_through(self, body: Scope | None = None) -> None:
        """Find out about the effects that an earlier worker had under way when it was lost, and that nobody here awaits; with
        `body`, about those inside of that step."""
        replay = self._execution.replay
        for scope, work in replay.cut_short:
            if body is None or body in scope.steps:
                self._fly(scope, work).add_done_callback(_retrieve)
        replay.cut_short = [each for each in replay.cut_short if body is not None and body not in each[0].steps]

    async def land(self) -> None:
        """Wait until what was protected has come to its end."""
        if self._protected:
            await asyncio.wait(list(self._protected))

    def cancel(self, why: str) -> None:
        for task in list(self._tasks):
            task.cancel(why)

    async def stop(self, body: Scope) -> None:
        """A step has failed and is tried again: the branches that it left behind end, and what they had under way is recorded."""
        await _cancel(lambda: [task for task, scope in self._tasks.items() if body in scope.steps], "its step failed")
        self.see_through(body)
        if flying := [task for task, scope in self._protected.items() if body in scope.steps]:
            await asyncio.wait(flying)

    async def evict(self) -> None:
        await _cancel(lambda: list(self._tasks), "the job leaves this worker")
        for each in [*self._chores, *self._protected]:
            each.cancel()


async def _cancel(alive: Callable[[], list["asyncio.Task[Any]"]], why: str) -> None:
    for _ in range(EVICTION_TRIES):
        tasks = [task for task in alive() if not task.done()]
        if not tasks:
            return
        for task in tasks:
            task.cancel(why)
        await asyncio.wait(tasks, timeout=0.1)


def _retrieve(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()
