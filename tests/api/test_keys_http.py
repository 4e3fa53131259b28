"""API keys over HTTP: authentication, scopes, and changes of keys while calls run."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from api_keys import key_for
from overnight.api.authentication import token_of
from overnight.keys import Keys, NewKey, Rotation
from overnight.ledger import list_audit
from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import Served, gateway_process, routed, serving

EVERYTHING = ("call", "read", "operate", "admin", "instance.admin")


@pytest.fixture
async def guarded(store: Store, provider: SpawnedProvider) -> AsyncIterator[Served]:
    """As on an address that other machines reach."""
    async with serving(store, provider, hosts=None) as running:
        yield running


def refused(answer: Any, status: int, code: str) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert answer.headers["x-should-retry"] == "false"
    return error["message"]


# ── who is asked ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_loopback_requires_a_key_once_the_first_key_exists(served: Served) -> None:
    assert (await served.ask(headers={"authorization": "Bearer none"})).status_code == 200
    row, secret = await Keys(served.store).create("acme", NewKey(name="k"), "ann")
    await asyncio.sleep(2.0)
    message = refused(await served.ask(headers={"authorization": "Bearer none"}), 401, "invalid_api_key")
    assert "overnight keys create" in message
    assert (await served.http.get("/api/v1/jobs")).status_code == 401
    assert (await served.ask(headers={"authorization": f"Bearer {secret}"})).status_code == 200
    await Keys(served.store).revoke(row.key_id, "", "ann")
    await asyncio.sleep(2.0)
    assert (await served.ask()).status_code == 401
    assert (await served.http.get("/healthz")).status_code == 200


async def test_missing_admin_key_error_names_the_scope_to_create(guarded: Served) -> None:
    told = (await guarded.http.get("/api/v1/keys")).json()["detail"]
    assert "create a key with `overnight keys create NAME --scope keys.admin`" in told


async def test_public_address_requires_a_key_from_the_start(
    guarded: Served, store: Store, provider: SpawnedProvider
) -> None:
    async with serving(store, provider, auth="required") as required:
        for gateway in (guarded, required):
            before = provider.stats()["requests"]
            refused(await gateway.ask(), 401, "invalid_api_key")
            assert (await gateway.http.get("/v1/models")).status_code == 401
            assert (await gateway.http.get("/api/v1/jobs")).headers["www-authenticate"].startswith("Bearer")
            assert provider.stats()["requests"] == before
            headers = await key_for(gateway)
            assert (await gateway.ask(headers=headers)).status_code == 200


async def test_keys_off_opens_loopback_only(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, auth="off") as off, serving(store, provider, auth="off", hosts=None) as outside:
        await key_for(off)
        assert (await off.ask()).status_code == 200
        assert (await outside.ask()).status_code == 401
        answer = await off.ask(headers={"authorization": f"Bearer on_{'0' * 76}"})
        refused(answer, 401, "invalid_api_key")  # a key that is given is looked at
        assert (await off.http.get("/api/v1/keys")).status_code == 401


async def test_keys_endpoint_requires_an_admin_key(served: Served) -> None:
    refused = await served.http.get("/api/v1/keys")
    assert refused.status_code == 401
    told = refused.json()["detail"]
    assert "the first key ends that" in told, "the advice to make a key would end the access without one"
    assert "keys create" not in told
    assert (await served.http.post("/api/v1/keys", json={"name": "mine", "scopes": ["admin"]})).status_code == 401
    assert (await served.ask()).status_code == 200  # nothing was made


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "api-key"])
async def test_key_is_read_from_each_clients_header(guarded: Served, header: str) -> None:
    secret = (await key_for(guarded))["authorization"].removeprefix("Bearer ")
    shown = {header: f"Bearer {secret}" if header == "authorization" else secret}
    assert (await guarded.ask(headers=shown)).status_code == 200
    others = {name: "sk-not-ours" for name in ("authorization", "x-api-key", "api-key") if name != header}
    assert (await guarded.ask(headers=others | shown)).status_code == 200


def test_keys_of_other_products_are_ignored() -> None:
    assert token_of([(b"authorization", b"Bearer sk-1"), (b"x-api-key", b"x"), (b"cookie", b"on_1")]) is None
    assert token_of([(b"authorization", b"Basic on_1")]) is None
    assert token_of([(b"api-key", b"on_3"), (b"x-api-key", b"on_2"), (b"authorization", b"bearer  on_1 ")]) == "on_1"


async def test_auth_errors_have_the_shape_of_each_format(guarded: Served) -> None:
    refused(await guarded.http.post("/v1/chat/completions", json={}), 401, "invalid_api_key")
    message = (await guarded.http.post("/v1/messages", json={})).json()
    assert (message["type"], message["error"]["type"]) == ("error", "authentication_error")
    problem = await guarded.http.get("/api/v1/jobs")
    assert (problem.status_code, problem.json()["status"]) == (401, 401)
    assert problem.headers["content-type"] == "application/problem+json"
    read_only = await key_for(guarded, scopes=("read",))
    message = (await guarded.http.post("/v1/messages", json={}, headers=read_only)).json()
    assert (message["type"], message["error"]["type"]) == ("error", "permission_error")
    assert (await guarded.http.post("/api/v1/jobs/x/cancel", headers=read_only)).json()["title"] == "Forbidden"


async def test_official_clients_raise_authentication_errors(guarded: Served) -> None:
    secret = (await key_for(guarded))["authorization"].removeprefix("Bearer ")
    hello: list[Any] = [{"role": "user", "content": "hello"}]
    async with openai.AsyncOpenAI(base_url=f"{guarded.url}/v1", api_key=secret, max_retries=0) as right:
        assert (await right.chat.completions.create(model="gpt-5.4-mini", messages=hello)).choices
    async with openai.AsyncOpenAI(base_url=f"{guarded.url}/v1", api_key="on_wrong") as wrong:
        with pytest.raises(openai.AuthenticationError):
            await wrong.chat.completions.create(model="gpt-5.4-mini", messages=hello)
    async with anthropic.AsyncAnthropic(base_url=guarded.url, api_key="sk-ant-x") as stranger:
        with pytest.raises(anthropic.AuthenticationError):
            await stranger.messages.create(model="claude-opus-4.6", max_tokens=5, messages=hello)
    async with anthropic.AsyncAnthropic(base_url=guarded.url, api_key=secret, max_retries=0) as known:
        assert (await known.messages.create(model="claude-opus-4.6", max_tokens=5, messages=hello)).content


# ── how far ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_key_belongs_to_one_tenant(guarded: Served) -> None:
    headers = await key_for(guarded, scopes=EVERYTHING)
    answer = await guarded.ask(headers=headers | {"x-job-id": "j"})
    assert (await guarded.ledger.job("j", "acme")).job_id == answer.headers["x-job-id"]
    assert (await guarded.ask(headers=headers | {"x-tenant-id": "acme"})).status_code == 200
    refused(await guarded.ask(headers=headers | {"x-tenant-id": "other"}), 403, "not_allowed")
    answer = await guarded.http.get("/api/v1/jobs", headers=headers | {"x-tenant-id": "other"})
    assert answer.status_code == 403
    assert (await guarded.http.get("/v1/models", headers=headers | {"x-tenant-id": "other"})).status_code == 403


async def test_agent_key_calls_as_its_agent_and_sees_its_jobs(guarded: Served) -> None:
    everyone = await key_for(guarded, scopes=EVERYTHING)
    for agent in ("bot", "other"):
        await guarded.ask(headers=everyone | {"x-job-id": agent, "x-agent-name": agent, "x-workflow": "w"})
    mine = await key_for(guarded, scopes=("call", "read", "operate"), agent_id="bot")
    await guarded.ask(headers=mine | {"x-job-id": "new"})
    assert (await guarded.ledger.job("new", "acme")).agent_id == "bot"
    refused(await guarded.ask(headers=mine | {"x-agent-name": "other"}), 403, "not_allowed")
    await guarded.ask(headers=mine | {"x-job-id": "meta"}, metadata={"agent_name": "other"})
    assert (await guarded.ledger.job("meta", "acme")).agent_id == "bot"
    await guarded.ask(headers=mine | {"x-job-id": "bag", "baggage": "agent=other"})
    assert (await guarded.ledger.job("bag", "acme")).agent_id == "bot"

    listed = (await guarded.http.get("/api/v1/jobs", headers=mine)).json()["jobs"]
    assert sorted(job["external_id"] for job in listed) == ["bag", "bot", "meta", "new"]
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/attempts")):
        answer = await guarded.http.request(method, f"/api/v1/jobs/other{path}", headers=mine)
        assert answer.status_code == 404
    assert (await guarded.http.post("/api/v1/jobs/bot/cancel", headers=mine)).status_code == 200
    none = await key_for(guarded, scopes=("read",), workflow="elsewhere")
    assert (await guarded.http.get("/api/v1/jobs", headers=none)).json() == {"jobs": []}


FALLBACKS = "fallbacks: [{from: gpt-5.4, to: gpt-5.4-mini}, {from: gpt-5.4, to: gpt-5.4-nano}]"
CLOSED_ROUTES = f"""
default_model: gpt-5.4
routes: {{support: gpt-5.4, cheap: gpt-5.4-nano}}
{FALLBACKS}
retries: {{max_attempts: 1}}
"""


@pytest.fixture
async def chained(store: Store, provider: SpawnedProvider) -> AsyncIterator[Served]:
    async with serving(store, provider, CLOSED_ROUTES, hosts=None) as running:
        yield running


async def test_unpermitted_model_is_no_fallback(chained: Served, provider: SpawnedProvider) -> None:
    headers = await key_for(chained, models=("gpt-5.4", "gpt-5.4-nano"))
    provider.set_rules("rules: [{match: {model: gpt-5.4}, fault: {status: 503}}]")
    try:
        answer = await chained.ask(headers=headers | {"x-job-id": "f", "x-task": "support"})
    finally:
        provider.reset()
        provider.set_rules("rules: []")
    assert answer.headers["x-overnight-fallback"] == "gpt-5.4-nano"
    called = [event.facts for event in await chained.events("f", "acme") if event.facts.event == "model_called"]
    assert [facts.model for facts in called] == ["gpt-5.4", "gpt-5.4-nano"]
    assert {"name": "gpt-5.4-mini", "why": "not permitted by the key"} in called[0].decision["rejected"]


async def test_forbidden_model_error_lists_permitted_models(chained: Served) -> None:
    headers = await key_for(chained, models=("gpt-5.4-n*", "mistral*"), routes=("cheap", "as_asked"))
    before = chained.provider.stats()["requests"]
    message = refused(await chained.ask(model="gpt-5.4", headers=headers), 403, "not_allowed")
    assert message == "Forbidden: the key does not permit model gpt-5.4; permitted: gpt-5.4-n*, mistral*"
    message = refused(await chained.ask(headers=headers | {"x-task": "support"}), 403, "not_allowed")
    assert message == "Forbidden: the key does not permit route support; permitted: cheap, as_asked"
    refused(await chained.ask(headers=headers, metadata={"task": "support"}), 403, "not_allowed")
    refused(await chained.ask(headers=headers), 403, "not_allowed")
    for path, body in (
        ("responses", {"input": "x"}),
        ("messages", {"max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}),
    ):
        answer = await chained.http.post(f"/v1/{path}", json={"model": "gpt-5.4", **body}, headers=headers)
        assert answer.status_code == 403, answer.text
    assert chained.provider.stats()["requests"] == before
    assert (await chained.ask(model="cheap", headers=headers)).status_code == 200
    shown = (await chained.http.get("/v1/models", headers=headers)).json()["data"]
    assert {model["id"] for model in shown} >= {"gpt-5.4-nano"}
    assert all(model["id"].startswith(("gpt-5.4-n", "mistral")) for model in shown)
    refused(await chained.http.get("/v1/models/gpt-5.4", headers=headers), 403, "not_allowed")


async def test_events_name_the_actor(guarded: Served) -> None:
    headers = await key_for(guarded, name="laptop", scopes=EVERYTHING)
    await guarded.ask(headers=headers | {"x-job-id": "j"})
    await guarded.http.post("/api/v1/jobs/j/attempts", headers=headers)
    (created, *_) = await guarded.events("j", "acme")
    assert (created.facts.detail or {})["key_id"].startswith("key_")
    await guarded.http.post("/api/v1/jobs/j/cancel", headers=headers)
    said = {event.facts.event: event.facts.actor for event in await guarded.events("j", "acme")}
    for name in ("created", "model_called", "model_succeeded", "attempt_started", "cancelled"):
        assert said[name] == "laptop", said


# ── a change of keys ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_rotation_under_load_fails_no_call(guarded: Served) -> None:
    keys = Keys(guarded.store)
    _, secret = await keys.create("acme", NewKey(name="k"), "ann")
    present, stop, done = [secret], asyncio.Event(), [0]

    async def agent(number: int) -> None:
        used = ""
        client = openai.AsyncOpenAI(base_url=f"{guarded.url}/v1", api_key="x", max_retries=0)
        async with client:
            while not stop.is_set():
                if number % 2 or not used:  # every other one keeps the secret that it began with
                    used = present[0]
                client.api_key = used
                messages: list[Any] = [{"role": "user", "content": "hello"}]
                await client.chat.completions.create(model="gpt-5.4-mini", messages=messages)
                done[0] += 1

    agents = [asyncio.create_task(agent(number)) for number in range(6)]
    while done[0] < 60:
        await asyncio.sleep(0.01)
    _, present[0] = await keys.rotate("k", "acme", Rotation(overlap_ms=60_000), "ann")
    before = done[0]
    while done[0] < before + 120:
        await asyncio.sleep(0.01)
    stop.set()
    await asyncio.gather(*agents)


async def test_revocation_reaches_other_processes_in_two_seconds(
    store: Store, store_url: str, provider: SpawnedProvider, tmp_path: Path
) -> None:
    keys = Keys(store)
    row, secret = await keys.create("default", NewKey(name="k"), "ann")
    _, other = await keys.create("default", NewKey(name="other"), "ann")
    with gateway_process(store_url, provider, tmp_path, routed()) as process:
        async with httpx2.AsyncClient(base_url=process.url, timeout=30) as http:

            async def status(shown: str) -> int:
                body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
                headers = {"authorization": f"Bearer {shown}"}
                return (await http.post("/v1/chat/completions", json=body, headers=headers)).status_code

            assert await status(secret) == 200
            calls = [asyncio.create_task(status(other)) for _ in range(20)]
            await keys.revoke(row.key_id, "", "ann")
            until = time.monotonic() + 2.0
            while time.monotonic() < until:
                calls.append(asyncio.create_task(status(other)))
                await asyncio.sleep(0.05)
            assert await status(secret) == 401
            assert set(await asyncio.gather(*calls)) == {200}


# ── the admin's paths ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_admin_key_manages_keys_of_its_tenant(guarded: Served) -> None:
    admin = await key_for(guarded, name="root", scopes=("admin",))
    made = await guarded.http.post("/api/v1/keys", json={"name": "k", "models": ["gpt-*"]}, headers=admin)
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    secret, key_id = made.json()["key"], made.json()["key_id"]
    assert (await guarded.ask(headers={"x-api-key": secret})).status_code == 200
    listed = await guarded.http.get("/api/v1/keys?limit=5", headers=admin)
    assert [key["name"] for key in listed.json()["keys"]] == ["k", "root"]
    assert made.json()["created_by"] == "root"
    turned = await guarded.http.post("/api/v1/keys/k/rotate", json={"overlap_ms": 0}, headers=admin)
    assert (await guarded.ask(headers={"x-api-key": secret})).status_code == 401
    assert (await guarded.ask(headers={"x-api-key": turned.json()["key"]})).status_code == 200
    ended = await guarded.http.post(f"/api/v1/keys/{key_id}/revoke", headers=admin)
    assert ended.json()["state"] == "revoked"
    assert (await guarded.ask(headers={"x-api-key": turned.json()["key"]})).status_code == 401
    for shown in (listed, ended, await guarded.http.get(f"/api/v1/keys/{key_id}", headers=admin)):
        assert secret[15:] not in shown.text
        assert turned.json()["key"][15:] not in shown.text


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", "keys", {"name": "root"}, 409, "root"),
        ("POST", "keys", {"nam": "x"}, 400, "nam"),
        ("POST", "keys", {"name": "x", "scopes": ["all"]}, 400, "calls, effects, tools"),
        ("POST", "keys", {"name": "x", "tenant_id": "other"}, 400, "tenant_id"),
        ("POST", "keys", {"name": "x", "expires_in_ms": 0}, 400, "expires_in_ms"),
        ("GET", "keys?page=2", None, 400, "page"),
        ("GET", "keys/none", None, 404, "none"),
        ("POST", "keys/root/rotate", {"overlap_ms": 10**12}, 400, "overlap_ms"),
        ("PUT", "provider-keys/opena", {"key": "x"}, 400, "did you mean 'openai'"),
        ("PUT", "provider-keys/openai", {"key": "a b"}, 400, "visible ASCII"),
        ("PUT", "provider-keys/openai", {"key": "sk-1"}, 400, "OVERNIGHT_MASTER_KEY"),
        ("DELETE", "provider-keys/openai", None, 404, "openai"),
        ("DELETE", "keys/root", None, 405, "GET"),
    ],
)
async def test_invalid_key_requests_are_problems_with_instructions(
    guarded: Served, method: str, path: str, body: Any, status: int, says: str
) -> None:
    admin = await key_for(guarded, name="root", scopes=("admin",))
    answer = await guarded.http.request(method, f"/api/v1/{path}", json=body, headers=admin)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]


# ── allowances ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_allowance_of_a_key_is_replaced_over_http(guarded: Served) -> None:
    admin = await key_for(guarded, scopes=("keys.admin",))
    await key_for(guarded, scopes=("instance.admin",), name="operator")
    _, secret = await Keys(guarded.store).create("acme", NewKey(name="agent", jobs=("day/*",), tools=("a",)), "ann")
    caller = {"authorization": f"Bearer {secret}"}

    async def allow(name: str, body: Any, key: dict[str, str] = admin) -> Any:
        return await guarded.http.post(f"/api/v1/keys/{name}/allow", json=body, headers=key)

    assert (await guarded.ask(headers=caller | {"x-job-id": "night/1"})).status_code == 403
    shown = (await allow("agent", {"jobs": ["night/*"]})).json()
    assert (shown["jobs"], shown["tools"]) == (["night/*"], ["a"])
    assert (await guarded.ask(headers=caller | {"x-job-id": "night/1"})).status_code == 200
    assert (await guarded.ask(headers=caller | {"x-job-id": "day/1"})).status_code == 403
    assert (await allow("agent", {"jobs": []})).json()["jobs"] == []
    assert (await guarded.ask(headers=caller | {"x-job-id": "day/1"})).status_code == 200
    for body in ({}, {"jobs": None}, {"jobs": "x"}, {"jobs": [""]}, {"models": ["x"]}):
        assert (await allow("agent", body)).status_code == 400, body
    assert (await allow("unknown", {"jobs": []})).status_code == 404
    assert (await allow("agent", {"jobs": []}, caller)).status_code == 403
    assert (await allow("operator", {"jobs": ["x"]})).status_code == 403
    audit = await list_audit(guarded.store, "acme")
    changes = [entry for entry in audit if entry.action == "key.allowance_changed"]
    assert len(changes) == 2
    assert all(entry.key_id is not None for entry in changes)
