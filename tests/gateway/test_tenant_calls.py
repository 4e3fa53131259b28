"""Provider keys of tenants: a provider receives only its tenant's key."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from overnight.gateway import JobCalls
from overnight.jobs import Worker
from overnight.keys import Keyring, Keys, MasterKeys, NewKey
from overnight.ledger import Ledger
from overnight.store import Store
from overnight.testing import SpawnedProvider
from recording_provider import RecordingProvider, recording_provider
from serving import Served, serving
from store_content import everything_in

MASTER = "11" * 32
OWN, HOUSE = "sk-acmes-own-key-4711", "sk-of-the-house-0815"


@pytest.fixture
async def upstream() -> AsyncIterator[RecordingProvider]:
    async with recording_provider() as running:
        yield running


def routing(upstream: RecordingProvider, kind: str = "openai") -> str:
    # Anthropic's own greeting, though it speaks chat here.
    return f"""
default_model: m
providers:
  house: {{base_url: "{upstream.base_url}", models: [m], api_key_env: HOUSE_KEY, kind: {kind}, apis: [chat]}}
prices: {{m: {{input_usd_per_mtok: 1, output_usd_per_mtok: 1}}}}
retries: {{max_attempts: 1}}
"""


@pytest.fixture
async def served(store: Store, provider: SpawnedProvider, upstream: RecordingProvider) -> AsyncIterator[Served]:
    options = {"environment": {"HOUSE_KEY": HOUSE}, "keys": Keyring(store, MasterKeys(MASTER))}
    async with serving(store, provider, routing(upstream), **options) as running:
        yield running


async def shown(served: Served, upstream: RecordingProvider, tenant: str) -> str:
    answer = await served.ask(headers={"x-tenant-id": tenant})
    assert answer.status_code == 200, answer.text
    return upstream.seen[-1]["authorization"]


async def test_tenant_key_replaces_the_default_key_for_its_calls(
    served: Served, upstream: RecordingProvider, store: Store
) -> None:
    keys = Keys(store, MasterKeys(MASTER))
    assert await shown(served, upstream, "acme") == f"Bearer {HOUSE}"
    await keys.set_provider_key("acme", "house", OWN, "ann")
    await asyncio.sleep(2.0)
    assert await shown(served, upstream, "acme") == f"Bearer {OWN}"
    assert await shown(served, upstream, "other") == f"Bearer {HOUSE}"
    await keys.set_provider_key("acme", "house", OWN + "-2", "ann")
    await asyncio.sleep(2.0)
    assert await shown(served, upstream, "acme") == f"Bearer {OWN}-2"
    await keys.drop_provider_key("acme", "house", "ann")
    await asyncio.sleep(2.0)
    assert await shown(served, upstream, "acme") == f"Bearer {HOUSE}"


async def test_unreadable_tenant_key_has_no_replacement(
    served: Served, upstream: RecordingProvider, store: Store
) -> None:
    await Keys(store, MasterKeys("22" * 32)).set_provider_key("acme", "house", OWN, "ann")
    served.gateway.keys.expire()
    answer = await served.ask(headers={"x-tenant-id": "acme"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_target")
    assert "OVERNIGHT_MASTER_KEY" in answer.json()["error"]["message"]
    assert upstream.seen == []


async def test_job_code_uses_its_tenants_key(served: Served, upstream: RecordingProvider, store: Store) -> None:
    import overnight
    from overnight.jobs import Operations

    @overnight.job
    async def asks() -> str:
        return (await overnight.chat("hello")).text

    await Keys(store, MasterKeys(MASTER)).set_provider_key("acme", "house", OWN, "ann")
    job = await Operations(store).create(asks, (), {}, tenant_id="acme")
    worker = Worker(store, JobCalls(served.gateway), root=job.job_id)
    await worker.start()
    try:
        async with asyncio.timeout(20):
            while (await Ledger(store).job(job.job_id)).state != "succeeded":
                await asyncio.sleep(0.02)
    finally:
        await worker.stop()
    assert upstream.seen[-1]["authorization"] == f"Bearer {OWN}"


async def test_provider_receives_its_own_auth_headers(
    store: Store, provider: SpawnedProvider, upstream: RecordingProvider
) -> None:
    await Keys(store, MasterKeys(MASTER)).set_provider_key("acme", "house", OWN, "ann")
    options = {"environment": {"HOUSE_KEY": HOUSE}, "keys": Keyring(store, MasterKeys(MASTER))}
    async with serving(store, provider, routing(upstream, "anthropic"), **options) as served:
        await served.ask(headers={"x-tenant-id": "acme"})
    assert upstream.seen[-1]["x-api-key"] == OWN
    assert "authorization" not in upstream.seen[-1]


@pytest.mark.parametrize(("asked_for", "expected"), [(True, "scripted"), (False, "house")])
async def test_tenant_key_applies_unless_offline_is_requested(
    store: Store, provider: SpawnedProvider, upstream: RecordingProvider, asked_for: bool, expected: str
) -> None:
    await Keys(store, MasterKeys(MASTER)).set_provider_key("acme", "house", OWN, "ann")
    options = {"offline_base_url": provider.base_url, "offline_was_asked_for": asked_for}
    async with serving(
        store, provider, routing(upstream), keys=Keyring(store, MasterKeys(MASTER)), **options
    ) as served:
        for tenant in ("acme", "other"):
            await served.ask(headers={"x-tenant-id": tenant, "x-job-id": "j"})
        assert (await served.events("j", "acme"))[-1].facts.provider == expected
        assert (await served.events("j", "other"))[-1].facts.provider == "scripted"
    assert len(upstream.seen) == (expected == "house")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
async def test_echoed_tenant_key_is_redacted(
    served: Served, upstream: RecordingProvider, store: Store, status: int, stream: bool
) -> None:
    upstream.refusing, upstream.streaming = status, stream and status == 200
    await Keys(store, MasterKeys(MASTER)).set_provider_key("acme", "house", OWN, "ann")
    answer = await served.ask(headers={"x-tenant-id": "acme", "x-job-id": "j"}, stream=stream)
    failed = (await served.events("j", "acme"))[-1].facts
    assert upstream.seen[-1]["authorization"] == f"Bearer {OWN}"
    assert "you showed Bearer [key]" in failed.error.message
    assert OWN not in answer.text
    await served.ask(headers={"x-tenant-id": "other", "x-job-id": "j"}, stream=stream)
    assert "[key]" in (await served.events("j", "other"))[-1].facts.error.message


async def test_no_secret_is_stored_logged_or_returned(
    store: Store,
    store_url: str,
    provider: SpawnedProvider,
    upstream: RecordingProvider,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.DEBUG)
    admin_row, admin = await Keys(store).create(
        "acme", NewKey(name="root", scopes=("call", "read", "operate", "admin")), "a"
    )
    options = {"environment": {"HOUSE_KEY": HOUSE}, "keys": Keyring(store, MasterKeys(MASTER))}
    said: list[str] = []
    async with serving(store, provider, routing(upstream), hosts=None, **options) as served:
        headers = {"authorization": f"Bearer {admin}"}

        async def ask(method: str, path: str, body: object = None, **more: str) -> None:
            answer = await served.http.request(method, path, json=body, headers=headers | more)
            said.append(answer.text + str(answer.headers))

        hello = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
        await ask("PUT", "/api/v1/provider-keys/house", {"key": OWN})
        await ask("PUT", "/api/v1/provider-keys/house", {"key": f"{OWN} "})
        await ask("PUT", "/api/v1/provider-keys/house", {"kei": OWN})
        await ask("POST", "/v1/chat/completions", hello, **{"x-job-id": "j"})
        upstream.refusing = 500
        await ask("POST", "/v1/chat/completions", hello, **{"x-job-id": "j"})
        await ask("POST", "/v1/chat/completions", hello, **{"x-tenant-id": "other"})
        await ask("POST", "/v1/chat/completions", hello, **{"x-job-id": "a;b"})
        for path in (
            "/api/v1/jobs/j/events",
            "/api/v1/keys",
            "/api/v1/keys/root",
            "/api/v1/provider-keys",
        ):
            await ask("GET", path)
        await ask("GET", "/api/v1/keys", authorization=f"Bearer {admin[:-1]}x")
        events = str(await served.events("j", "acme"))
    store.close()
    assert upstream.seen[0]["authorization"] == f"Bearer {OWN}"
    output = capfd.readouterr()
    # The client of this test logs in the same process, and may log what it sends.
    logged = "".join(str(record.__dict__) for record in caplog.records if not record.name.startswith(("http", "hpack")))
    everything = "".join([*said, events, logged, output.out, output.err])
    everything += everything_in(store_url).decode("latin-1") + repr(options["keys"]) + repr(admin_row)
    assert admin_row.handle in everything
    for secret in (admin[15:], OWN, HOUSE, MASTER):
        assert secret not in everything
