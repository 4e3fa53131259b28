"""Add to a budget and wake the jobs that wait for it. Corrections of booked bounds wake waiting jobs too.

A job that waits for the end of a day or month is woken by its timer.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from overnight.domain import BadInput, Event, Forbidden, NotFound, micro_to_usd, new_id
from overnight.ledger import JOB, JobRow, append, lifecycle, write_audit
from overnight.reviews import supersede_waits
from overnight.store import Store, Unit, records_of

from .policy import Limit, name_in
from .reservations import budget_of
from .rows import BUDGET, SQL, BoundRow, BudgetRow
from .settlement import decode_scopes


class TopUp(msgspec.Struct):
    """Command: add to one row, with author and reason. Outcome: the row.

    `scope_id` is that of the row: for a day or month, it ends with the period in brackets. `key_id` is the API key of the
    request. `operator_limit` is the brain's limit of the row, for a caller who must not exceed it.
    """

    tenant_id: str
    scope: str
    scope_id: str
    actor: str
    why: str
    microusd: int = 0
    tokens: int = 0
    calls: int = 0
    tool_calls: int = 0
    wall_clock_s: int = 0
    resets_at: int | None = None
    top_up_id: str = ""
    at: int = 0
    key_id: str | None = None
    operator_limit: Limit | None = None

    def amounts(self) -> dict[str, int]:
        """The added amounts by their names in events, without zeros."""
        named = {
            "microusd": self.microusd,
            "tokens": self.tokens,
            "calls": self.calls,
            "tool_calls": self.tool_calls,
            "seconds": self.wall_clock_s,
        }
        return {f"added_{name}": amount for name, amount in named.items() if amount}

    @property
    def job_id(self) -> str | None:
        """The job of a job's budget. Its log records the top-up; the logs of other jobs record it when it wakes them."""
        return name_in(self.scope_id) if self.scope == "job" else None

    def append_event(self, unit: Unit, job: JobRow) -> None:
        """Append the event of the top-up to the log of a job."""
        event = Event("budget_topped_up", actor=self.actor, kind="budget", name=self.scope, attempt=job.attempt)
        event.decision = {"why": self.why}
        event.detail = {"scope": self.scope, "row": self.scope_id, **self.amounts()}
        append(unit, job, event)

    def locks(self) -> list[tuple[Any, Any]]:
        budget = (BUDGET, (self.tenant_id, self.scope, self.scope_id))
        return [(JOB, self.job_id), budget] if self.job_id else [budget]

    def decide(self, unit: Unit) -> BudgetRow:
        if not self.amounts() or min(self.amounts().values()) < 0:
            raise BadInput("a top-up requires an amount above 0 of money, tokens, calls, tool calls or seconds")
        job: JobRow | None = unit.get(JOB, self.job_id) if self.job_id else None
        if self.job_id and (job is None or job.tenant_id != self.tenant_id):
            raise NotFound(f"job {self.job_id} of this tenant")
        if self.operator_limit is not None:
            check_own_limits(self, self.operator_limit, unit.get(BUDGET, (self.tenant_id, self.scope, self.scope_id)))
        row = budget_of(unit, self.tenant_id, Limit(self.scope, self.scope_id, resets_at=self.resets_at))
        before = _added(row)
        row.extra_microusd += self.microusd
        row.extra_tokens += self.tokens
        row.extra_calls += self.calls
        row.extra_tool_calls += self.tool_calls
        row.extra_wall_clock_s += self.wall_clock_s
        row.top_ups += 1
        unit.change(BUDGET, row)
        self.top_up_id, self.at = new_id("topup"), unit.now
        unit.append(SQL["insert_top_up"], self)
        write_audit(
            unit,
            "budget.topped_up",
            f"{self.scope} {self.scope_id}",
            tenant_id=self.tenant_id,
            actor=self.actor,
            key_id=self.key_id,
            before=before,
            after=_added(row) | {"why": self.why},
        )
        if job is not None:
            self.append_event(unit, job)
        return msgspec.structs.replace(row)


def check_own_limits(top_up: TopUp, limit: Limit, row: BudgetRow | None) -> None:
    """Check that only the budget's own limits, and none of the brain, cover the added amounts. Raises Forbidden.

    Top-ups also count towards limits that the brain sets later, so a budget without a limit accepts none.
    """
    operators = {
        "microusd": limit.limit_microusd,
        "tokens": limit.limit_tokens,
        "calls": limit.limit_calls,
        "tool_calls": limit.limit_tool_calls,
        "seconds": limit.wall_clock_s,
    }
    own: dict[str, int | None] = {}
    if row is not None:
        own = {"microusd": row.limit_microusd, "calls": row.limit_calls}
    for added in top_up.amounts():
        name = added.removeprefix("added_")
        if operators[name] is not None or own.get(name) is None:
            raise Forbidden(
                f"{top_up.scope} {name_in(top_up.scope_id)}: the limits of the brain are the operator's; this top-up requires the"
                " scope instance.admin"
            )


def _added(row: BudgetRow) -> dict[str, Any]:
    """The sums of top-ups of a budget, for audit entries."""
    return {
        "extra_usd": micro_to_usd(row.extra_microusd),
        "extra_tokens": row.extra_tokens,
        "extra_llm_calls": row.extra_calls,
        "extra_tool_calls": row.extra_tool_calls,
        "extra_seconds": row.extra_wall_clock_s,
    }


class CorrectionNotice(msgspec.Struct, frozen=True):
    """A call that a budget counted at a bound was corrected, which may have freed an amount."""

    tenant_id: str
    scope: str
    scope_id: str
    call_id: str
    job_id: str
    """The job of the call. Its log contains the correction; the logs of other jobs record it when it wakes them."""

    def append_event(self, unit: Unit, job: JobRow) -> None:
        """Append the event of the correction to the log of a job. It omits the cost, which belongs to another job."""
        event = Event("cost_corrected", call_id=self.call_id, kind="budget", name=self.scope, attempt=job.attempt)
        event.detail = {"of_job_id": self.job_id, "scope": self.scope, "row": self.scope_id}
        append(unit, job, event)


class WakeJob(msgspec.Struct):
    """Command: queue a job that was parked on a budget before this top-up or correction. Outcome: whether it was queued.

    `top_ups`, `corrections`: the counters of the budget after it.
    """

    job_id: str
    top_up: TopUp | CorrectionNotice
    top_ups: int
    corrections: int

    def locks(self) -> list[tuple[Any, Any]]:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> bool:
        job = unit.get(JOB, self.job_id)
        ended = _ended_waits(job.waits, self) if job is not None and job.state == "parked" else []
        if job is None or not ended:
            return False
        why = "the budget was topped up" if isinstance(self.top_up, TopUp) else "a booked bound was corrected"
        supersede_waits(unit, job, ended, why)
        if job.job_id != self.top_up.job_id:
            self.top_up.append_event(unit, job)
        lifecycle.wake(unit, job)
        return True


class RecordTopUp(msgspec.Struct):
    """Command: record a top-up or correction of another job's budget in the log of a stopped job that has not parked."""

    job_id: str
    top_up: TopUp | CorrectionNotice

    def locks(self) -> list[tuple[Any, Any]]:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> None:
        job: JobRow | None = unit.get(JOB, self.job_id)
        if job is not None:
            self.top_up.append_event(unit, job)


def _ended_waits(waits: list[dict[str, Any]], wake: WakeJob) -> list[dict[str, Any]]:
    """The waits for the budget that has changed since."""
    return [
        wait
        for wait in waits
        if wait.get("for") == "budget"
        and (wait.get("scope"), wait.get("row")) == (wake.top_up.scope, wake.top_up.scope_id)
        and (wait.get("top_ups", 0) < wake.top_ups or wait.get("corrections", 0) < wake.corrections)
    ]


async def top_up_budget(store: Store, top_up: TopUp) -> tuple[BudgetRow, list[str]]:
    """Add to a budget and wake the jobs that wait for it.

    Returns: the row afterwards, and the ids of the woken jobs.

    Raises:
        BadInput: the amounts are not positive.
        NotFound: the job does not exist in this tenant.
        StoreUnavailable: the write failed.
    """
    row = await store.commit(top_up)
    return row, await wake_topped_up(store, top_up, row)


async def wake_topped_up(store: Store, top_up: TopUp, row: BudgetRow) -> list[str]:
    """Wake the jobs that wait for a budget, after its top-up was committed. Returns their ids."""
    return await _wake(store, top_up, row)


async def wake_corrected(store: Store, bound: BoundRow) -> list[str]:
    """Wake the jobs that wait for the budgets of a corrected call. Returns their ids."""
    return [job_id for notice in _correction_notices([bound]) for job_id in await _wake_in(store, notice)]


def _correction_notices(bounds: Iterable[BoundRow]) -> Iterable[CorrectionNotice]:
    """One notice for each budget of the bounds, with its last correction."""
    found = {
        (bound.tenant_id, scope, scope_id): CorrectionNotice(
            bound.tenant_id, scope, scope_id, bound.call_id, bound.job_id
        )
        for bound in bounds
        for scope, scope_id in decode_scopes(bound.scopes)
    }
    return found.values()


async def _wake_in(store: Store, top_up: TopUp | CorrectionNotice) -> list[str]:
    row = await _row(store, top_up.tenant_id, top_up.scope, top_up.scope_id)
    return await _wake(store, top_up, row) if row is not None else []


async def _wake(store: Store, top_up: TopUp | CorrectionNotice, row: BudgetRow) -> list[str]:
    woken: list[str] = []
    after = ""
    while rows := await store.read(SQL["list_stopped_jobs"], {"tenant_id": top_up.tenant_id, "after": after}):
        after = rows[-1][0]
        for job_id, waiting in rows:
            wake = WakeJob(job_id, top_up, row.top_ups, row.corrections)
            if _ended_waits(msgspec.json.decode(waiting), wake) and await store.commit(wake):
                woken.append(job_id)
    return woken


async def wake_waiting_jobs(store: Store) -> None:
    """Wake every job whose budget was topped up or corrected since it stopped the job.

    This covers jobs that parked after the top-up, and top-ups of a process that crashed before it woke the jobs. The
    counters of the budget are compared with those recorded in the job's wait.
    """
    topped_up: dict[tuple[str, str, str], list[tuple[str, int]]] = {}
    for tenant_id, scope, scope_id, job_id, top_ups in await store.read(SQL["list_jobs_to_wake"], {}):
        topped_up.setdefault((tenant_id, scope, scope_id), []).append((job_id, top_ups))
    for key, jobs in topped_up.items():
        row = await _row(store, *key)
        for job_id, top_ups in jobs:
            cause = row and await _latest(store, row, top_ups)
            if row and cause:
                await store.commit(WakeJob(job_id, cause, row.top_ups, row.corrections))


async def record_missed_top_up(
    store: Store, job_id: str, tenant_id: str, scope: str, scope_id: str, top_ups: int, corrections: int = 0
) -> bool:
    """Whether a budget was topped up or corrected since it stopped this job. If so, the job's log records it.

    `top_ups` and `corrections` are the counters at the time of the stop. A change in the job's own budget is already
    in its log.
    """
    row = await _row(store, tenant_id, scope, scope_id)
    if row is None or (row.top_ups <= top_ups and row.corrections <= corrections):
        return False
    cause = await _latest(store, row, top_ups)
    if cause is not None and cause.job_id != job_id:
        await store.commit(RecordTopUp(job_id, cause))
    return True


async def _latest(store: Store, row: BudgetRow, top_ups: int) -> TopUp | CorrectionNotice | None:
    """The last top-up of a budget with more than `top_ups` of them, else its last correction."""
    values = {"tenant_id": row.tenant_id, "scope": row.scope, "scope_id": row.scope_id}
    if row.top_ups > top_ups:
        made = await store.read(SQL["list_top_ups"], values)
        if not made:
            return None
        *columns, at = made[-1]
        return msgspec.structs.replace(*records_of(TopUp, [columns]), at=at)
    bounds = await store.read(SQL["list_corrected_bounds"], {"tenant_id": row.tenant_id})
    notices = _correction_notices(records_of(BoundRow, bounds))
    return next((notice for notice in notices if (notice.scope, notice.scope_id) == (row.scope, row.scope_id)), None)


async def _row(store: Store, tenant_id: str, scope: str, scope_id: str) -> BudgetRow | None:
    rows = await store.read(SQL["read_budget"], {"tenant_id": tenant_id, "scope": scope, "scope_id": scope_id})
    return records_of(BudgetRow, rows)[0] if rows else None
