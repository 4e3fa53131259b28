"""Several processes on one PostgreSQL: aborted batches leave no trace, and deadlocks do not occur."""

import asyncio
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from machine_parts import UnderJob, make_job, names, note
from overnight.budgets import BUDGET, BudgetRow
from overnight.domain import Event, StoreUnavailable
from overnight.ledger import EXTERNAL, JOB, JobRow, append
from overnight.store import Store, Unit, open_store
from overnight.testing import spawn_scripted_provider
from serving import gateway_process, routed


class Clash(UnderJob):
    """Insert a row that another process has inserted meanwhile; an event comes after it."""

    @classmethod
    def of(cls, job_id: str) -> "Clash":
        def act(unit: Unit, job: JobRow) -> None:
            unit.insert(BUDGET, BudgetRow("t", "job", "x", None, None, 0, 0, 0))
            append(unit, job, Event("value_recorded", name="clash"))

        return cls(job_id, act)


class Insert:
    def locks(self) -> list[Any]:
        return [(BUDGET, ("t", "job", "x"))]

    def decide(self, unit: Unit) -> None:
        unit.insert(BUDGET, BudgetRow("t", "job", "x", None, None, 0, 0, 0))


@pytest.mark.parametrize(("before", "between"), [(0, 1), (0, 2), (1, 1), (3, 4)])
async def test_aborted_transaction_keeps_the_connection_usable(postgres_url: str, before: int, between: int) -> None:
    """Its statements were prepared on the way and are gone with it; also when it is the first of the connection."""
    with open_store(postgres_url) as other:
        job_id = make_job(other)
        await other.commit(Insert())
    with open_store(postgres_url) as store:
        for number in range(before):
            await store.commit(note(job_id, number))
        for turn in range(3):
            with pytest.raises(StoreUnavailable, match="gave up"):
                await store.commit(Clash.of(job_id))
            for number in range(between):
                await store.commit(note(job_id, f"{turn} {number}"))
    assert len(names(postgres_url, job_id)) == before + 3 * between


async def test_external_id_is_locked_in_global_order(store: Store) -> None:
    """With the first locks, not when the command has found out: others would lock the two the other way round."""
    job_id = make_job(store, external_id="nightly")

    class Look:
        def locks(self) -> list[Any]:
            return [(BUDGET, ("default", "tenant", "default")), (EXTERNAL, ("default", "nightly"))]

        def decide(self, unit: Unit) -> bool:
            return unit.is_loaded(JOB, job_id) and unit.get(JOB, job_id) is not None

    assert await store.commit(Look())


@pytest.mark.timeout(120)
async def test_shared_jobs_and_budgets_cause_no_deadlock(postgres_url: str, tmp_path: Path) -> None:
    routing = routed(
        "budgets: {limits: [{scope: tenant, per: day, max_cost_usd: 100}, {scope: agent, max_llm_calls: 100000}]}\n"
        "rate_limits: [{scope: target, concurrency: 500}]\ndeadlines: {default_ms: 60000}"
    )
    with spawn_scripted_provider() as provider, ExitStack() as stack:
        urls = [stack.enter_context(gateway_process(postgres_url, provider, tmp_path, routing)).url for _ in range(2)]
        async with httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=48)) as http:

            async def one(number: int) -> int:
                body = {"model": "auto", "messages": [{"role": "user", "content": f"{number}"}]}
                headers = {"x-job-id": f"job-{number // 8}", "x-agent-name": "reader"}
                return (
                    await http.post(f"{urls[number % 2]}/v1/chat/completions", json=body, headers=headers)
                ).status_code

            statuses = Counter(await asyncio.gather(*(one(number) for number in range(400))))
    assert statuses == {200: 400}
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("SELECT pg_stat_clear_snapshot()")
        found = connection.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        assert found.fetchone() == (0,)
