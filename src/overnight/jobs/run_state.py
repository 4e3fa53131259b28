"""Whether a running job may continue on this worker: evicted, being cancelled, or neither."""

import asyncio
from collections.abc import Callable


class JobEvicted(BaseException):
    """The job leaves this worker. It is not an error, and `except Exception` does not catch it."""


class RunState:
    """The flags of one running job. `report` receives the error that evicted it."""

    def __init__(self, job_id: str, report: Callable[[str, BaseException | None], None]) -> None:
        self.job_id, self._report = job_id, report
        self.evicted = False
        self.cancelling = False
        self._left = asyncio.Event()

    def evict(self, error: BaseException | None = None) -> None:
        """Evict the job: its branches are cancelled, and from now on no boundary writes an event."""
        self._report(self.job_id, error)
        self.evicted = True
        self._left.set()

    async def wait_evicted(self) -> None:
        """Return once the job is to leave."""
        await self._left.wait()

    def check(self) -> None:
        """Raise JobEvicted once the job is to leave."""
        if self.evicted:
            raise JobEvicted(self.job_id)
