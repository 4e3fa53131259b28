"""Effects over HTTP when a gateway is killed between a record and its response, and with two gateways on one store."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from http_effects import AheadClock, claim, effect, report
from overnight.effects import expire_claims
from overnight.reviews import list_reviews
from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider
from serving import gateway_process, serving


@pytest.mark.timeout(120)
async def test_lost_201_is_claimed_again_by_its_holder(
    store_url: str, provider: SpawnedProvider, tmp_path: Path
) -> None:
    with gateway_process(store_url, provider, tmp_path / "a", crash_at="claim_recorded") as killed:
        async with httpx2.AsyncClient(base_url=killed.url, timeout=30) as http:
            with pytest.raises(httpx2.TransportError):
                await claim(http, holder="p7")
    with gateway_process(store_url, provider, tmp_path / "b") as survivor:
        async with httpx2.AsyncClient(base_url=survivor.url, timeout=30) as http:
            assert (await claim(http, holder="p8")).json()["code"] == "in_progress"
            claimed = await claim(http, holder="p7")
            assert (claimed.status_code, claimed.json()["verdict"]) == (201, "run")
            assert (await report(http, claimed, "commit", provider_id="re_1")).status_code == 200


@pytest.mark.timeout(120)
async def test_lost_answer_to_a_report_is_reported_again(
    store_url: str, provider: SpawnedProvider, tmp_path: Path
) -> None:
    with gateway_process(store_url, provider, tmp_path / "a", crash_at="report_recorded") as killed:
        async with httpx2.AsyncClient(base_url=killed.url, timeout=30) as http:
            claimed = await claim(http, holder="p7")
            with pytest.raises(httpx2.TransportError):
                await report(http, claimed, "commit", provider_id="re_1")
    with gateway_process(store_url, provider, tmp_path / "b") as survivor:
        async with httpx2.AsyncClient(base_url=survivor.url, timeout=30) as http:
            again = await report(http, claimed, "commit", provider_id="re_1")
            assert (again.status_code, again.json()["repeated"]) == (200, True)


async def test_two_gateways_grant_one_claim(store_url: str, provider: SpawnedProvider) -> None:
    with open_store(store_url) as first, open_store(store_url) as second:
        async with serving(first, provider) as one, serving(second, provider) as other:
            for round_ in range(5):
                answers = await asyncio.gather(
                    *(claim((one, other)[n % 2].http, f"k{round_}", holder=f"p{n}") for n in range(6))
                )
                assert sorted(each.status_code for each in answers) == [201, *[409] * 5]
                (granted,) = [each for each in answers if each.status_code == 201]
                # Each gateway takes the report of a claim that the other one may have granted.
                done = await report((other, one)[round_ % 2].http, granted, "commit", provider_id=f"re_{round_}")
                assert done.status_code == 200, done.text
                assert [(await claim(each.http, f"k{round_}")).status_code for each in (one, other)] == [200, 200]


async def test_two_sweeps_expire_a_claim_once(store_url: str, provider: SpawnedProvider) -> None:
    clock = AheadClock()
    with open_store(store_url, clock) as first, open_store(store_url, clock) as second:
        async with serving(first, provider) as served:
            claimed = [await claim(served.http, f"k{n}") for n in range(4)]
            clock.forward(61)
            ended: list[list[Any]] = await asyncio.gather(expire_claims(first), expire_claims(second))
            shown = [await effect(served.http, each) for each in claimed]
            assert [each["state"] for each in shown] == ["unknown"] * 4
            assert sum(map(len, ended)) <= 4  # the gateway sweeps too
            assert len(await list_reviews(first)) == 4
            for each in claimed:
                assert (await served.story(each.json()["job_id"])).count("tool_unknown") == 1


async def test_gateway_that_granted_no_claim_takes_its_report(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider) as one, serving(store, provider) as other:
        claimed = await claim(one.http, headers={"x-job-id": "a"})
        assert (await report(other.http, claimed, "commit")).status_code == 200
