"""Overnight's own routes over HTTP."""

import asyncio
import json
from typing import Any

import pytest

from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import Served, routed, serving


def problem(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert (body["status"], body["type"]) == (status, "about:blank")
    assert body["title"]
    return body


async def test_jobs_are_listed_newest_first_with_their_cost(served: Served) -> None:
    for number in range(3):
        await served.ask(headers={"x-job-id": f"j{number}"})
    first = (await served.http.get("/api/v1/jobs?limit=2")).json()["jobs"]
    assert [job["external_id"] for job in first] == ["j2", "j1"]
    rest = (await served.http.get(f"/api/v1/jobs?before={first[-1]['job_id']}")).json()["jobs"]
    assert [job["external_id"] for job in rest] == ["j0"]
    assert all(job["paid_calls"] == 1 and job["cost_usd"] > 0 for job in first)
    assert (await served.http.get("/api/v1/jobs?state=failed")).json() == {"jobs": []}


async def test_a_job_and_its_events_are_returned(served: Served) -> None:
    await served.ask(headers={"x-job-id": "j", "x-agent-name": "triage"})
    job = (await served.http.get("/api/v1/jobs/j")).json()
    assert (job["state"], job["agent_id"], job["attempt"]) == ("running", "triage", 1)
    events = (await served.http.get(f"/api/v1/jobs/{job['job_id']}/events")).json()
    assert [event["event"] for event in events["events"]] == ["created", "model_called", "model_succeeded"]
    assert events["after"] == 3
    later = (await served.http.get("/api/v1/jobs/j/events?after=2")).json()["events"]
    assert [event["seq"] for event in later] == [3]
    assert "content" not in later[0]


async def test_events_stream_until_the_job_ends(served: Served) -> None:
    await served.ask(headers={"x-job-id": "live"})
    seen: list[tuple[int, str]] = []
    headers = {"accept": "text/event-stream", "last-event-id": "1"}
    async with served.http.stream("GET", "/api/v1/jobs/live/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.aiter_lines()
        number = 0
        async with asyncio.timeout(20):
            async for line in lines:
                if line.startswith("id: "):
                    number = int(line[4:])
                elif line.startswith("data: "):
                    event = json.loads(line[6:])
                    assert event["seq"] == number
                    seen.append((number, event["event"]))
                    if event["event"] == "model_succeeded":
                        await served.http.post("/api/v1/jobs/live/complete", json={})
    assert seen == [(2, "model_called"), (3, "model_succeeded"), (4, "completed")]


async def test_completing_stores_result_and_error(served: Served) -> None:
    for name in ("good", "bad"):
        await served.ask(headers={"x-job-id": name})
    done = await served.http.post("/api/v1/jobs/good/complete", json={"result": {"filed": 3}})
    assert (done.status_code, done.json()["state"]) == (200, "succeeded")
    assert (await served.http.get("/api/v1/jobs/good")).json()["result"] == {"filed": 3}
    error = {"class": "Crashed", "message": "out of paper"}
    failed = await served.http.post("/api/v1/jobs/bad/complete", json={"state": "failed", "error": error})
    assert failed.json()["state"] == "failed"
    assert (await served.http.get("/api/v1/jobs/bad")).json()["error"] == error


async def test_cancelling_ends_a_job(served: Served) -> None:
    await served.ask(headers={"x-job-id": "c"})
    assert (await served.http.post("/api/v1/jobs/c/cancel")).json()["state"] == "cancelled"
    problem(await served.http.post("/api/v1/jobs/c/cancel"), 409)
    problem(await served.http.post("/api/v1/jobs/c/attempts"), 409)


async def test_job_of_another_tenant_is_not_found(served: Served) -> None:
    answer = await served.ask(headers={"x-job-id": "t", "x-tenant-id": "one"})
    job_id = answer.headers["x-job-id"]
    for name in (job_id, "t"):
        for method, path in (
            ("GET", ""),
            ("GET", "/events"),
            ("POST", "/attempts"),
            ("POST", "/complete"),
            ("POST", "/cancel"),
        ):
            if (name, path) == ("t", "/attempts"):
                continue  # starts a job of that name for tenant two
            answer = await served.http.request(method, f"/api/v1/jobs/{name}{path}", headers={"x-tenant-id": "two"})
            problem(answer, 404)
    assert (await served.http.get("/api/v1/jobs", headers={"x-tenant-id": "two"})).json() == {"jobs": []}
    mine = await served.http.get(f"/api/v1/jobs/{job_id}", headers={"x-tenant-id": "one"})
    assert mine.json()["state"] == "running"


async def test_external_id_with_slashes_is_found(served: Served) -> None:
    name = "team/nightly/cancel"
    await served.ask(headers={"x-job-id": name})
    path = "/api/v1/jobs/team%2Fnightly%2fcancel"
    assert (await served.http.get(path)).json()["external_id"] == name
    assert len((await served.http.get(f"{path}/events")).json()["events"]) == 3
    assert (await served.http.post(f"{path}/attempts", json={"mode": "retry"})).json()["attempt"] == 2
    assert (await served.http.post(f"{path}/complete", json={})).json()["state"] == "succeeded"
    problem(await served.http.post(f"{path}/cancel"), 409)
    problem(await served.http.get(f"/api/v1/jobs/{name}"), 404)


@pytest.mark.parametrize(
    "path", ["/api%2Fv1%2Fjobs/v1/keys", "/api/v1/jobs%2F..%2Fkeys", "/api%2Fv1/keys", "/api/v1%2Fkeys"]
)
async def test_encoded_slash_does_not_bypass_the_scope(served: Served, path: str) -> None:
    assert (await served.http.get("/api/v1/keys")).status_code == 401
    answer = await served.http.get(path)
    assert answer.status_code in (401, 404), answer.text


async def test_model_names_may_contain_slashes(store: Store, provider: SpawnedProvider) -> None:
    price = "prices: {ollama/qwen3/8b: {input_usd_per_mtok: 0, output_usd_per_mtok: 0}}"
    async with serving(store, provider, routed(price)) as served:
        for name in ("ollama/qwen3/8b", "ollama%2Fqwen3/8b"):
            assert (await served.http.get(f"/v1/models/{name}")).json()["id"] == "ollama/qwen3/8b"


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/api/v1/jobs?stat=failed", 400, "did you mean 'state'"),
        ("GET", "/api/v1/jobs?state=gone", 400, "succeeded"),
        ("GET", "/api/v1/jobs?before=zzz", 400, "before"),
        ("GET", "/api/v1/jobs?before=job_01", 400, "before"),
        ("GET", "/api/v1/jobs?limit=many", 400, "limit"),
        ("GET", "/api/v1/jobs?limit=100000", 400, "200"),
        ("GET", "/api/v1/jobs?a=%ff", 400, "query"),
        ("GET", "/api/v1/jobs/none/events?after=-1", 400, "after: expected a whole number"),
        ("GET", "/api/v1/jobs/no%3Bne", 400, "not allowed"),
        ("GET", "/api/v1/jobs/none", 404, "none"),
        ("GET", "/api/v1/nothing", 404, "/api/v1/jobs"),
        ("GET", "/api/v1/jobs/a/b/c", 404, "path /api/v1/jobs/a/b/c"),
        ("DELETE", "/api/v1/jobs", 405, "use GET"),
        ("GET", "/api/v1/jobs/a/cancel", 405, "use POST"),
    ],
)
async def test_errors_are_problems_with_instructions(
    served: Served, method: str, path: str, status: int, says: str
) -> None:
    assert says in problem(await served.http.request(method, path), status)["detail"]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("attempts", b'{"mode": "again"}', "mode"),
        ("attempts", b'{"made": "retry"}', "made"),
        ("attempts", b"\xff", "mode"),
        ("complete", b'{"state": "running"}', "state"),
        ("complete", b"[]", "state"),
        ("complete", b'{"result": [' * 5000, "result"),
        ("cancel", b'{"why": "x"}', "why"),
    ],
)
async def test_invalid_body_names_its_fields(served: Served, path: str, body: bytes, says: str) -> None:
    await served.ask(headers={"x-job-id": "b"})
    answer = await served.http.post(f"/api/v1/jobs/b/{path}", content=body)
    assert says in problem(answer, 400)["detail"]


async def test_models_and_health_are_served(served: Served) -> None:
    models = await served.openai.models.list()
    assert "gpt-5.4-mini" in {model.id for model in models.data}
    assert (await served.openai.models.retrieve("gpt-5.4-mini")).owned_by == "openai"
    assert (await served.http.get("/v1/models/nonsense")).json()["error"]["code"] == "model_not_found"
    assert (await served.http.get("/healthz")).json() == {"status": "ok"}
    assert (await served.http.get("/v1/chat/completions")).status_code == 405
    assert (await served.http.get("/v1/other")).json()["error"]["message"].startswith("Not found: path")


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "https://evil.example"}])
async def test_cross_origin_requests_are_forbidden(served: Served, headers: dict[str, str]) -> None:
    before = served.provider.stats()["requests"]
    assert (await served.ask(headers=headers)).status_code == 403
    assert (await served.http.get("/api/v1/jobs", headers=headers)).status_code == 403
    assert served.provider.stats()["requests"] == before
    assert (await served.ask(headers={"origin": served.url})).status_code == 200
