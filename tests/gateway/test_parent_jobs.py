"""External jobs below a parent: `x-parent-job-id`, the budgets of the parent, and the first start of a job."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import overnight
from api_keys import key_for
from overnight.jobs import Decision, Operations
from overnight.jobs.commands import ParkExternal
from overnight.reviews import list_reviews
from overnight.store import Store, open_store
from overnight.story import build_timeline, load_job_tree
from overnight.testing import SpawnedProvider
from served_jobs import rest, working
from serving import Served, routed, serving

LIMITS = "budgets: {max_llm_calls_per_job: 3}\n"
ALL = ("calls", "jobs.read", "jobs.operate")


@pytest.fixture
async def served(store: Store, provider: SpawnedProvider) -> AsyncIterator[Served]:
    async with serving(store, provider, routed(LIMITS), hosts=None) as running:
        yield running


async def ask(served: Served, key: dict[str, str], job: str, parent: str | None = None, **more: Any) -> Any:
    headers = key | {"x-job-id": job} | ({"x-parent-job-id": parent} if parent else {})
    return await served.ask(f"hello {job}", headers=headers, **more)


async def post(served: Served, path: str, key: dict[str, str], **more: Any) -> Any:
    return await served.http.post(f"/api/v1/jobs/{path}", headers=key, **more)


async def test_child_is_part_of_its_parents_tree_and_budget(served: Served) -> None:
    key = await key_for(served, scopes=ALL)
    parent = (await ask(served, key, "parent")).headers["x-job-id"]
    child = (await ask(served, key, "child", "parent")).headers["x-job-id"]
    grandchild = (await ask(served, key, "grandchild", child)).headers["x-job-id"]
    shown = (await served.http.get("/api/v1/jobs/grandchild", headers=key)).json()
    assert (shown["parent_job_id"], shown["root_job_id"]) == (child, parent)
    assert (await served.http.get("/api/v1/jobs/parent", headers=key)).json()["paid_calls"] == 3

    stopped = await ask(served, key, "child", "parent")
    assert stopped.status_code == 402, stopped.text  # the fourth call of the tree; the child has made one
    assert parent in stopped.text
    again = await served.ask("by its id", headers=key | {"x-job-id": grandchild})
    assert again.status_code == 402, again.text

    tree = await load_job_tree(served.ledger, await served.ledger.job("parent", "acme"))
    assert [*tree.children] == [child]
    assert [*tree.children[child].children] == [grandchild]
    assert "child job" in str(build_timeline(tree, served.store.clock()).lines)


async def test_child_of_another_gateway_keeps_its_parents_budget(
    served: Served, store: Store, provider: SpawnedProvider
) -> None:
    key = await key_for(served, scopes=ALL)
    await ask(served, key, "parent")
    await ask(served, key, "child", "parent")
    async with serving(store, provider, routed(LIMITS), hosts=None) as other:
        assert (await ask(other, key, "child")).status_code == 200
        assert (await ask(other, key, "child", "parent")).status_code == 402


async def test_parent_must_exist_within_tenant_and_reach(served: Served) -> None:
    key, other = await key_for(served, scopes=ALL), await key_for(served, "zeta", scopes=ALL)
    theirs = (await ask(served, other, "theirs")).headers["x-job-id"]
    await served.ask("x", headers=key | {"x-job-id": "secret/1", "x-agent-name": "other"})
    bound = await key_for(served, scopes=ALL, agent_id="bot")
    globbed = await key_for(served, scopes=ALL, jobs=("nightly/*",))
    for caller, parent in (
        (key, "unknown"),
        (key, f"job_{'0' * 32}"),
        (key, theirs),
        (key, "theirs"),
        (bound, "secret/1"),
        (globbed, "secret/1"),
    ):
        answer = await ask(served, caller, "nightly/child", parent)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found"), answer.text
    assert (await served.http.get("/api/v1/jobs/nightly%2Fchild", headers=key)).status_code == 404


async def test_finished_parent_and_cycle_are_conflicts(served: Served) -> None:
    key = await key_for(served, scopes=ALL)
    parent = (await ask(served, key, "parent")).headers["x-job-id"]
    child = (await ask(served, key, "child", "parent")).headers["x-job-id"]
    for job, above in (
        ("parent", "child"),
        ("parent", child),
        (parent, child),
        ("parent", "parent"),
        ("fresh", "fresh"),
        (child, child),
    ):
        answer = await ask(served, key, job, above)
        assert answer.status_code == 409, (job, above, answer.text)
    await post(served, "parent/complete", key, json={})
    refused = await ask(served, key, "late", "parent")
    assert (refused.status_code, "succeeded" in refused.text) == (409, True), refused.text
    assert (await served.http.get("/api/v1/jobs/late", headers=key)).status_code == 404
    assert (await ask(served, key, "child", "parent")).status_code == 200  # it had started before


async def test_parent_in_metadata(served: Served) -> None:
    key = await key_for(served, scopes=ALL)
    parent = (await ask(served, key, "parent")).headers["x-job-id"]
    said = {"metadata": {"job_id": "child", "parent_job_id": "parent"}}
    assert (await served.ask("x", headers=key, **said)).status_code == 200
    assert (await served.ledger.job("child", "acme")).parent_job_id == parent


async def child_events(served: Served, parent: str, tenant: str = "acme") -> list[Any]:
    """The events about children in the log of a parent: name, child, state, class of its error, position."""
    return [
        (
            each.facts.event,
            (each.facts.detail or {})["child_job_id"],
            (each.facts.detail or {}).get("state"),
            each.facts.error.error_class if each.facts.error else None,
            each.path,
        )
        for each in await served.events(parent, tenant)
        if each.facts.event.startswith("child_")
    ]


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled", "one call", "failed call"])
async def test_end_of_an_external_child_is_told_to_its_parent(
    served: Served, provider: SpawnedProvider, end: str
) -> None:
    key = await key_for(served, scopes=ALL)
    await ask(served, key, "parent")
    state, error = {"one call": ("succeeded", None), "failed": ("failed", "Crash")}.get(end, (end, None))
    if end.endswith("call"):
        model = "auto" if end == "one call" else "unknown-model"
        if end == "failed call":
            provider.set_rules("rules: [{fault: {status: 400}}]")
            state, error, model = "failed", "invalid_request", "auto"
        answer = await served.ask("once", model, headers=key | {"x-parent-job-id": "parent"})
        child = answer.headers["x-job-id"]
    else:
        child = (await ask(served, key, "child", "parent")).headers["x-job-id"]
        path = "cancel" if end == "cancelled" else "complete"
        body = {} if end == "cancelled" else {"state": end}
        if end == "failed":
            body["error"] = {"class": "Crash", "message": "it broke"}
        assert (await post(served, f"child/{path}", key, json=body)).status_code == 200
    assert await child_events(served, "parent") == [
        ("child_started", child, None, None, None),
        ("child_finished", child, state, error, None),
    ]
    parent = await served.ledger.job("parent", "acme")
    assert (parent.state, parent.wake_at) == ("running", None)  # it waits for nothing
    told = str(build_timeline(await load_job_tree(served.ledger, parent), served.store.clock()).lines)
    assert "child job" in told


async def test_child_that_continues_is_told_again_and_a_finished_parent_is_not(served: Served) -> None:
    key = await key_for(served, scopes=ALL)
    await ask(served, key, "parent")
    child = (await ask(served, key, "child", "parent")).headers["x-job-id"]
    assert (await post(served, "child/complete", key, json={})).status_code == 200
    assert (await ask(served, key, "child")).status_code == 200  # reopens it
    assert (await post(served, "child/complete", key, json={})).status_code == 200
    assert (await post(served, "child/attempts", key)).status_code == 201
    assert (await post(served, "parent/complete", key, json={})).status_code == 200
    assert (await post(served, "child/complete", key, json={})).status_code == 200
    assert [each[:3] for each in await child_events(served, "parent")] == [
        ("child_started", child, None),
        ("child_finished", child, "succeeded"),
        ("child_finished", child, "succeeded"),
    ]


async def test_end_of_a_child_wakes_a_parent_that_waits_for_it(served: Served) -> None:
    key = await key_for(served, scopes=ALL)
    parent = (await ask(served, key, "parent")).headers["x-job-id"]
    child = (await ask(served, key, "child", "parent")).headers["x-job-id"]
    await ask(served, key, "other", "parent")
    await served.store.commit(ParkExternal(parent, 1, [{"for": "child", "child_job_id": child}]))
    assert (await post(served, "other/complete", key, json={})).status_code == 200
    assert (await served.ledger.job(parent)).state == "parked"
    assert (await post(served, "child/complete", key, json={})).status_code == 200
    assert (await served.ledger.job(parent)).state == "queued"


async def test_ends_of_many_children_of_two_gateways_are_told_once_each(
    store_url: str, provider: SpawnedProvider
) -> None:
    """Children end in one call each, while the parent is called too."""
    with open_store(store_url) as one, open_store(store_url) as two:
        async with serving(one, provider) as here, serving(two, provider) as there:
            await here.ask(headers={"x-job-id": "parent"})
            calls = [
                each.ask(f"{n}", headers={"x-parent-job-id": "parent"} if n % 3 else {"x-job-id": "parent"})
                for n in range(30)
                for each in (here, there)
            ]
            assert {answer.status_code for answer in await asyncio.gather(*calls)} == {200}
            events = await child_events(here, "parent", "default")
    started, finished = (
        [each[1] for each in events if each[0] == name] for name in ("child_started", "child_finished")
    )
    assert len(started) == 40
    assert sorted(started) == sorted(finished)
    assert len({*finished}) == 40


@overnight.job
async def waits() -> str:
    overnight.uuid()
    await overnight.approval("Go on?")
    return "done"


async def test_external_child_of_job_code_neither_wakes_nor_diverges_it(
    store: Store, provider: SpawnedProvider
) -> None:
    async with serving(store, provider) as served, working(served):
        job = await Operations(store).create(waits, ())
        await rest(served, job.job_id, "parked")
        await served.ask(headers={"x-job-id": "child", "x-parent-job-id": job.job_id})
        epoch = (await served.ledger.job(job.job_id)).lease_epoch
        assert (await served.http.post("/api/v1/jobs/child/complete", json={})).status_code == 200
        parked = await served.ledger.job(job.job_id)
        assert (parked.state, parked.lease_epoch) == ("parked", epoch)
        (review,) = await list_reviews(store)
        await Operations(store).decide(review.review_id, Decision("approve", by="ann"))
        ended = await rest(served, job.job_id)
        assert (ended.state, ended.result) == ("succeeded", b'"done"')
        assert [each[0] for each in await child_events(served, job.job_id, "default")] == [
            "child_started",
            "child_finished",
        ]


# ── attempts ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_attempt_without_a_job_is_rejected(served: Served) -> None:
    key = await key_for(served, scopes=ALL)
    for said in ({"headers": key | {"x-job-attempt": "1"}}, {"headers": key, "metadata": {"job_attempt": "2"}}):
        answer = await served.ask("x", **said)
        assert (answer.status_code, "x-job-attempt" in answer.text) == (400, True), answer.text
    assert (await served.http.get("/api/v1/jobs", headers=key)).json() == {"jobs": []}


async def test_attempts_creates_the_job_on_its_first_start(served: Served) -> None:
    key, bound = await key_for(served, scopes=ALL), await key_for(served, scopes=ALL, agent_id="bot", jobs=("n/*",))
    made = await post(served, "n%2F1/attempts", bound | {"x-session-id": "s"})
    assert (made.status_code, made.json()["attempt"]) == (201, 1), made.text
    job = await served.ledger.job("n/1", "acme")
    assert (job.job_id, job.agent_id, job.session_id, job.state) == (made.json()["job_id"], "bot", "s", "running")
    asked = await served.ask("one", headers=bound | {"x-job-id": "n/1", "x-job-attempt": "1"})
    assert (asked.status_code, asked.headers["x-job-id"]) == (200, job.job_id)
    assert (await post(served, "n%2F1/attempts", bound)).json()["attempt"] == 2
    again = await served.ask("one", headers=bound | {"x-job-id": "n/1", "x-job-attempt": "2"})
    assert again.headers["x-overnight-replayed"] == "true"
    assert (await post(served, "other/attempts", bound)).status_code == 403
    assert (await post(served, f"job_{'0' * 32}/attempts", key)).status_code == 404
    child = await post(served, "child/attempts", key | {"x-parent-job-id": "n/1"})
    assert (await served.ledger.job(child.json()["job_id"])).parent_job_id == job.job_id
