"""A key bound to an agent or workflow sees and changes only jobs in its scope."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from overnight.jobs import ExternalJob
from overnight.keys import Keys, NewKey
from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import Served, routed, serving

LIMITS = """
budgets:
  limits:
    - {scope: job, max_llm_calls: 50}
    - {scope: agent, max_llm_calls: 50}
    - {scope: tenant, max_llm_calls: 90}
"""
either = pytest.mark.parametrize(
    ("field", "other"), [("agent_id", {"x-agent-name": "other"}), ("workflow", {"x-workflow": "other"})]
)


@pytest.fixture
async def served(store: Store, provider: SpawnedProvider) -> AsyncIterator[Served]:
    async with serving(store, provider, routed(LIMITS), hosts=None) as running:
        yield running


class Who:
    """A key, and what is asked with it."""

    def __init__(self, served: Served, headers: dict[str, str]) -> None:
        self.served, self.headers = served, headers

    async def to(self, method: str, path: str, headers: dict[str, str] | None = None, **more: Any) -> Any:
        return await self.served.http.request(method, path, headers=self.headers | (headers or {}), **more)

    async def ask(self, text: str = "hello", headers: dict[str, str] | None = None, **more: Any) -> Any:
        return await self.served.ask(text, headers=self.headers | (headers or {}), **more)

    async def respond(self, text: str = "hello", headers: dict[str, str] | None = None, **more: Any) -> Any:
        body = {"model": "gpt-5.4-mini", "input": text, **more}
        return await self.to("POST", "/v1/responses", headers, json=body)


async def key(served: Served, name: str, **fields: Any) -> Who:
    scopes = ("call", "read", "operate")
    _, secret = await Keys(served.store).create("acme", NewKey(name=name, scopes=scopes, **fields), "ann")
    return Who(served, {"authorization": f"Bearer {secret}"})


def gone(answer: Any, named: str, like: Any, never: str, code: str) -> None:
    """Answered to the letter like what never was."""
    assert (answer.status_code, like.status_code) == (404, 404), answer.text
    assert answer.json()["error"]["code"] == code
    assert answer.text.replace(named, "ID") == like.text.replace(never, "ID")
    assert answer.headers["x-should-retry"] == "false"


# ── kept responses ───────────────────────────────────────────────────────────────────────────────────────────────────


@either
async def test_response_of_another_agent_is_not_found(served: Served, field: str, other: dict[str, str]) -> None:
    everyone, mine = await key(served, "everyone"), await key(served, "mine", **{field: "bot"})
    theirs = (await everyone.respond("a secret", other)).json()["id"]
    never = "resp_" + "0" * 32
    for method, below in (("GET", ""), ("GET", "/input_items"), ("GET", "?stream=true"), ("DELETE", "")):
        answer = await mine.to(method, f"/v1/responses/{theirs}{below}")
        like = await mine.to(method, f"/v1/responses/{never}{below}")
        gone(answer, theirs, like, never, "response_not_found")
    assert (await everyone.to("GET", f"/v1/responses/{theirs}")).status_code == 200  # nor was it deleted

    own = (await mine.respond("what is mine")).json()["id"]
    assert (await mine.to("GET", f"/v1/responses/{own}")).json()["id"] == own
    items = (await mine.to("GET", f"/v1/responses/{own}/input_items")).json()["data"]
    assert items[0]["content"][0]["text"] == "what is mine"
    assert (await everyone.to("GET", f"/v1/responses/{own}")).status_code == 200
    assert (await mine.to("DELETE", f"/v1/responses/{own}")).json()["deleted"] is True


@either
async def test_response_of_another_agent_cannot_be_continued(
    served: Served, provider: SpawnedProvider, field: str, other: dict[str, str]
) -> None:
    everyone, mine = await key(served, "everyone"), await key(served, "mine", **{field: "bot"})
    theirs = (await everyone.respond("a secret", other)).json()
    item: str = theirs["output"][0]["id"]
    before = provider.stats()["requests"]
    never = "resp_" + "0" * 32
    answer = await mine.respond("go on", previous_response_id=theirs["id"])
    like = await mine.respond("go on", previous_response_id=never)
    gone(answer, theirs["id"], like, never, "previous_response_not_found")
    referred = [{"type": "item_reference", "id": item}, {"role": "user", "content": "go on"}]
    answer = await mine.to("POST", "/v1/responses", json={"model": "gpt-5.4-mini", "input": referred})
    assert answer.status_code == 404, answer.text
    assert provider.stats()["requests"] == before
    own = (await mine.respond("mine")).json()["id"]
    assert (await mine.respond("go on", previous_response_id=own)).status_code == 200
    assert (await everyone.respond("go on", previous_response_id=own)).status_code == 200


# ── jobs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@either
@pytest.mark.parametrize("named", ["by our id", "by its name", "in metadata"])
async def test_job_of_another_agent_rejects_calls_and_attempts(
    served: Served, provider: SpawnedProvider, field: str, other: dict[str, str], named: str
) -> None:
    everyone, mine = await key(served, "everyone"), await key(served, "mine", **{field: "bot"})
    made = await everyone.ask("a secret", other | {"x-job-id": "theirs"})
    assert made.status_code == 200
    name = made.headers["x-job-id"] if named == "by our id" else "theirs"
    before, story = provider.stats()["requests"], await served.story("theirs", "acme")
    for attempt in (None, 1, 2):
        said: dict[str, Any] = {"id": name} | ({"attempt": attempt} if attempt else {})
        if named == "in metadata":
            answer = await mine.ask(
                "a secret",
                metadata={f"job_{at}": str(value) for at, value in said.items()},
            )
        else:
            headers = {f"x-job-{at}": str(value) for at, value in said.items()}
            answer = await mine.ask("a secret", headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found"), answer.text
        assert "x-overnight-replayed" not in answer.headers
    if named == "by our id":
        never = "job_" + "0" * 32
        like = await mine.ask("a secret", {"x-job-id": never})
        gone(answer, name, like, never, "job_not_found")
    assert provider.stats()["requests"] == before
    assert await served.story("theirs", "acme") == story
    again = await everyone.ask("a secret", other | {"x-job-id": "theirs", "x-job-attempt": "2"})
    assert again.headers["x-overnight-replayed"] == "true"


async def test_lookup_of_one_key_does_not_serve_another(served: Served) -> None:
    everyone, mine = await key(served, "everyone"), await key(served, "mine", agent_id="bot")
    job = (await everyone.ask("x", {"x-agent-name": "other", "x-job-id": "theirs"})).headers["x-job-id"]
    for _ in range(2):  # the gateway remembers whose job it is
        assert (await everyone.ask("x", {"x-job-id": job})).status_code == 200
        assert (await mine.ask("x", {"x-job-id": job})).status_code == 404
        assert (await mine.ask("x", {"x-job-id": "theirs"})).status_code == 404


async def test_bound_key_continues_its_own_jobs(served: Served) -> None:
    everyone, mine = await key(served, "everyone"), await key(served, "mine", agent_id="bot")
    for caller in (everyone, mine):
        headers = {"x-agent-name": "bot", "x-job-id": "ours"}
        assert (await caller.ask("first", headers | {"x-job-attempt": "1"})).status_code == 200
    again = await mine.ask("first", {"x-job-id": "ours", "x-job-attempt": "2"})
    assert again.headers["x-overnight-replayed"] == "true"
    assert (await mine.to("GET", "/api/v1/jobs/ours")).json()["attempt"] == 2


async def test_attach_with_bound_key_uses_a_job_of_its_agent(served: Served) -> None:
    mine, yours = await key(served, "mine", agent_id="bot", workflow="w"), await key(served, "yours", agent_id="other")
    secret = mine.headers["authorization"].removeprefix("Bearer ")

    def run() -> Any:
        with (
            ExternalJob(served.store, "night", "acme", "night", f"{served.url}/v1", secret) as job,
            httpx2.Client(headers=job.headers, timeout=30) as client,
        ):
            body = {"model": "auto", "messages": [{"role": "user", "content": "x"}]}
            return client.post(f"{job.base_url}/chat/completions", json=body)

    first, again = [await asyncio.to_thread(run) for _ in range(2)]
    assert (first.status_code, again.status_code) == (200, 200), first.text
    assert again.headers["x-overnight-replayed"] == "true"
    job = await served.ledger.job("night", "acme")
    assert (job.agent_id, job.workflow, job.attempt) == ("bot", "w", 2)
    assert (await yours.to("GET", "/api/v1/jobs/night")).status_code == 404


async def test_same_session_at_two_bound_keys_is_two_jobs(served: Served) -> None:
    everyone, mine = await key(served, "everyone"), await key(served, "mine", agent_id="bot")
    yours = await key(served, "yours", agent_id="other")
    jobs = [
        (await caller.ask("x", {"x-session-id": "s1"})).headers["x-job-id"] for caller in (everyone, mine, yours, mine)
    ]
    assert jobs[1] == jobs[3]
    assert len(set(jobs)) == 3
    assert (await served.ledger.job(jobs[1], "acme")).session_id == "s1"


@either
async def test_budgets_of_other_agents_are_hidden(served: Served, field: str, other: dict[str, str]) -> None:
    everyone, mine = await key(served, "everyone"), await key(served, "mine", **{field: "bot"})
    await everyone.ask("x", other | {"x-job-id": "theirs", "x-agent-name": "other"})
    job = (await mine.ask("x", {"x-job-id": "own"})).headers["x-job-id"]
    lines = (await mine.to("GET", "/api/v1/budgets")).json()["budgets"]
    agents = {("agent", "bot")} if field == "agent_id" else set()
    assert {(line["scope"], line["id"]) for line in lines} == {("tenant", "acme"), ("job", job), *agents}
    assert (await mine.to("GET", "/api/v1/budgets?job=theirs")).status_code == 404
    assert (await mine.to("GET", "/api/v1/budgets?job=own")).status_code == 200
    assert len((await everyone.to("GET", "/api/v1/budgets")).json()["budgets"]) > len(lines)
