"""Keys of a tenant cannot raise the operator's limits, nor bypass permissions with headers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from overnight.keys import Keys, NewKey
from overnight.store import Store, open_store
from overnight.store.store import wall_clock_us
from overnight.testing import SpawnedProvider
from serving import Served, routed, serving

LIMITS = "budgets: {limits: [{scope: tenant, per: total, max_llm_calls: 1}]}\n"
TOP_UP = {"scope": "tenant", "id": "acme", "calls": 100}


@pytest.fixture
async def served(store: Store, provider: SpawnedProvider) -> AsyncIterator[Served]:
    async with serving(store, provider, hosts=None) as running:
        yield running


async def key(served: Served, name: str, *scopes: str) -> dict[str, str]:
    _, secret = await Keys(served.store).create("acme", NewKey(name=name, scopes=scopes), "ann")
    return {"authorization": f"Bearer {secret}"}


# ── budgets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_tenant_admin_cannot_raise_operator_limits(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed(LIMITS), hosts=None) as served:
        admin = await key(served, "root", "call", "read", "operate", "admin")
        operator = await key(served, "operator", "instance.admin")
        assert [(await served.ask(f"{n}", headers=admin)).status_code for n in range(2)] == [200, 402]
        refused = await served.http.post("/api/v1/budgets", json=TOP_UP, headers=admin)
        assert refused.status_code == 403
        assert "budgets.write" in refused.text
        assert (await served.ask("2", headers=admin)).status_code == 402
        assert (await served.http.post("/api/v1/budgets", json=TOP_UP, headers=operator)).status_code == 201
        assert (await served.ask("3", headers=admin)).status_code == 200


async def test_tenant_admin_cannot_manage_operator_keys(served: Served) -> None:
    admin = await key(served, "root", "admin")
    operator = await key(served, "operator", "instance.admin")
    own = await key(served, "both", "admin", "instance.admin")

    async def post(path: str, body: Any, headers: dict[str, str]) -> Any:
        return await served.http.post(f"/api/v1/keys{path}", json=body, headers=headers)

    for scopes in (["instance.admin"], ["admin", "instance.admin"]):
        for asker in (admin, own):  # the command line alone gives it
            answer = await post("", {"name": "mine", "scopes": scopes}, asker)
            assert answer.status_code == 403, answer.text
    for path in ("/operator/rotate", "/operator/revoke"):
        answer = await post(path, {}, admin)
        assert answer.status_code == 403, answer.text
        assert '"key"' not in answer.text
    assert (await served.http.get("/api/v1/keys/operator", headers=admin)).json()["state"] == "active"
    assert (await post("", {"name": "x"}, operator)).status_code == 403  # each scope stands for itself
    assert (await post("/both/rotate", {}, own)).status_code == 200
    assert (await served.http.post("/api/v1/budgets", json=TOP_UP)).status_code == 401


# ── attempts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _headers(job: str, attempt: int) -> dict[str, Any]:
    return {"headers": {"x-job-id": job, "x-job-attempt": str(attempt)}}


def _metadata(job: str, attempt: int) -> dict[str, Any]:
    return {"metadata": {"job_id": job, "job_attempt": str(attempt)}}


def _mixed(job: str, attempt: int) -> dict[str, Any]:
    return {"headers": {"baggage": f"job={job}"}, "metadata": {"job_attempt": attempt}}


@pytest.mark.parametrize("naming", [_headers, _metadata, _mixed])
async def test_call_key_cannot_start_an_attempt(served: Served, naming: Any) -> None:
    caller, operator = await key(served, "caller", "call"), await key(served, "ops", "call", "read", "operate")
    assert (await served.ask("1", headers=operator | {"x-job-id": "j"})).status_code == 200
    assert (await served.http.post("/api/v1/jobs/j/attempts", headers=caller)).status_code == 403

    async def ask(headers: dict[str, str], attempt: int) -> Any:
        said = naming("j", attempt)
        return await served.ask("2", headers=headers | said.pop("headers", {}), **said)

    refused = await ask(caller, 2)
    assert (refused.status_code, "operate" in refused.text) == (403, True), refused.text
    job = (await served.http.get("/api/v1/jobs/j", headers=operator)).json()
    assert job["attempt"] == 1
    assert "attempt_started" not in await served.story("j", "acme")
    assert (await ask(caller, 1)).status_code == 200  # into the attempt under way it may call
    assert (await ask(operator, 2)).status_code == 200
    assert (await ask(caller, 2)).status_code == 200
    assert (await ask(caller, 1)).status_code == 409  # fenced as before


async def test_call_key_cannot_reopen_a_completed_job(served: Served) -> None:
    caller, operator = await key(served, "caller", "call"), await key(served, "ops", "call", "read", "operate")
    assert (await served.ask("1", headers=caller | {"x-job-id": "j"})).status_code == 200
    done = {"state": "succeeded", "result": {"answer": 42}}
    assert (await served.http.post("/api/v1/jobs/j/complete", json=done, headers=operator)).status_code == 200
    refused = await served.ask("2", headers=caller | {"x-job-id": "j"})
    assert (refused.status_code, "operate" in refused.text) == (403, True), refused.text
    job = (await served.http.get("/api/v1/jobs/j", headers=operator)).json()
    assert (job["state"], job["result"]) == ("succeeded", {"answer": 42})
    assert (await served.ask("3", headers=operator | {"x-job-id": "j"})).status_code == 200  # it goes on


async def test_single_call_job_is_reopened_by_another_call(served: Served) -> None:
    caller = await key(served, "caller", "call")
    job = (await served.ask("1", headers=caller)).headers["x-job-id"]
    assert (await served.ask("2", headers=caller | {"x-job-id": job})).status_code == 200


@pytest.mark.parametrize("name", ["x-job-id", "x-session-id"])
async def test_call_key_reopens_an_idle_job(store_url: str, provider: SpawnedProvider, name: str) -> None:
    ahead_us = [0]
    with open_store(store_url, lambda: wall_clock_us() + ahead_us[0]) as store:
        async with serving(store, provider, hosts=None) as served:
            caller, operator = await key(served, "agent", "call"), await key(served, "operator", "operate")
            headers = caller | {name: "j"}
            job = (await served.ask("one", headers=headers)).headers["x-job-id"]
            for text in ("two", "three"):
                ahead_us[0] += 25 * 3_600_000_000
                async with serving(store, provider), asyncio.timeout(10):  # a gateway that has just started looks
                    while (await served.ledger.job(job)).state != "failed":
                        await asyncio.sleep(0.02)
                again = await served.ask(text, headers=headers)
                assert (again.status_code, again.headers.get("x-job-id")) == (200, job), again.text
            done = {"state": "succeeded"}
            assert (await served.http.post(f"/api/v1/jobs/{job}/complete", json=done, headers=operator)).is_success
            assert (await served.ask("four", headers=headers)).status_code == 403


async def test_headers_and_metadata_cannot_change_the_tenant(served: Served) -> None:
    caller = await key(served, "caller", "call")
    assert (await served.ask(headers=caller | {"x-tenant-id": "other"})).status_code == 403
    said = {"tenant_id": "other", "x-tenant-id": "other", "tenant": "other"}
    answer = await served.ask(headers=caller | {"baggage": "tenant=other,tenant_id=other"}, metadata=said)
    job = await served.ledger.job(answer.headers["x-job-id"], "acme")
    assert job.tenant_id == "acme"


# ── rules ───────────────────────────────────────────────────────────────────────────────────────────────────────────

RULES = """
default_model: gpt-5.4-nano
routes:
  senior: {model: gpt-5.4, when: {agent: senior}}
  night: {model: gpt-5.4, when: {workflow: night}}
  intern: {model: gpt-5.4-mini, when: {header: {x-agent-name: intern}}}
"""


async def test_headers_cannot_leave_the_rules_of_the_key(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, RULES, hosts=None) as served:
        new = NewKey(name="intern", agent_id="intern", workflow="day")
        _, secret = await Keys(store).create("acme", new, "ann")
        intern = {"authorization": f"Bearer {secret}"}
        senior = await key(served, "anyone", "calls")

        async def model(headers: dict[str, str], **more: Any) -> Any:
            answer = await served.ask(headers=headers, **more)
            return answer.headers.get("x-overnight-model") or answer.status_code

        for said in ({}, {"x-agent-name": "intern"}, {"baggage": "agent=senior"}):
            assert await model(intern | said, model="auto") == "gpt-5.4-mini", (
                said
            )  # omitting the header leaves no rule
        assert await model(intern, model="auto", metadata={"agent_name": "senior"}) == "gpt-5.4-mini"
        for route in ("senior", "night"):
            assert await model(intern | {"x-task": route}, model="auto") == 403
            assert await model(intern, model=route) == 403
            assert await model(senior, model=route) == "gpt-5.4"
        assert await model(senior | {"x-agent-name": "senior"}, model="auto") == "gpt-5.4"
        assert await model(intern | {"x-agent-name": "senior"}, model="auto") == 403
