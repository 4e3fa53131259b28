"""Circuits of callers: failures caused by one caller do not block others."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from overnight.keys import Keys, NewKey
from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import Served, serving

SLOW = 'rules: [{match: {model: a, user_contains: "slow"}, fault: {status: 500}}]'
DOWN = "rules: [{match: {model: a}, fault: {status: 500}}]"


@asynccontextmanager
async def house(
    store: Store, provider: SpawnedProvider, failures: int = 4, cool_down_ms: int = 300_000
) -> AsyncIterator[Served]:
    routing = f"""
default_model: a
routes: {{r: {{model: a, fallbacks: [b]}}}}
retries: {{max_attempts: 1, backoff_ms: 1}}
breakers: {{failures: {failures}, window_ms: 600000, cool_down_ms: {cool_down_ms}, max_cool_down_ms: 600000}}
providers: {{house: {{base_url: "{provider.base_url}", models: [a, b, "any-*"]}}}}
prices:
  "any-*": {{input_usd_per_mtok: 1, output_usd_per_mtok: 1}}
  a: {{input_usd_per_mtok: 1, output_usd_per_mtok: 1}}
  b: {{input_usd_per_mtok: 1, output_usd_per_mtok: 1}}
"""
    async with serving(store, provider, routing) as served:
        yield served


async def key(served: Served, tenant: str, name: str, *scopes: str) -> dict[str, str]:
    _, secret = await Keys(served.store).create(tenant, NewKey(name=name, scopes=scopes or ("call",)), "ann")
    return {"authorization": f"Bearer {secret}"}


async def models(served: Served, headers: dict[str, str], text: str, count: int) -> list[str]:
    """Which model answered each of so many calls."""
    answers = [await served.ask(f"{text} {n}", model="r", headers=headers) for n in range(count)]
    return [answer.headers["x-overnight-model"] for answer in answers]


async def shown(served: Served, headers: dict[str, str]) -> dict[bool, Any]:
    listed = (await served.http.get("/api/v1/circuits", headers=headers)).json()["circuits"]
    return {each["for_all"]: each["state"] for each in listed}


@pytest.mark.parametrize("failures", [1, 2, 4])
@pytest.mark.parametrize("by", ["tenant", "key"])
async def test_failures_of_one_caller_do_not_affect_others(
    store: Store, provider: SpawnedProvider, by: str, failures: int
) -> None:
    provider.set_rules(SLOW)
    async with house(store, provider, failures) as served:
        if by == "tenant":  # without keys, on loopback
            one, other = {"x-tenant-id": "one"}, {"x-tenant-id": "other"}
            readers = [one, other]
        else:
            one, other = await key(served, "acme", "one"), await key(served, "acme", "other")
            readers = []
        assert await models(served, one, "slow", failures + 3) == ["b"] * (failures + 3)
        asked = provider.stats()["requests"]
        assert await models(served, one, "quick", 2) == ["b"] * 2  # its own circuit is open: it does not try
        assert provider.stats()["requests"] == asked + 2
        assert await models(served, other, "quick", 3) == ["a"] * 3
        for reader, expected in zip(readers, ("open", None), strict=False):
            found = await shown(served, reader)
            assert (found.get(False), found.get(True, "closed")) == (expected, "closed")


@pytest.mark.parametrize("failures", [2, 4])
async def test_failures_of_one_tenant_do_not_affect_others(
    store: Store, provider: SpawnedProvider, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    monkeypatch.setattr("overnight.circuit_breakers.local_view.POLL_S", 0.05)
    provider.set_rules(SLOW)
    async with house(store, provider, failures) as served, house(store, provider, failures) as elsewhere:
        keys = [await key(served, "acme", f"key {n}") for n in range(4)]
        for number, each in enumerate(keys):
            assert await models((served, elsewhere)[number % 2], each, "slow", failures + 1) == ["b"] * (failures + 1)
        other = await key(served, "beta", "x")
        await asyncio.sleep(0.3)  # each has read what the other one knows
        for gateway in (served, elsewhere):
            assert await models(gateway, other, "quick", 2) == ["a"] * 2
        reader = await key(served, "acme", "reader", "read")
        listed = (await served.http.get("/api/v1/circuits", headers=reader)).json()["circuits"]
        assert Counter((each["for_all"], each["key_id"] is None) for each in listed) == {
            (False, False): 4,
            (True, True): 1,
        }
        assert await models(served, other, "slow", (failures + 1) // 2) == ["b"] * ((failures + 1) // 2)
        assert (await models(served, await key(served, "gamma", "y"), "quick", 1)) == ["b"]  # two tenants open it


async def test_endless_failing_names_do_not_block_counting(
    store: Store, provider: SpawnedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overnight.circuit_breakers.local_view.MAX_TARGETS", 6)
    provider.set_rules("rules: [{match: {model: b}, answer: hi}, {fault: {status: 500}}]")
    async with house(store, provider) as served:
        for number in range(10):
            assert (await served.ask("x", model=f"any-{number}")).status_code >= 500
        assert await models(served, {}, "hello", 4) == ["b"] * 4
        asked = provider.stats()["requests"]
        assert await models(served, {}, "hello", 2) == ["b"] * 2
        assert provider.stats()["requests"] == asked + 2  # a was not asked


async def test_failures_of_several_callers_open_the_circuit_for_all(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules(DOWN)
    async with house(store, provider) as served:
        for name in ("one", "two"):
            assert await models(served, {"x-tenant-id": name}, "hello", 2) == ["b"] * 2
        assert (await shown(served, {"x-tenant-id": "third"})) == {True: "open"}
        asked = provider.stats()["requests"]
        assert await models(served, {"x-tenant-id": "third"}, "hello", 2) == ["b"] * 2
        assert provider.stats()["requests"] == asked + 2  # a was not asked


async def test_single_caller_has_a_working_circuit(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules(DOWN)
    async with house(store, provider) as served:
        assert await models(served, {"x-job-id": "j"}, "hello", 6) == ["b"] * 6
        assert (await served.story("j")).count("model_failed") == 4
        opened = next(each.facts for each in await served.events("j") if each.facts.event == "circuit_opened")
        assert (opened.decision or {})["for"] == "tenant default"


async def test_probes_of_one_caller_never_open_the_circuit_for_all(store: Store, provider: SpawnedProvider) -> None:
    async with house(store, provider, cool_down_ms=100) as served:
        one, other = {"x-tenant-id": "one"}, {"x-tenant-id": "other"}
        for _ in range(2):
            provider.set_rules(SLOW)
            assert await models(served, one, "slow", 4) == ["b"] * 4
            await asyncio.sleep(0.15)
            assert await models(served, one, "slow", 1) == ["b"]  # the probe fails
            async with asyncio.timeout(10):
                while await models(served, one, "quick", 1) != ["a"]:  # the next one closes it
                    await asyncio.sleep(0.05)
        assert await models(served, other, "quick", 1) == ["a"]
        assert (await shown(served, other)).get(True, "closed") == "closed"
