"""Characters that a store or header cannot hold are rejected or escaped, without a server error."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from overnight.brain import Brain
from overnight.gateway import CODECS, Gateway, PriceBook
from overnight.keys import Keys, NewKey
from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import ROUTING, Served, serving, who

EVERYTHING = ("call", "read", "operate", "admin")


@pytest.fixture
async def served(store: Store, provider: SpawnedProvider) -> AsyncIterator[Served]:
    async with serving(store, provider) as running:
        root = NewKey(name="root", scopes=("read", "operate", "admin", "instance.admin"))
        _, secret = await Keys(store).create("default", root, "ann")
        running.http.headers["authorization"] = f"Bearer {secret}"
        yield running


@pytest.mark.parametrize(
    "path",
    [
        "keys?before=%00",
        "keys?before=key_%00",
        "keys?limit=%00",
        "jobs?before=%00",
        "jobs?state=%00",
        "budgets?job=%00",
        "budgets?all=%00",
        "budgets?limit=1%00",
        "circuits?%00=1",
        "jobs/a%00b",
        "jobs/a%00b/events",
        "keys/a%00b",
        "keys/%F0%9F%98%80",
    ],
)
async def test_invalid_filter_is_rejected_by_name(served: Served, path: str) -> None:
    answer = await served.http.get(f"/api/v1/{path}")
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", "provider-keys/a%00b", None),
        ("PUT", "provider-keys/openai%00", {"key": "x"}),
        ("POST", "keys", {"name": "a\x00b"}),
        ("POST", "keys", {"name": "k", "agent_id": "a\x00b"}),
        ("POST", "keys", {"name": "k", "models": ["a\x00b"]}),
        ("POST", "keys/a%00b/rotate", {}),
        ("POST", "keys/a%00b/revoke", None),
        ("POST", "budgets", {"scope": "agent", "id": "a\x00b", "per": "total", "calls": 1}),
        ("POST", "budgets", {"scope": "job", "id": "a\x00b", "calls": 1}),
        ("POST", "budgets", {"scope": "a\x00b", "id": "x", "calls": 1}),
        ("POST", "jobs/a%00b/cancel", None),
        ("POST", "jobs/a%00b/attempts", None),
        ("POST", "jobs/a%00b/complete", None),
    ],
)
async def test_invalid_name_in_path_or_body_is_rejected(served: Served, method: str, path: str, body: Any) -> None:
    answer = await served.http.request(method, f"/api/v1/{path}", json=body)
    assert answer.status_code == 400, answer.text


async def test_texts_are_stored_unchanged(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider) as served:
        odd = "a\x00b\u2028\U0001f600"
        asked = await served.ask(odd, model=odd, headers={"x-job-id": "j", "x-task": "heartbeat_check"})
        assert asked.status_code == 200, asked.text
        error = {"class": odd, "message": odd}
        ended = await served.http.post(
            "/api/v1/jobs/j/complete", json={"state": "failed", "error": error, "result": odd}
        )
        assert ended.status_code == 200, ended.text
        assert (await served.http.get("/api/v1/jobs/j")).json()["error"]["message"] == odd
        assert (await served.http.get("/api/v1/jobs/j/events")).status_code == 200
        unknown = await served.http.get("/v1/responses/resp_a%00b")
        assert unknown.status_code == 404, unknown.text


async def test_reason_of_a_top_up_is_stored_unchanged(served: Served) -> None:
    said = {"scope": "agent", "id": "bot", "per": "total", "calls": 1}
    answer = await served.http.post("/api/v1/budgets", json=said | {"why": "a\u2028b\U0001f600"})
    assert answer.status_code == 201, answer.text
    answer = await served.http.post("/api/v1/budgets", json=said | {"why": "a\x00b"})
    assert (answer.status_code, answer.json()["detail"][:4]) == (400, "why:"), answer.text
    lone = await served.http.post("/api/v1/budgets", content=b'{"scope": "agent", "id": "bot", "why": "\\ud800"}')
    assert lone.status_code == 400, lone.text


class OddNames:
    """The routing, but for the names that its targets have."""

    def __init__(self, routing: Any, targets: tuple[str, ...]) -> None:
        self._routing, self._targets = routing, targets

    def __getattr__(self, name: str) -> Any:
        return getattr(self._routing, name)

    def decide(self, facts: Any) -> Any:
        return msgspec.structs.replace(self._routing.decide(facts), targets=self._targets)

    def provider_for(self, _model: str) -> Any:
        return self._routing.provider_for("gpt-5.4-mini")


async def test_model_name_cannot_inject_a_header(store: Store, provider: SpawnedProvider) -> None:
    first, second = "odd\r\nx-evil: 1", "second\u2028\x7f" + "x" * 5000
    provider.set_rules("rules: [{match: {model: 'odd*'}, fault: {status: 503}}]")
    brain = Brain.from_files({"routing.yaml": ROUTING.encode()})
    routing: Any = OddNames(brain.routing, (first, second))
    gateway = Gateway(store, routing, PriceBook(), offline_base_url=provider.base_url, environment={})
    await gateway.start()
    try:
        answers = [
            await gateway.call(
                CODECS["chat"],
                b'{"model": "auto", "messages": [{"role": "user", "content": "x"}]}',
                who(external_id="j", attempt=attempt),
            )
            for attempt in (1, 2)
        ]
    finally:
        await gateway.close()
        provider.reset()
        provider.set_rules("rules: []")
    for answer in answers:
        told = dict(answer.headers)
        assert answer.status == 200, answer.body
        assert told[b"x-overnight-model"].startswith(b"second")
        for name, value in answer.headers:
            assert all(32 <= each != 127 for each in value), (name, value)
            assert len(value) <= 1000, name
    assert dict(answers[0].headers)[b"x-overnight-fallback"] == dict(answers[0].headers)[b"x-overnight-model"]
    assert dict(answers[1].headers)[b"x-overnight-replayed"] == b"true"
