"""A replay waits neither for a circuit nor in a queue."""

import asyncio
from typing import Any

import pytest

from circuit_house import broken, fail_three, house, routing
from overnight.ledger import LEDGER_SQL
from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import Served, in_line, routed, serving
from sqlite_statements import executed_statements

SLOW = "{match: {user_contains: slow}, answer: ok, fault: {delay_ms: 20000}}"


@pytest.fixture
def provider(provider: SpawnedProvider) -> SpawnedProvider:
    provider.set_rules(f"rules: [{SLOW}]")
    return provider


@pytest.mark.parametrize("announced", [False, True])
async def test_replay_waits_for_no_circuit(store: Store, provider: SpawnedProvider, announced: bool) -> None:
    """The circuit is open for a minute, and calls wait for it as long."""
    async with house(store, provider, routing(route=", when_all_open: wait, deadline_ms: 60000")) as served:
        first = await served.ask(model="alone", headers={"x-job-id": "old"})
        await served.ask("more", model="alone", headers={"x-job-id": "old"})
        broken(provider)
        await fail_three(served, "alone")
        waiting = asyncio.create_task(served.ask("new", model="alone", headers={"x-job-id": "other"}))
        headers = {"x-job-id": "old", "x-job-attempt": "2"}
        if announced:
            await served.http.post("/api/v1/jobs/old/attempts", json={"mode": "recover"})
            del headers["x-job-attempt"]
        async with asyncio.timeout(20):
            again = await served.ask(model="alone", headers=headers)
            unknown = asyncio.create_task(served.ask("unknown", model="alone", headers=headers))
            await served.until("old", "diverged")
        assert (again.status_code, again.headers["x-overnight-replayed"]) == (200, "true")
        assert again.json() == first.json()
        assert not waiting.done(), "who has nothing recorded waits"
        assert not unknown.done()
        waiting.cancel()
        unknown.cancel()
        await asyncio.wait([waiting, unknown])
        assert (await served.story("old")).count("model_replayed") == 1


async def until_in_line(served: Served, count: int) -> None:
    async with asyncio.timeout(20):
        while in_line(served) < count:
            await asyncio.sleep(0.01)


LINES = {
    "rate": "rate_limits: [{scope: tenant, concurrency: 1}]\n",
    "budget": (
        "prices: {gpt-5.4-mini: {input_usd_per_mtok: 1, output_usd_per_mtok: 100}}\n"
        "budgets: {max_cost_per_job_usd: 0.04}\n"
    ),
}


@pytest.mark.parametrize("line", LINES)
async def test_replay_waits_in_no_queue(store: Store, provider: SpawnedProvider, line: str) -> None:
    """One call takes all the room there is, and another waits for it."""
    async with serving(store, provider, routed(f"{LINES[line]}deadlines: {{default_ms: 60000}}")) as served:

        def ask(text: str, attempt: int) -> asyncio.Task[Any]:
            headers = {"x-job-id": "n", "x-job-attempt": str(attempt)}
            return asyncio.create_task(served.ask(text, max_tokens=256, headers=headers))

        first = await ask("kept", 1)
        slow = ask("slow", 2)
        await served.until("n", "model_called", 2)
        waiting = ask("new", 2)
        await until_in_line(served, 1)
        async with asyncio.timeout(15):
            again = await ask("kept", 2)
        assert (again.status_code, again.headers["x-overnight-replayed"]) == (200, "true")
        assert again.json() == first.json()
        assert (slow.done(), waiting.done(), in_line(served)) == (False, False, 1)
        once_more = ask("kept", 2)
        await until_in_line(served, 2)  # what was given once is asked live, in its turn
        for task in (slow, waiting, once_more):
            task.cancel()
        await asyncio.wait([slow, waiting, once_more])


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_call_without_wait_makes_no_lookup(store: Store, provider: SpawnedProvider) -> None:
    """Its admission searches for a recorded answer in its own transaction, by two statements."""
    async with serving(store, provider) as served:
        assert (await served.ask(headers={"x-job-id": "n", "x-job-attempt": "1"})).status_code == 200
        with executed_statements() as executed:
            for calls in (1, 2):
                assert (await served.ask(headers={"x-job-id": "n", "x-job-attempt": "2"})).status_code == 200
                assert executed.count(LEDGER_SQL["read_answers"]) == 2 * calls
