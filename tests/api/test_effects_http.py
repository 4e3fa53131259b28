"""Effects over HTTP: claims, reports, replays, expiry, and the form of every refusal."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from http_effects import PATH, AheadClock, claim, effect, report
from overnight.effects import expire_claims
from overnight.gateway.admission.abandoned_jobs import AbandonedJobs
from overnight.jobs import Operations
from overnight.reviews import Decision, list_reviews
from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider
from serving import Served, serving

JOB = {"x-job-id": "nightly"}


@pytest.fixture
def clock() -> AheadClock:
    return AheadClock()


@pytest.fixture
def store(store_url: str, clock: AheadClock) -> Iterator[Store]:
    with open_store(store_url, clock) as opened:
        yield opened


@pytest.fixture
async def served(store: Store, provider: SpawnedProvider) -> AsyncIterator[Served]:
    async with serving(store, provider) as running:
        yield running


async def expired(served: Served, clock: AheadClock, claimed: Any, seconds: float = 61) -> dict[str, Any]:
    """The effect after its claim has expired, and a sweep of the gateway or this one has seen it."""
    clock.forward(seconds)
    await expire_claims(served.store)
    return await effect(served.http, claimed)


async def cards(served: Served) -> list[tuple[str, str]]:
    return [(each.kind, each.state) for each in await list_reviews(served.store, state="")]


# ── claim, report, replay ────────────────────────────────────────────────────────────────────────────────────────────


async def test_claim_commit_and_replay(served: Served) -> None:
    claimed = await claim(served.http, holder="p7")
    assert claimed.status_code == 201, claimed.text
    run = claimed.json()
    assert (run["verdict"], run["arguments"], run["attempt"]) == ("run", {"payment": "pay_7", "usd": 40}, 1)
    assert run["claim_id"].startswith("clm_")
    assert claimed.headers["location"] == f"{PATH}/{run['effect_id']}"
    done = await report(served.http, claimed, "commit", provider_id="re_81", result={"id": "re_81"})
    assert done.status_code == 200, done.text
    assert (done.json()["state"], done.json()["found_by"]) == ("committed", "reported")
    again = await claim(served.http, holder="p8")
    assert again.status_code == 200, again.text
    assert again.json() == {
        "verdict": "committed",
        "effect_id": run["effect_id"],
        "job_id": run["job_id"],
        "provider_id": "re_81",
        "result": {"id": "re_81"},
        "replayed": True,
    }
    assert await served.story(run["job_id"]) == ["created", "tool_called", "tool_succeeded", "completed"]
    shown = await effect(served.http, claimed)
    assert (shown["state"], shown["result"], shown["arguments"]) == ("committed", {"id": "re_81"}, run["arguments"])


async def test_numbers_of_arguments_are_returned_as_sent(served: Served) -> None:
    body = b'{"tool":"pay","arguments":{"usd":1.10,"big":123456789012345678901234567890}}'
    claimed = await served.http.post(
        PATH, content=body, headers={"idempotency-key": "k", "content-type": "application/json"}
    )
    assert b'"arguments":{"usd":1.10,"big":123456789012345678901234567890}' in claimed.content


async def test_reports_repeat(served: Served) -> None:
    first, second, third = [await claim(served.http, key) for key in ("a", "b", "c")]
    for claimed, verb, body in (
        (first, "commit", {"provider_id": "re_1"}),
        (second, "fail", {"error": {"class": "card_declined", "message": "no"}}),
        (third, "unknown", {"why": "timed out"}),
    ):
        answers = [await report(served.http, claimed, verb, **body) for _ in range(2)]
        assert [(each.status_code, each.json()["repeated"]) for each in answers] == [(200, False), (200, True)]
    assert await cards(served) == [("quarantine", "open")]


async def test_failed_effect_runs_again_with_its_vendor_key(served: Served) -> None:
    first = await claim(served.http)
    await report(served.http, first, "fail", error={"class": "card_declined", "message": "no"})
    again = await claim(served.http, arguments={"payment": "pay_8"})
    assert again.status_code == 201, again.text
    assert again.json()["vendor_key"] == first.json()["vendor_key"]
    assert again.json()["claim_id"] != first.json()["claim_id"]


async def test_unknown_is_not_repeated_and_has_one_card(served: Served) -> None:
    claimed = await claim(served.http)
    told = await report(served.http, claimed, "unknown", why="timed out")
    assert (told.status_code, told.json()["state"]) == (200, "unknown")
    for _ in range(2):
        refused = await claim(served.http)
        assert (refused.status_code, refused.json()["code"]) == (409, "unknown")
        assert refused.headers["x-should-retry"] == "false"
        assert refused.json()["review_id"] == told.json()["waits_for"]
    (card,) = await list_reviews(served.store)
    assert (card.kind, card.review_id) == ("quarantine", refused.json()["review_id"])
    assert '"payment":"pay_7"' in card.detail


# ── claims of several holders ────────────────────────────────────────────────────────────────────────────────────────


async def test_same_holder_extends_and_another_waits(served: Served, clock: AheadClock) -> None:
    first = await claim(served.http, holder="p7", timeout_ms=30_000)
    clock.forward(20)
    other = await claim(served.http, holder="p8")
    assert (other.status_code, other.json()["code"]) == (409, "in_progress")
    assert (other.headers["x-should-retry"], other.headers["retry-after"]) == ("true", "10")
    again = await claim(served.http, holder="p7", timeout_ms=30_000)
    assert again.status_code == 201
    assert again.json()["expires_at"] > first.json()["expires_at"]
    # The 201 of either claim may be the one that arrived.
    done = await report(served.http, first, "commit", provider_id="re_1")
    assert (done.status_code, await cards(served)) == (200, [])
    assert (await report(served.http, again, "commit", provider_id="re_1")).json()["repeated"]


async def test_claims_without_a_holder_are_of_different_holders(served: Served) -> None:
    answers = [await claim(served.http) for _ in range(2)]
    assert [each.status_code for each in answers] == [201, 409]


async def test_parallel_claims_run_once(served: Served) -> None:
    answers = await asyncio.gather(*(claim(served.http, holder=f"p{n}") for n in range(8)))
    assert sorted(each.status_code for each in answers) == [201, *[409] * 7]


async def test_expired_claim_is_unknown_with_a_card(served: Served, clock: AheadClock) -> None:
    claimed = await claim(served.http, timeout_ms=60_000)
    clock.forward(59)
    await expire_claims(served.store)
    assert (await effect(served.http, claimed))["state"] == "claimed"
    shown = await expired(served, clock, claimed, 2)
    assert (shown["state"], await cards(served)) == ("unknown", [("quarantine", "open")])
    names = await served.story(claimed.json()["job_id"])
    assert names == ["created", "tool_called", "tool_unknown", "review_requested"]


async def test_own_job_of_a_silent_holder_is_abandoned(served: Served, clock: AheadClock) -> None:
    claimed = await claim(served.http)
    await expired(served, clock, claimed)
    clock.forward(3600 * 24 * 3)
    sweep = AbandonedJobs(served.store)
    await sweep.sweep(24)
    shown = (await served.http.get(f"/api/v1/jobs/{claimed.json()['job_id']}")).json()
    assert shown["state"] == "failed"
    assert await cards(served) == [("quarantine", "open")]
    late = await report(served.http, claimed, "commit", provider_id="re_1")
    assert (late.status_code, late.json()["state"]) == (200, "committed")


async def test_late_report_is_kept(served: Served, clock: AheadClock) -> None:
    claimed = await claim(served.http)
    await expired(served, clock, claimed)
    late = await report(served.http, claimed, "commit", provider_id="re_1", result=1)
    assert (late.status_code, late.json()["state"]) == (200, "committed")
    assert await cards(served) == [("quarantine", "superseded")]


async def test_second_execution_opens_a_card(served: Served, clock: AheadClock) -> None:
    """A holder slept past its lease; a person said that it was not done, and another holder did it."""
    first = await claim(served.http, holder="p7")
    await expired(served, clock, first)
    (card,) = await list_reviews(served.store)
    await Operations(served.store).decide(card.review_id, Decision(answer="not_done", by="mia"))
    second = await claim(served.http, holder="p8")
    assert second.status_code == 201, second.text
    assert (await report(served.http, second, "commit", provider_id="re_2")).status_code == 200
    late = await report(served.http, first, "commit", provider_id="re_1")
    assert (late.status_code, late.json()["code"]) == (409, "claim_lost")
    assert ("duplicate", "open") in await cards(served)
    assert "tool_duplicated" in await served.story(first.json()["job_id"])


async def test_newer_attempt_makes_a_claim_unknown(served: Served) -> None:
    first = await claim(served.http, headers=JOB, holder="p7")
    newer = await claim(served.http, headers={**JOB, "x-job-attempt": "2"}, holder="p7")
    assert (newer.status_code, newer.json()["code"]) == (409, "unknown")
    stale = await claim(served.http, "k2", headers={**JOB, "x-job-attempt": "1"})
    assert (stale.status_code, stale.json()["code"]) == (409, "fenced")
    late = await report(served.http, first, "commit", provider_id="re_1")
    assert late.json()["state"] == "committed"
    replayed = await claim(served.http, headers={**JOB, "x-job-attempt": "3"})
    assert (replayed.status_code, replayed.json()["provider_id"]) == (200, "re_1")


async def test_key_holds_in_its_job(served: Served) -> None:
    answers = [await claim(served.http, headers={"x-job-id": name}) for name in ("a", "b")]
    answers.append(await claim(served.http))
    assert [each.status_code for each in answers] == [201, 201, 201]
    assert len({each.json()["effect_id"] for each in answers}) == 3


async def test_finished_job_replays_without_reopening(served: Served) -> None:
    claimed = await claim(served.http, headers=JOB)
    await report(served.http, claimed, "commit", provider_id="re_1")
    await served.http.post("/api/v1/jobs/nightly/complete", json={})
    assert (await claim(served.http, headers=JOB)).status_code == 200
    assert (await claim(served.http, headers=JOB, arguments={})).status_code == 422
    assert (await served.http.get("/api/v1/jobs/nightly")).json()["state"] == "succeeded"


async def test_cancelled_job_begins_nothing(served: Served) -> None:
    claimed = await claim(served.http, headers=JOB)
    await served.http.post("/api/v1/jobs/nightly/cancel", json={})
    refused = await claim(served.http, "k2", headers=JOB)
    assert (refused.status_code, refused.json()["code"]) == (409, "fenced")
    assert (await report(served.http, claimed, "commit")).status_code == 200


# ── wait and list ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_wait_returns_with_the_change(served: Served) -> None:
    claimed = await claim(served.http)
    waiting = asyncio.create_task(effect(served.http, claimed, wait_ms=20_000))
    await asyncio.sleep(0)
    await report(served.http, claimed, "commit", provider_id="re_1")
    assert (await waiting)["state"] == "committed"
    assert (await effect(served.http, claimed, wait_ms=20_000))["state"] == "committed"


async def test_wait_sees_changes_of_other_processes(served: Served, store_url: str, provider: SpawnedProvider) -> None:
    claimed = await claim(served.http)
    waiting = [asyncio.create_task(effect(served.http, claimed, wait_ms=20_000)) for _ in range(3)]
    with open_store(store_url) as second:
        async with serving(second, provider) as other:
            await report(other.http, claimed, "fail", error={})
            assert [each["state"] for each in await asyncio.gather(*waiting)] == ["failed"] * 3


async def test_wait_ends_at_its_time(served: Served) -> None:
    claimed = await claim(served.http)
    assert (await effect(served.http, claimed, wait_ms=20))["state"] == "claimed"


async def test_effects_are_listed_in_pages(served: Served) -> None:
    made = [await claim(served.http, f"k{n}", headers={"x-job-id": f"j{n % 2}"}) for n in range(5)]
    await report(served.http, made[0], "commit")
    ids = [each.json()["effect_id"] for each in made]

    async def listed(**query: Any) -> tuple[list[str], str | None]:
        found = (await served.http.get(PATH, params=query)).json()
        return [each["effect_id"] for each in found["effects"]], found["before"]

    assert await listed() == (ids[::-1], None)
    first, before = await listed(limit=3)
    assert (first, (await listed(limit=3, before=before))[0]) == (ids[:1:-1], ids[1::-1])
    assert (await listed(job="j1"))[0] == [ids[3], ids[1]]
    assert (await listed(state="committed"))[0] == ids[:1]
    assert (await listed(tool="send_mail"))[0] == []


# ── refused ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"other": 1}, 400, "invalid_request"),
        ({"arguments": [1]}, 400, "arguments_invalid"),
        ({"arguments": {"a": {"b": None}}, "timeout_ms": 10}, 400, "invalid_request"),
        ({"timeout_ms": 86_400_001}, 400, "invalid_request"),
        ({"timeout_ms": "60000"}, 400, "invalid_request"),
        ({"holder": "a\nb"}, 400, "invalid_request"),
        ({"tool": ""}, 400, "invalid_request"),
        ({"arguments": {"a": "x" * 262_144}}, 413, "body_too_large"),
    ],
)
async def test_invalid_claims_are_refused(served: Served, body: dict[str, Any], status: int, code: str) -> None:
    refused = await claim(served.http, **body)
    assert (refused.status_code, refused.json()["code"]) == (status, code), refused.text
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "body",
    [
        b'{"tool":"refund","arguments":{"usd":NaN}}',
        b'{"tool":"refund","arguments":{"usd":1e400}}',
        b'{"tool":"refund","arguments":' + b'{"a":' * 65 + b"1" + b"}" * 65 + b"}",
        b'{"tool":"refund","arguments":' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
        b'{"tool":"refund","arguments":{"a":1}',
        b"\xff",
        b"",
    ],
)
async def test_unreadable_bodies_are_refused(served: Served, body: bytes) -> None:
    headers = {"idempotency-key": "k", "content-type": "application/json"}
    refused = await served.http.post(PATH, content=body, headers=headers)
    assert refused.status_code == 400, refused.text
    assert refused.json()["code"] in {"invalid_request", "arguments_invalid"}


@pytest.mark.parametrize(
    ("key", "code"), [(None, "key_missing"), ("", "key_missing"), ("a b", "key_invalid"), ("x" * 256, "key_invalid")]
)
async def test_idempotency_key_is_demanded(served: Served, key: str | None, code: str) -> None:
    refused = await claim(served.http, key)
    assert (refused.status_code, refused.json()["code"]) == (400, code), refused.text


async def test_quoted_and_bare_keys_are_the_same(served: Served) -> None:
    assert (await claim(served.http, '"k:~1"')).status_code == 201
    assert (await claim(served.http, "k:~1")).status_code == 409


async def test_same_key_with_other_arguments_is_refused(served: Served) -> None:
    first = await claim(served.http)
    refused = await claim(served.http, arguments={"payment": "pay_8"})
    assert (refused.status_code, refused.json()["code"]) == (422, "key_reused")
    assert refused.json()["effect_id"] == first.json()["effect_id"]


async def test_order_of_arguments_does_not_matter(served: Served) -> None:
    first = await claim(served.http, arguments={"a": 1, "b": 2}, holder="p")
    again = await claim(served.http, arguments={"b": 2, "a": 1}, holder="p")
    assert (first.status_code, again.status_code) == (201, 201)


async def test_long_result_is_cut_with_a_note(served: Served) -> None:
    claimed = await claim(served.http)
    done = await report(served.http, claimed, "commit", result={"text": "x" * 2_000_000})
    assert done.status_code == 200, done.text
    result = (await claim(served.http)).json()["result"]
    assert result["overnight_note"] == "the result had 2,000,011 bytes; its beginning is kept"
    assert len(result["beginning"]) == 512 * 1024


async def test_halves_of_surrogate_pairs_lose_no_report(served: Served) -> None:
    claimed = await claim(served.http)
    body = b'{"claim_id":"%b","result":{"text":"\\ud83d"}}' % claimed.json()["claim_id"].encode()
    where = f"{PATH}/{claimed.json()['effect_id']}/commit"
    done = await served.http.post(where, content=body, headers={"content-type": "application/json"})
    assert done.status_code == 200, done.text
    assert (await effect(served.http, claimed))["result"] == {"text": "\ufffd"}
