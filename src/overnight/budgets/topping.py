"""Add to a budget, and wake the jobs that wait for it; wake them too when their day or month is over (that is their timer)."""

from typing import Any

import msgspec

from overnight.domain import BadInput, Event, NotFound, new_id
from overnight.ledger import JOB, JobRow, append
from overnight.store import Store, Unit

from .policy import Limit, bare
from .reserving import budget_of
from .rows import BUDGET, SQL, BudgetRow

RECENT_US = 30_000_000
"""For so long after a top-up jobs are looked for that parked while it was made."""


class TopUp(msgspec.Struct):
    """What is added to one row, by whom and why. The outcome of the command is the row.

    `scope_id` is the row's: of a day or a month it ends with that in brackets.
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

    def amounts(self) -> dict[str, int]:
        """What is added, by its name in events; nothing that is 0."""
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
        """The job whose budget it is. Its log is told of what is added, those of other jobs when it wakes them."""
        return bare(self.scope_id) if self.scope == "job" else None

    def tell(self, unit: Unit, job: JobRow) -> None:
        """Write the fact to the log of a job."""
        event = Event("budget_topped_up", actor=self.actor, kind="budget", name=self.scope, attempt=job.attempt)
        event.decision = {"why": self.why}
        event.detail = {"scope": self.scope, "row": self.scope_id, **self.amounts()}
        append(unit, job, event)

    def locks(self) -> list[tuple[Any, Any]]:
        budget = (BUDGET, (self.tenant_id, self.scope, self.scope_id))
        return [(JOB, self.job_id), budget] if self.job_id else [budget]

    def decide(self, unit: Unit) -> BudgetRow:
        if not self.amounts() or min(self.amounts().values()) < 0:
            raise BadInput(
                "a top-up adds something: give an amount above 0, of money, tokens, calls, tool calls or seconds"
            )
        job: JobRow | None = unit.get(JOB, self.job_id) if self.job_id else None
        if self.job_id and (job is None or job.tenant_id != self.tenant_id):
            raise NotFound(f"{self.job_id}: no such job for this tenant")
        row = budget_of(unit, self.tenant_id, Limit(self.scope, self.scope_id, resets_at=self.resets_at))
        row.extra_microusd += self.microusd
        row.extra_tokens += self.tokens
        row.extra_calls += self.calls
        row.extra_tool_calls += self.tool_calls
        row.extra_wall_clock_s += self.wall_clock_s
        row.top_ups += 1
        unit.change(BUDGET, row)
        self.top_up_id, self.at = new_id("topup"), unit.now
        unit.append(SQL["insert_top_up"], self)
        if job is not None:
            self.tell(unit, job)
        return msgspec.structs.replace(row)


class Wake(msgspec.Struct):
    """A command: queue a job that was parked on a budget before the `top_ups`-th addition to it. Whether it was."""

    job_id: str
    top_up: TopUp
    top_ups: int

    def locks(self) -> list[tuple[Any, Any]]:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> bool:
        job = unit.get(JOB, self.job_id)
        if job is None or job.state != "parked" or not _waits_for(job.waits, self.top_up, self.top_ups):
            return False
        if job.job_id != self.top_up.job_id:
            self.top_up.tell(unit, job)
        job.state, job.wake_at, job.waiting = "queued", None, "[]"
        unit.change(JOB, job)
        return True


class Hear(msgspec.Struct):
    """A command: a job that has not parked hears of what was added to another's budget that stopped it."""

    job_id: str
    top_up: TopUp

    def locks(self) -> list[tuple[Any, Any]]:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> None:
        job: JobRow | None = unit.get(JOB, self.job_id)
        if job is not None:
            self.top_up.tell(unit, job)


def _waits_for(waits: list[dict[str, Any]], top_up: TopUp, top_ups: int) -> bool:
    return any(
        wait.get("for") == "budget"
        and (wait.get("scope"), wait.get("row")) == (top_up.scope, top_up.scope_id)
        and wait.get("top_ups", 0) < top_ups
        for wait in waits
    )


async def top_up_budget(store: Store, top_up: TopUp) -> tuple[BudgetRow, list[str]]:
    """Add, and wake who waits for it: the row afterwards, and the jobs that were woken. Raises BadInput, NotFound."""
    row = await store.commit(top_up)
    return row, await _wake(store, top_up, row.top_ups)


async def _wake(store: Store, top_up: TopUp, top_ups: int) -> list[str]:
    woken: list[str] = []
    after = ""
    while rows := await store.read(SQL["list_stopped_jobs"], {"tenant_id": top_up.tenant_id, "after": after}):
        after = rows[-1][0]
        for job_id, waiting in rows:
            waits = _waits_for(msgspec.json.decode(waiting), top_up, top_ups)
            if waits and await store.commit(Wake(job_id, top_up, top_ups)):
                woken.append(job_id)
    return woken


async def wake_topped_up(store: Store) -> None:
    """Wake the jobs that parked while somebody added to their budget: they were not there yet when it was looked for them."""
    for top_up in await _recent(store, store.clock() - RECENT_US):
        row = await _row(store, top_up.tenant_id, top_up.scope, top_up.scope_id)
        if row is not None:
            await _wake(store, top_up, row.top_ups)


async def hear_top_up(store: Store, job_id: str, tenant_id: str, scope: str, scope_id: str, top_ups: int) -> bool:
    """Was something added to a budget since it stopped this job, when there had been `top_ups`? Then its log says so, which
    that of the job whose budget it is does already."""
    row = await _row(store, tenant_id, scope, scope_id)
    if row is None or row.top_ups <= top_ups:
        return False
    made = [each for each in await _recent(store, 0, scope_id) if (each.tenant_id, each.scope) == (tenant_id, scope)]
    if made and made[-1].job_id != job_id:
        await store.commit(Hear(job_id, made[-1]))
    return True


async def _recent(store: Store, after: int, scope_id: str = "") -> list[TopUp]:
    rows = await store.read(SQL["list_top_ups"], {"after": after, "scope_id": scope_id})
    return [TopUp(*row[:5], *row[5:10], at=row[10]) for row in rows]


async def _row(store: Store, tenant_id: str, scope: str, scope_id: str) -> BudgetRow | None:
    rows = await store.read(SQL["read_budget"], {"tenant_id": tenant_id, "scope": scope, "scope_id": scope_id})
    return BudgetRow(*rows[0]) if rows else None
