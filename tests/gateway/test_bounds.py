"""Calls of unknown cost: bounds are reported apart from costs, block budgets and can be corrected."""

import asyncio
import contextlib
import json
import os
from pathlib import Path
from typing import Any

import apsw
import httpx2
import psycopg
import pytest

import cli_runs
import overnight
from ends import check_all_ends
from machine_parts import rows
from overnight.budgets import correct_cost
from overnight.jobs import ModelFailed
from overnight.keys import Keys, NewKey
from overnight.ledger import Ledger, list_audit
from overnight.store import Store, open_store
from overnight.store.migration_runner import migrations
from overnight.testing import SpawnedProvider
from served_jobs import rest, start, told, working
from serving import Served, routed, serving

CUT = "rules: [{match: {times: 1}, fault: {cut_after_chunks: 0}}]"
PRICES = (
    "prices: {gpt-5.4-mini: {input_usd_per_mtok: 1, output_usd_per_mtok: 2}}\n"
    "retries: {max_attempts: 1}\nbreakers: {failures: 0}\n"
)
ONE_CALL = routed().replace("retries: {max_attempts: 2, backoff_ms: 1}\n", "") + PRICES
"""A request of 512 tokens of output reserves a tenth of a cent."""


def command(store_url: str, folder: Path, *words: str, code: int = 0, **more: str) -> str:
    """What the real command says, on both channels."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OVERNIGHT_")}
    url = store_url if "://" in store_url else f"sqlite:///{store_url}"
    environment = kept | {"DATABASE_URL": url, "OVERNIGHT_HOME": str(folder), "USER": "zoe", "LOGNAME": "zoe"} | more
    ran = cli_runs.run(folder, environment, *words)
    assert ran.code == code, ran
    return ran.out + ran.err


async def run(store_url: str, folder: Path, *words: str, code: int = 0) -> str:
    return await asyncio.to_thread(command, store_url, folder, *words, code=code)


async def failed_call(served: Served, job: str) -> Any:
    """The end of a call whose answer broke off: nobody knows what it cost."""
    served.provider.set_rules(CUT)
    answer = await served.ask(max_tokens=512, headers={"x-job-id": job})
    assert answer.status_code == 502, answer.text
    assert float(answer.headers["x-overnight-cost-usd"]) == 0
    [failed] = [event.facts for event in await served.events(job) if event.facts.event == "model_failed"]
    assert float(answer.headers["x-overnight-cost-bound-usd"]) == failed.bound_microusd / 1_000_000 > 0
    assert failed.cost_microusd == 0
    return failed


async def cost_of(served: Served, job: str) -> dict[str, float]:
    found: dict[str, Any] = (await served.http.get("/api/v1/budgets", params={"job": job, "all": "true"})).json()
    return found["budgets"][0]["cost_usd"]


# ── corrections ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_budget_names_a_blocking_call_and_settling_frees_it(
    store: Store, store_url: str, provider: SpawnedProvider, tmp_path: Path
) -> None:
    async with serving(store, provider, ONE_CALL + "budgets: {max_cost_per_job_usd: 0.0015}") as served:
        failed = await failed_call(served, "b")
        bound = failed.bound_microusd
        assert await cost_of(served, "b") == {
            "limit": 0.0015, "added": 0, "spent": 0, "bound": bound / 1e6, "reserved": 0,
            "left": (1500 - bound) / 1e6,
        }  # fmt: skip
        refused = await served.ask(max_tokens=512, headers={"x-job-id": "b"})
        said = refused.json()["error"]["message"]
        assert refused.status_code == 402
        assert failed.call_id in said
        assert "overnight budget settle CALL --usd COST" in said
        assert "has spent $0 of $0.0015" in said

        listed = json.loads(await run(store_url, tmp_path, "budget", "bounds", "--job", "b", "--json"))
        assert [(each["call_id"], each["why"], each["bound_usd"]) for each in listed] == [
            (failed.call_id, "failed", bound / 1e6)
        ]
        settle = ("budget", "settle", failed.call_id, "--usd", "0.0002", "--why", "invoice", "--by", "ann")
        done = json.loads(await run(store_url, tmp_path, *settle, "--json"))
        assert (done["cost_usd"], done["was_bound_usd"], done["changed"]) == (0.0002, bound / 1e6, True)
        assert "nothing changed" in await run(store_url, tmp_path, *settle)
        assert (await served.ask(max_tokens=512, headers={"x-job-id": "b"})).status_code == 200
        now = await cost_of(served, "b")
        assert now["bound"] == 0
        [corrected] = [e.facts for e in await served.events("b") if e.facts.event == "cost_corrected"]
        assert (corrected.cost_microusd, corrected.bound_microusd, corrected.actor) == (200, 0, "ann")
        assert corrected.detail["source"] == "operator"
        shown = (await served.http.get("/api/v1/jobs/b")).json()
        assert (shown["cost_usd"], shown["bound_usd"]) == (pytest.approx(now["spent"]), 0)
        assert "$0.0002, according to an operator" in await run(store_url, tmp_path, "explain", "b")
    assert check_all_ends(store_url) == 2


@overnight.job
async def fails_then_asks() -> str:
    with contextlib.suppress(ModelFailed):
        await overnight.chat("first", max_tokens=512)
    return (await overnight.chat("second", max_tokens=512)).text


async def test_job_parked_for_lost_calls_resumes_after_settling(
    store: Store, store_url: str, provider: SpawnedProvider, tmp_path: Path
) -> None:
    provider.set_rules(CUT)
    routing = ONE_CALL + "budgets: {max_cost_per_job_usd: 0.0015}"
    async with serving(store, provider, routing) as served, working(served):
        job_id = await start(served, fails_then_asks)
        job = await rest(served, job_id)
        [failed] = [event.facts for event in await served.events(job_id) if event.facts.event == "model_failed"]
        assert [each["call_id"] for each in job.waits[0]["bounds"]] == [failed.call_id]
        story = await told(served, job_id)
        assert f"overnight budget settle {failed.call_id} --usd COST --why TEXT" in story
        assert failed.call_id in await run(store_url, tmp_path, "jobs")
        done = await run(store_url, tmp_path, "budget", "settle", failed.call_id, "--usd", "0", "--why", "not billed")
        assert f"{job_id} resumes" in done
        assert (await rest(served, job_id, "succeeded")).state == "succeeded"
    assert check_all_ends(store_url) == 2


async def test_late_answer_corrects_the_bound_and_is_not_replayed(
    store: Store, store_url: str, provider: SpawnedProvider
) -> None:
    provider.set_rules("rules: [{match: {times: 1}, fault: {delay_ms: 300}}]")
    async with serving(store, provider, ONE_CALL) as served:
        body = {
            "headers": {"x-job-id": "late", "x-session-id": "s", "x-task": "t", "x-step": "draft", "x-workflow": "w"},
            "max_tokens": 512,
        }
        asking = asyncio.create_task(served.ask(**body))
        await served.until("late", "model_called")
        assert await served.gateway.settle_owner(served.gateway.owner) == 1
        answer = await asking
        assert (answer.status_code, "choices" in answer.json()) == (200, True)
        called, lost, corrected = [event.facts for event in (await served.events("late"))[1:]]
        assert (lost.event, corrected.event) == ("model_lost", "cost_corrected")
        attributed = ("step", "task_id", "session_id", "workflow", "agent_id", "name", "model", "route")
        for each in (lost, corrected):
            assert [getattr(each, name) for name in attributed] == [getattr(called, name) for name in attributed]
        assert (lost.session_id, lost.task_id, lost.step, lost.workflow) == ("s", "t", "draft", "w")
        assert lost.bound_microusd == called.detail["reserved_microusd"] > corrected.cost_microusd > 0
        assert corrected.detail["source"] == "late_answer"
        assert corrected.input_tokens > 0
        assert float(answer.headers["x-overnight-cost-usd"]) == corrected.cost_microusd / 1e6
        assert "x-overnight-cost-bound-usd" not in answer.headers
        assert await cost_of(served, "late") == {
            "limit": None, "added": 0, "spent": corrected.cost_microusd / 1e6, "bound": 0, "reserved": 0, "left": None,
        }  # fmt: skip
        body["headers"]["x-job-attempt"] = "2"
        assert "x-overnight-replayed" not in (await served.ask(**body)).headers
    assert check_all_ends(store_url) == 2
    assert rows(store_url, "SELECT count(*) FROM reservation") == [(0,)]


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("how", ["answered", "broken off", "failed", "late", "late after an operator"])
async def test_repeated_settlement_counts_once(
    store: Store, store_url: str, provider: SpawnedProvider, monkeypatch: pytest.MonkeyPatch, how: str, at_once: bool
) -> None:
    commit = Store.commit

    async def commit_twice(self: Store, command: Any, **more: Any) -> Any:
        """Settle twice, as after a commit whose outcome stayed unknown until its caller stopped waiting.

        It replaces `commit`: a connection cannot be cut reliably between the flush of one chosen commit and its reply.
        """
        if type(command).__name__ != "Settle":
            return await commit(self, command, **more)
        if at_once:
            return (await asyncio.gather(commit(self, command, **more), commit(self, command)))[0]
        await commit(self, command)
        return await commit(self, command, **more)

    faults = {"broken off": "cut_after_chunks: 3", "failed": "cut_after_chunks: 0"}
    provider.set_rules(f"rules: [{{fault: {{{faults.get(how, 'delay_ms: 300')}}}}}]")
    limit = "budgets: {limits: [{scope: tenant, per: total, max_tokens: 1000000, max_cost_usd: 1}]}\n"
    spent = "SELECT spent_microusd, bound_microusd, spent_tokens, corrections FROM budget WHERE scope = 'tenant'"
    used = "SELECT calls, input_tokens, output_tokens, cost_microusd, bound_microusd FROM usage_job"
    found = []
    async with serving(store, provider, ONE_CALL + limit) as served:
        for job in ("once", "twice"):
            if job == "twice":
                monkeypatch.setattr(Store, "commit", commit_twice)
            before = rows(store_url, spent) or [(0, 0, 0, 0)]
            asking = asyncio.create_task(
                served.ask("hello there", headers={"x-job-id": job}, stream=how == "broken off")
            )
            if how.startswith("late"):
                called = await served.until(job, "model_called")
                assert await served.gateway.settle_owner(served.gateway.owner) == 1
                if "operator" in how:
                    call_id = next(each.facts.call_id for each in called if each.facts.event == "model_called")
                    await correct_cost(store, "default", call_id, 7, actor="ann", why="invoice")
            with contextlib.suppress(httpx2.HTTPError):
                await asking
            names = await served.story(job)
            job_id = (await served.events(job))[0].job_id
            booked = [now - then for now, then in zip(rows(store_url, spent)[0], before[0], strict=True)]
            found.append((names, booked, rows(store_url, f"{used} WHERE job_id = '{job_id}'")))
    assert found[0] == found[1]
    assert check_all_ends(store_url) == 2


async def test_invalid_manual_settlements_are_rejected(
    store: Store, store_url: str, provider: SpawnedProvider, tmp_path: Path
) -> None:
    async with serving(store, provider, ONE_CALL) as served:
        failed = await failed_call(served, "b")

        async def settle(call: str, usd: str, *words: str, code: int = 1) -> str:
            return await run(
                store_url, tmp_path, "budget", "settle", call, "--usd", usd, "--why", "x", *words, code=code
            )

        assert "of tenant default with an upper bound" in await settle("call_nobody", "0.1")
        assert "of tenant other with an upper bound" in await settle(failed.call_id, "0.1", "--tenant", "other")
        assert "not one of operator, invoice" in await settle(failed.call_id, "0.1", "--source", "rumour")
        assert "expected an amount in dollars" in await settle(failed.call_id, "lots", code=2)
        await served.ask(headers={"x-job-id": "known"})
        known = (await served.events("known"))[-1].facts.call_id
        assert "already settled at a known cost" in await settle(known, "0.1")
        provider.set_rules("rules: [{fault: {stall: true}}]")
        asking = asyncio.create_task(served.ask(headers={"x-job-id": "flying"}))
        flying = (await served.until("flying", "model_called"))[-1].facts.call_id
        assert "still in flight" in await settle(flying, "0.1")
        asking.cancel()
        assert "this exceeds the upper bound of" in await settle(failed.call_id, "0.5", code=0)
        assert "before: $0.5000" in await settle(failed.call_id, "0.25", "--source", "invoice", code=0)
        assert (await cost_of(served, "b"))["spent"] == 0.25


async def test_calls_of_unknown_cost_are_settled_over_http(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules(CUT)
    routing = ONE_CALL + "budgets: {max_cost_per_job_usd: 0.0015}"
    async with serving(store, provider, routing) as served, working(served):
        job_id = await start(served, fails_then_asks)
        await rest(served, job_id)
        operators = [await key_for(served, tenant) for tenant in ("default", "other")]
        own, other = operators

        async def settle(call: str, headers: dict[str, str], **body: Any) -> Any:
            return await served.http.post(f"/api/v1/bounds/{call}/settle", json=body, headers=headers)

        listed = (await served.http.get("/api/v1/bounds", params={"job": job_id}, headers=own)).json()["bounds"]
        [call] = [each["call_id"] for each in listed]
        assert (await served.http.get("/api/v1/bounds", headers=other)).json() == {"bounds": []}
        for path in ("/api/v1/bounds", f"/api/v1/bounds?job={job_id}"):
            assert (await served.http.get(path)).status_code == 401
        assert (await served.http.get("/api/v1/bounds", params={"job": job_id}, headers=other)).status_code == 404
        assert (await settle(call, other, usd=0)).status_code == 404
        unknown = (await settle("call_nobody", other, usd=0)).json()["detail"]
        assert (await settle(call, other, usd=0)).json()["detail"] == unknown.replace("call_nobody", call)
        for wrong in ({}, {"usd": -1}, {"usd": 0, "source": "rumour"}, {"usd": 0, "why": "\0"}, {"usd": 0, "cost": 1}):
            assert (await settle(call, own, **wrong)).status_code in {400, 422}, wrong
        assert (await served.ledger.job(job_id)).state == "parked"

        done = await settle(call, own, usd=0.0001, source="invoice", why="of May", tokens=7)
        assert done.status_code == 200, done.text
        found = done.json()
        assert (found["cost_usd"], found["changed"], found["woken"]) == (0.0001, True, [job_id])
        assert (await settle(call, own, usd=0.0001, source="invoice")).json()["changed"] is False
        assert (await rest(served, job_id, "succeeded")).state == "succeeded"
        [corrected] = [e.facts for e in await served.events(job_id) if e.facts.event == "cost_corrected"]
        assert (corrected.cost_microusd, corrected.actor, corrected.decision) == (100, "ops", {"why": "of May"})
        assert (await served.http.get("/api/v1/bounds", headers=own)).json() == {"bounds": []}
        [entry] = [each.public() for each in await list_audit(store, "default") if each.action == "cost.settled"]
        assert (entry["subject"], entry["actor"], entry["key_id"] is None) == (call, "ops", False)
        assert entry["before"] == {"cost_usd": 0.0, "bound_usd": pytest.approx(entry["before"]["bound_usd"])}
        assert entry["after"] == {"cost_usd": 0.0001, "bound_usd": 0.0, "source": "invoice", "why": "of May"}


async def key_for(served: Served, tenant: str) -> dict[str, str]:
    _, secret = await Keys(served.store).create(tenant, NewKey(name="ops", scopes=("instance.admin",)), "ann")
    return {"authorization": f"Bearer {secret}"}


# ── ledgers from before ──────────────────────────────────────────────────────────────────────────────────────────────

BEFORE = 202610
EVENTS = [
    {"event": "model_called", "model": "m", "call_id": "c1"},
    {"event": "model_lost", "model": "m", "call_id": "c1", "cost_microusd": 700, "detail": {"estimated": True}},
    {"event": "model_called", "model": "m", "call_id": "c2"},
    {"event": "model_succeeded", "model": "m", "call_id": "c2", "cost_microusd": 50, "agent_id": "a"},
]


def older(store_url: str) -> None:
    """A ledger of the schema before bounds had a column."""
    at = 1_792_000_000_000_000
    statements = [text for number, text in migrations("postgres" if "://" in store_url else "sqlite") if number < 7]
    numbers = [number for number, _ in migrations("sqlite") if number < 7]
    statements.append("CREATE TABLE schema_migration (version BIGINT PRIMARY KEY, applied_at BIGINT NOT NULL)")
    statements += [f"INSERT INTO schema_migration VALUES ({number}, 0)" for number in numbers]
    if "://" in store_url:
        statements.append(f"CREATE TABLE event_{BEFORE} PARTITION OF event FOR VALUES IN ({BEFORE})")
    for seq, event in enumerate(EVENTS):
        body = json.dumps(event, separators=(",", ":")).encode().hex()
        binary = f"'\\x{body}'::bytea" if "://" in store_url else f"x'{body}'"
        columns = "job_id, seq, tenant_id, month, at, body"
        statements.append(f"INSERT INTO event ({columns}) VALUES ('job', {seq}, 't', {BEFORE}, {at}, {binary})")
    statements.append("INSERT INTO usage_job VALUES ('job', 'm', 2, 0, 0, 0, 750)")
    statements.append("INSERT INTO usage_day VALUES ('t', 20261014, '', 'm', 's', 1, 0, 0, 0, 700)")
    statements.append("INSERT INTO usage_day VALUES ('t', 20261014, 'a', 'm', 's', 1, 0, 0, 0, 50)")
    if "://" in store_url:
        with psycopg.connect(store_url, autocommit=True) as connection:
            for each in statements:
                connection.execute(each)  # type: ignore[arg-type]
    else:
        with apsw.Connection(store_url) as connection:
            for each in statements:
                connection.execute(each)


async def test_old_rollups_are_split_by_their_events(bare_url: str) -> None:
    older(bare_url)
    with open_store(bare_url) as store:
        ledger = Ledger(store)
        assert await ledger.usage("job") == [("m", 2, 0, 0, 0, 50, 700)]
        assert [row[1:] for row in await ledger.usage_days("t", 0, 99999999)] == [
            ("", "m", 1, 0, 0, 0, 0, 700),
            ("a", "m", 1, 0, 0, 0, 50, 0),
        ]
