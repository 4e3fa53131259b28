"""The worker: takes leases, runs executions, renews the leases, and releases them when it stops.

Dispatch carries only job ids and may lose or repeat them: the row decides whether a job is run. A worker polls, and is
notified of jobs that are created in its own process.
"""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from overnight.budgets import Policy
from overnight.domain import BadInput, Event, OvernightError, Recorded, new_id
from overnight.effects import expire_claims, expire_reviews
from overnight.ledger import RENEWAL_INTERVAL_S, JobRow, Ledger, this_host
from overnight.store import Store, statements
from overnight.tools import FindRules, no_rules

from .commands import ExpireLease, Finish, Park, RefreshWorker, ReleaseLease, RemoveWorker, TakeLease
from .definitions import JobFunction, load_job
from .encoding import encode
from .execution import Execution, task_factory
from .failure_logging import log_end
from .lease import ClockReading, Clocks, Lease, LeaseLost, uptime_us
from .operations import Operations
from .replay.history import ANSWERS
from .run_state import JobEvicted
from .services import ModelPort, Services
from .tracebacks import error_facts, traceback_content

SQL = statements("overnight.jobs")
log = logging.getLogger(__name__)
POLL_S = 0.025
RECOVERY_INTERVAL_S = 1.0
LEASE_S = 15.0
MAX_RUNNING = 1000
MAX_LOST_WORKERS = 5
PROGRESS = ANSWERS | {"attempt_started", "boundary_kept"}


class Worker:
    """Runs due jobs in the current event loop until it is stopped.

    - `model`: the gateway. `policy`: the budgets that count tool calls; None is no limit. `tool_rules`: finds the rules about
      effects that are in force.
    - `worker_id`: default: a new one. `root`: run only this job and its children; default: all jobs.
    - `lease_s`: how long a lease lasts without renewal, in seconds; default 15.
    """

    def __init__(
        self,
        store: Store,
        model: ModelPort,
        *,
        worker_id: str | None = None,
        lease_s: float = LEASE_S,
        root: str = "",
        policy: Policy | None = None,
        tool_rules: FindRules = no_rules,
        uptime: Callable[[], int] = uptime_us,
    ) -> None:
        self._root = root
        self.store, self.ledger = store, Ledger(store)
        self.worker_id = worker_id or new_id("worker")
        self.services = Services(store, model, self.worker_id, policy, self.notify, tool_rules)
        self._lease_us = round(lease_s * 1_000_000)
        self._clocks = Clocks(store.clock, uptime)
        self._leases: dict[str, Lease] = {}
        self._running: dict[str, tuple[Execution | None, asyncio.Task[None]]] = {}
        self._notified = asyncio.Event()
        self._stopping = False
        self._started_at = store.clock()
        self._loop_task: asyncio.Task[None] | None = None
        self._beat = threading.Event()
        self._definitions: dict[str, JobFunction[..., Any]] = {}
        self.jobs_run = 0

    # ── start and stop ───────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Register the worker, and begin to take jobs."""
        asyncio.get_running_loop().set_task_factory(task_factory)  # type: ignore[arg-type]
        # Leases under this id were held by an earlier process of that name.
        await Operations(self.store).expire_leases(self.worker_id)
        await self.store.commit(self._refresh())
        threading.Thread(target=self._heartbeat, name="overnight-heartbeat", daemon=True).start()
        self._loop_task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Evict the running jobs and queue them again for the next worker."""
        self._stopping = True
        self._beat.set()
        self.notify()
        if self._loop_task is not None:
            # Not cancelled: a lease it has just requested must be taken, so that it can be released.
            await asyncio.wait([self._loop_task], timeout=10)
        for job_id, (execution, task) in list(self._running.items()):
            if execution is not None:
                execution.state.evict()
            await asyncio.wait([task], timeout=5)
            if execution is not None and not task.cancelled():
                await self._release(job_id, execution)
        with contextlib.suppress(OvernightError):
            await self.store.commit(RemoveWorker(self.worker_id, SQL["delete_worker"]))

    async def _release(self, job_id: str, execution: Execution) -> None:
        try:
            await self.store.commit(ReleaseLease(job_id, execution.job.lease_epoch))
        except OvernightError:
            return  # it has finished, parked or been taken over

    def notify(self) -> None:
        """Look for due jobs now."""
        self._notified.set()

    async def run_now(self, job_id: str) -> bool:
        """Run one due job until it has finished or left this worker. Returns False if it could not be taken."""
        sent = self._clocks.read()
        job = await self.store.commit(TakeLease(job_id, self.worker_id, sent.wall_us + self._lease_us))
        if job is None:
            return False
        await asyncio.wait([self._begin(job, sent)])
        return True

    @property
    def running(self) -> int:
        """The number of jobs that run on this worker."""
        return len(self._running)

    def _refresh(self) -> RefreshWorker:
        return RefreshWorker(
            worker_id=self.worker_id,
            role="worker",
            host=this_host(),
            pid=os.getpid(),
            started_at=self._started_at,
            lease_us=self._lease_us,
            upsert=SQL["upsert_worker"],
            extend=SQL["extend_leases"],
        )

    def _heartbeat(self) -> None:
        """Renew the leases, on a thread of its own, so that job code that blocks the loop does not lose its lease."""
        # With a long lease too, since the row also tells other processes that this one is alive.
        while not self._beat.wait(min(self._lease_us / 3_000_000, RENEWAL_INTERVAL_S)):
            # Read before the command is sent: a lease that is taken later must not be extended by it.
            held, sent = list(self._leases.values()), self._clocks.read()
            try:
                self.store.commit_blocking(self._refresh())
            except OvernightError as error:
                self.services.report(self.worker_id, error)
                continue
            for lease in held:
                lease.renewed(sent)

    # ── dispatch ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        next_lost = 0.0
        while not self._stopping:
            self._notified.clear()
            try:
                if loop.time() >= next_lost:
                    self._evict_expired()
                await self._take_due(include_lost=loop.time() >= next_lost)
                if loop.time() >= next_lost:
                    next_lost = loop.time() + RECOVERY_INTERVAL_S
                    await self._release_unowned()
                    await self._expire_dead_workers()
                    await expire_reviews(self.store)
                    await expire_claims(self.store)
                await self._deliver_signals()
            except OvernightError as error:
                self.services.report(self.worker_id, error)
                await asyncio.sleep(0.5)
            try:
                async with asyncio.timeout(POLL_S):
                    await self._notified.wait()
            except TimeoutError:
                continue

    async def _take_due(self, *, include_lost: bool) -> None:
        room = MAX_RUNNING - len(self._running)
        if room <= 0:
            return
        sent = self._clocks.read()
        now = sent.wall_us
        ids: list[str] = []
        for name in ("list_due", "list_timers", *(["list_lost"] if include_lost else [])):
            ids += [row[0] for row in await self.store.read(SQL[name], {"now": now, "most": room, "root": self._root})]
        wanted = [job_id for job_id in dict.fromkeys(ids) if job_id not in self._running][:room]
        leases = [self.store.submit(TakeLease(job_id, self.worker_id, now + self._lease_us)) for job_id in wanted]
        for job in await asyncio.gather(*leases):
            if job is not None:
                self._begin(job, sent)

    def _evict_expired(self) -> None:
        """Evict jobs whose lease may have run out; the next worker determines the outcome of their work in progress."""
        for execution, _ in list(self._running.values()):
            if execution is not None and not execution.state.evicted and execution.log.lease.is_lost():
                execution.state.evict(LeaseLost("its lease ran out while it was running here"))

    async def _release_unowned(self) -> None:
        """End leases of jobs that left this worker without a record, as they do if the store fails."""
        rows = await self.store.read(SQL["list_owned"], {"owner": self.worker_id})
        for job_id in [row[0] for row in rows]:
            if job_id not in self._running:
                await self.store.commit(ExpireLease(job_id, self.worker_id))

    async def _expire_dead_workers(self) -> None:
        """End the leases of workers of this machine whose process is dead."""
        await Operations(self.store).expire_dead_workers()

    def _begin(self, job: JobRow, sent: ClockReading) -> "asyncio.Task[None]":
        lease = self._leases[job.job_id] = Lease(self._clocks, self._lease_us, sent)
        task = asyncio.get_running_loop().create_task(self._run(job, lease))
        self._running[job.job_id] = (None, task)
        task.add_done_callback(lambda _: self._ended(job.job_id))
        return task

    def _ended(self, job_id: str) -> None:
        self._running.pop(job_id, None)
        self._leases.pop(job_id, None)
        self.jobs_run += 1
        self.notify()

    async def _deliver_signals(self) -> None:
        if not self._running:
            return
        for job_id, epoch, cancel_at in await self.store.read(SQL["list_called"], {"owner": self.worker_id}):
            execution = self._running.get(job_id, (None, None))[0]
            if execution is None or execution.job.lease_epoch != epoch or execution.state.evicted:
                continue
            if cancel_at is not None and not execution.state.cancelling:
                execution.cancel()
            elif cancel_at is None:
                execution.background.start(execution.scheduler.receive_events())

    # ── one job ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _run(self, job: JobRow, lease: Lease) -> None:
        try:
            events = await self.ledger.events(job.job_id) if job.last_seq > 2 else []
            if job.lease_epoch > 1:
                await self.services.model.settle_lost(job)
                if await self._is_poison(job, events):
                    return
            body = await self._body(job)
            if body is None:
                return
            execution = Execution(self.services, job, events, lease)
            self._running[job.job_id] = (execution, self._running[job.job_id][1])
            root = await execution.run(body)
            if root is not None:
                ending = _ending(job, execution, root)
                await self.store.commit(ending)
                log_end(job, ending.state, ending.error)
                if execution.state.cancelling:
                    await Operations(self.store).cancel_children(job.job_id, "its parent was cancelled")
        except (OvernightError, JobEvicted) as error:
            self.services.report(job.job_id, error)
        except Exception as error:
            log.exception("%s left its worker: internal error", job.job_id)
            why = f"internal error of Overnight: {type(error).__name__}: {str(error)[:300]}"
            with contextlib.suppress(OvernightError):
                await self._park(job, {"for": "quarantine", "class": type(error).__name__, "why": why})

    async def _body(self, job: JobRow) -> Any:
        try:
            reference = job.code_ref or ""
            if reference not in self._definitions:
                self._definitions[reference] = load_job(reference)
            return self._definitions[reference].body(job.input)
        except Exception as error:
            why = f"cannot load its code: {type(error).__name__}: {str(error)[:300]}"
            await self._park(job, {"for": "quarantine", "class": type(error).__name__, "why": why})
            return None

    async def _is_poison(self, job: JobRow, events: list[Recorded]) -> bool:
        """Park a job that has lost `MAX_LOST_WORKERS` workers in a row without progress, for a person to look at."""
        lost = 0
        for event in reversed(events):
            if event.facts.event in PROGRESS:
                break
            lost += event.facts.event == "worker_lost"
        if lost < MAX_LOST_WORKERS:
            return False
        why = (
            f"{lost} workers in a row were lost while they ran it; the last events tell where. Then `overnight resume`"
        )
        wait = {"for": "quarantine", "class": "workers_lost", "why": why}
        await self._park(job, wait, Event("attempt_started", detail={"mode": "quarantine"}))
        return True

    async def _park(self, job: JobRow, wait: dict[str, Any], *events: Event) -> None:
        await self.store.commit(Park(job.job_id, job.lease_epoch, [wait], list(events)))


def _ending(job: JobRow, execution: Execution, root: "asyncio.Task[Any]") -> Finish:
    def end(state: str, **facts: Any) -> Finish:
        unhandled = execution.failures.seqs() if state == "failed" else []
        return Finish(
            job_id=job.job_id,
            parent_job_id=job.parent_job_id,
            lease_epoch=job.lease_epoch,
            state=state,
            unhandled=unhandled,
            **facts,
        )

    if root.cancelled():
        if execution.state.cancelling:
            return end("cancelled")
        return end(
            "failed", error=error_facts(asyncio.CancelledError("the job function was cancelled by its own code"))
        )
    error = root.exception()
    if error is not None:
        if execution.state.cancelling and isinstance(error, JobEvicted):
            return end("cancelled")
        return end("failed", error=error_facts(error), trace=traceback_content(error))
    try:
        return end("succeeded", result=encode(root.result(), f"the result of job {job.name}"))
    except BadInput as refused:
        return end("failed", error=error_facts(refused))
