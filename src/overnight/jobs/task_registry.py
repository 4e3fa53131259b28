"""The tasks of a running job: the branches of its code, and protected work that continues when its branch is cancelled."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

from .background_tasks import BackgroundTasks
from .branch_scheduler import BranchScheduler
from .positions import Scope
from .run_state import RunState

Work = Callable[[], Coroutine[Any, Any, Any]]
MAX_CANCELLATIONS = 50


class TaskRegistry:
    """Registers branches and protected work by scope. `stop_step` ends those inside a step, `evict` all of them."""

    def __init__(self, scheduler: BranchScheduler, background: BackgroundTasks, state: RunState) -> None:
        self._scheduler, self._background, self._state = scheduler, background, state
        self._branches: dict[asyncio.Task[Any], Scope] = {}
        self._protected: dict[asyncio.Task[Any], Scope] = {}
        self._interrupted: list[tuple[Scope, Work]] = []

    # ── branches ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def add_branch(self, task: "asyncio.Task[Any]", scope: Scope) -> None:
        """Register a task that job code has spawned."""
        self._scheduler.branch_started()
        self._branches[task] = scope
        task.add_done_callback(self._branch_ended)
        if self._state.evicted:
            task.cancel()

    def _branch_ended(self, task: "asyncio.Task[Any]") -> None:
        self._branches.pop(task, None)
        self._scheduler.branch_ended()

    def cancel(self, reason: str) -> None:
        """Cancel every branch as asyncio does. Protected work continues."""
        for task in list(self._branches):
            task.cancel(reason)

    # ── protected work ───────────────────────────────────────────────────────────────────────────────────────────────

    async def protect(self, scope: Scope, work: Work) -> Any:
        """Await work that continues to its durable end even if its branch is cancelled."""
        task = self._start_protected(scope, work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_retrieve)
            raise

    def _start_protected(self, scope: Scope, work: Work) -> "asyncio.Task[Any]":
        async def run() -> Any:
            with self._scheduler.in_progress():
                return await work()

        task = asyncio.get_running_loop().create_task(run(), context=Context())
        self._protected[task] = scope
        task.add_done_callback(self._protected.pop)
        return task

    async def wait_protected(self) -> None:
        """Wait until all protected work has ended."""
        if self._protected:
            await asyncio.wait(list(self._protected))

    # ── interrupted effects ──────────────────────────────────────────────────────────────────────────────────────────

    def add_interrupted(self, scope: Scope, work: Work) -> None:
        """Remember an effect that an earlier worker had in progress, and whose branch was cancelled in the replay."""
        self._interrupted.append((scope, work))

    def finish_interrupted_effects(self, step: Scope | None = None) -> None:
        """Determine the outcome of interrupted effects; with `step`, of those inside that step."""
        for scope, work in self._interrupted:
            if step is None or step in scope.steps:
                self._start_protected(scope, work).add_done_callback(_retrieve)
        self._interrupted = [each for each in self._interrupted if step is not None and step not in each[0].steps]

    # ── ending ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def stop_step(self, step: Scope) -> None:
        """End the branches that a failed attempt of a step left behind, once what they have in progress is recorded."""
        inside = self._branches.items
        await _cancel(lambda: [task for task, scope in inside() if step in scope.steps], "its step failed")
        self.finish_interrupted_effects(step)
        if protected := [task for task, scope in self._protected.items() if step in scope.steps]:
            await asyncio.wait(protected)

    async def evict(self) -> None:
        """Cancel everything."""
        await _cancel(lambda: list(self._branches), "the job leaves this worker")
        self._background.cancel()
        for task in list(self._protected):
            task.cancel()


async def _cancel(alive: Callable[[], list["asyncio.Task[Any]"]], reason: str) -> None:
    for _ in range(MAX_CANCELLATIONS):
        tasks = [task for task in alive() if not task.done()]
        if not tasks:
            return
        for task in tasks:
            task.cancel(reason)
        await asyncio.wait(tasks, timeout=0.1)


def _retrieve(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()
