"""Cost alerts: a job that costs far more than similar jobs.

The usual cost is the mean of the last finished jobs of a task, kept in memory: every process reads the few jobs that
finished since its last poll. Nothing is written for it, so no row is contended.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from overnight.budgets import BUDGET, Limit
from overnight.domain import Event, usd_text
from overnight.domain.policies import Alarms
from overnight.ledger import JobRow, append
from overnight.store import Store, Unit, statements

from ..identity import Subject

SQL = statements("overnight.gateway.admission")
log = logging.getLogger("overnight.gateway")
LOOK_BACK_US = 7 * 86_400_000_000
OVERLAP_US = 5_000_000
"""Overlap of two polls: a finished job may become visible a little after its `ended_at`."""
PAGE, MAX_PAGES = 2_000, 10
KEPT_JOBS = 200
MAX_TASKS = 10_000
WARN_EVERY_S, MAX_TARGETS = 60.0, 1024
_decode_task = msgspec.json.Decoder(dict[str, Any]).decode


class CostAlarm(msgspec.Struct, frozen=True):
    """The cost at which a job triggers an alarm. `usual_microusd` is the mean of the last `jobs` jobs of its task."""

    job_id: str
    task: str
    jobs: int
    usual_microusd: int
    threshold_microusd: int


def raise_alarm(unit: Unit, job: JobRow, alarm: CostAlarm) -> bool:
    """Write `cost_alarm` into the log of the job whose call exceeded the threshold; once for each job."""
    key = (job.tenant_id, "job", alarm.job_id)
    row = unit.get(BUDGET, key) if unit.is_loaded(BUDGET, key) else None
    if row is None or row.alarmed_at is not None or row.spent_microusd <= alarm.threshold_microusd:
        return False
    row.alarmed_at = unit.now
    unit.change(BUDGET, row)
    event = Event("cost_alarm", attempt=job.attempt, name=alarm.task, kind="model")
    event.decision = {
        "why": f"it has cost {usd_text(row.spent_microusd)}; the last {alarm.jobs} jobs of {alarm.task} cost"
        f" {usd_text(alarm.usual_microusd)} on average"
    }
    event.detail = {
        "of_job_id": alarm.job_id,
        "spent_microusd": row.spent_microusd,
        "usual_microusd": alarm.usual_microusd,
        "jobs": alarm.jobs,
    }
    append(unit, job, event)
    return True


class _Task:
    """The costs of the last jobs of one task, and their total."""

    __slots__ = ("costs", "total")

    def __init__(self) -> None:
        self.costs: deque[int] = deque()
        self.total = 0

    def add(self, cost: int) -> None:
        self.costs.append(cost)
        self.total += cost
        if len(self.costs) > KEPT_JOBS:
            self.total -= self.costs.popleft()


class CostAlerts:
    """The usual cost of jobs, by tenant and task."""

    def __init__(self, store: Store, alarms: Alarms) -> None:
        self._store = store
        self.configure(alarms)
        self._tasks: OrderedDict[tuple[str, str], _Task] = OrderedDict()
        self._seen: dict[str, int] = {}
        self._until = 0

    def configure(self, alarms: Alarms) -> None:
        """Replace the settings."""
        self._factor, self._least = alarms.cost_factor, alarms.least_jobs

    async def poll(self) -> None:
        """Read the jobs that have finished since the last poll, up to a maximum number."""
        if not self._factor:
            return
        after = max(self._until - OVERLAP_US, self._store.clock() - LOOK_BACK_US)
        for _ in range(MAX_PAGES):
            rows = await self._store.read(SQL["list_ended_jobs"], {"after": after, "most": PAGE})
            for job_id, tenant_id, name, ended_at, cost, first in rows:
                after = ended_at
                if job_id not in self._seen:
                    self._seen[job_id] = ended_at
                    self._take(tenant_id, _task_in(first) or name, cost)
            if len(rows) < PAGE:
                break
        self._until = max(after, self._until)
        self._seen = {job_id: at for job_id, at in self._seen.items() if at >= self._until - OVERLAP_US}

    def _take(self, tenant_id: str, task: str, cost: int) -> None:
        self._tasks.setdefault((tenant_id, task), _Task()).add(cost)
        self._tasks.move_to_end((tenant_id, task))
        if len(self._tasks) > MAX_TASKS:
            self._tasks.popitem(last=False)

    def alarms(self, subject: Subject, limits: Sequence[Limit]) -> list[CostAlarm]:
        """The alarms that this call may trigger: of its job, and of the job's ancestors."""
        found: list[CostAlarm] = []
        if not self._tasks or subject.unattributed:
            return found
        who = subject.who
        for limit in limits:
            if limit.scope != "job" or limit.per != "total":
                continue
            named = limit.name == subject.job_id and subject.place is None and who.workflow is None
            name = (who.task_id if named else None) or limit.task or ""
            task = self._tasks.get((who.tenant_id, name))
            if task is not None and len(task.costs) >= self._least:
                usual = task.total // len(task.costs)
                found.append(CostAlarm(limit.name, name, len(task.costs), usual, round(usual * self._factor)))
        return found


def _task_in(body: bytes | None) -> str | None:
    """The task of the first call of an external job."""
    return _decode_task(bytes(body)).get("task_id") if body is not None else None


class UsageWarnings:
    """Warnings of targets that report more usage than their requests allow: once a minute for each target."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._warned: dict[str, float] = {}

    def warn(self, target: str, job_id: str, reported: Mapping[str, int], booked_microusd: int) -> None:
        now = self._clock()
        if now - self._warned.get(target, float("-inf")) < WARN_EVERY_S:
            return
        if len(self._warned) >= MAX_TARGETS:
            self._warned.clear()
        self._warned[target] = now
        log.warning(
            "%s reported more usage than the request allows: %s tokens in, %s out, %s; booked: %s; see `overnight explain %s`",
            target,
            f"{reported['input_tokens']:,}",
            f"{reported['output_tokens']:,}",
            usd_text(reported["cost_microusd"]),
            usd_text(booked_microusd),
            job_id,
        )


def warn(alarmed: Sequence[CostAlarm]) -> None:
    for alarm in alarmed:
        log.warning(
            "cost alert: %s exceeds %s; %s costs %s on average; see `overnight explain %s`",
            alarm.job_id,
            usd_text(alarm.threshold_microusd),
            alarm.task,
            usd_text(alarm.usual_microusd),
            alarm.job_id,
        )
