"""Background tasks of an execution: timers, delivery, parking. They run outside the job's own context."""

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any

from .run_state import JobEvicted, RunState


class BackgroundTasks:
    """Starts background tasks. An error in one of them evicts the job."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run the coroutine as a task without a position in the job's code."""
        task = asyncio.get_running_loop().create_task(coroutine, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, JobEvicted):
            self._state.evict(error)

    def cancel(self) -> None:
        """Cancel all that are running."""
        for task in list(self._tasks):
            task.cancel()
