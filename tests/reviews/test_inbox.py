"""Everything that waits for a person is a review: of a budget, of code, of a divergence, of a loop."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

import overnight
from command_line import Shell
from machine_parts import UnderJob
from overnight.budgets import TopUp, resolve_top_up, top_up_budget
from overnight.domain import FINISHED, BadInput
from overnight.jobs import Decision, Operations
from overnight.ledger import JobRow
from overnight.reviews import REVIEW, Amounts, ReviewFilter, ReviewRow, find_reviews, public_review, public_state
from overnight.store import Store, Unit, open_store
from overnight.testing import SpawnedProvider
from review_cards import MINUTE_US, Card, Clock
from served_jobs import rest, start, told, working
from serving import Served, routed, serving

CALLS = "budgets: {max_llm_calls_per_job: 1}"


@overnight.job
async def asks(count: int) -> int:
    for number in range(count):
        await overnight.chat(f"question {number}")
    return count


@overnight.job
async def asks_and_waits(count: int) -> str:
    async def question() -> bool:
        return (await overnight.approval("Go on?")).approved

    async def calls() -> int:
        for number in range(count):
            await overnight.chat(f"question {number}")
        return count

    asked, approved = await asyncio.gather(calls(), question())
    return f"{asked} {approved}"


async def inbox(store: Store, state: str = "pending", job_id: str = "") -> list[ReviewRow]:
    return await find_reviews(store, ReviewFilter(tenant_id="default", state=state, job_id=job_id))


async def top_up(served: Served, job_id: str, calls: int) -> None:
    wanted = TopUp("default", "job", job_id, "ann", "worth it", calls=calls)
    await top_up_budget(served.store, resolve_top_up(served.gateway.policy, wanted, None, served.store.clock()))


async def test_budget_stop_waits_in_the_inbox(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed(CALLS)) as served, working(served):
        job_id = await start(served, asks, 3)
        job = await rest(served, job_id, "parked")
        [card] = await inbox(store)
        assert (card.kind, job.waits[0]["review_id"]) == ("budget", card.review_id)
        assert public_review(card)["answers"].keys() == {"continue", "stop"}
        with pytest.raises(BadInput, match="not one of continue, stop"):
            await Operations(store).decide(card.review_id, Decision("edit", "ann", arguments=b"{}"))
        await Operations(store).decide(card.review_id, Decision("continue", "ann", amounts=Amounts(calls=5)))
        assert (await rest(served, job_id, *FINISHED)).result == b"3"
        assert await inbox(store) == []
        events = [event.facts for event in await served.events(job_id)]
        [added] = [event for event in events if event.event == "budget_topped_up"]
        assert (added.actor, (added.detail or {})["added_calls"]) == ("ann", 5)


async def test_top_up_supersedes_the_budget_review(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed(CALLS)) as served, working(served):
        job_id = await start(served, asks, 3)
        await rest(served, job_id, "parked")
        await top_up(served, job_id, 5)
        assert (await rest(served, job_id, *FINISHED)).result == b"3"
        [card] = await inbox(store, "superseded")
        assert (card.kind, card.decided_by) == ("budget", None)
        assert "review_superseded" in await served.story(job_id)


async def test_continue_without_amounts_asks_the_budget_again(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed(CALLS)) as served, working(served):
        job_id = await start(served, asks, 3)
        await rest(served, job_id, "parked")
        [card] = await inbox(store)
        await Operations(store).decide(card.review_id, Decision("continue", "ann"))
        await served.until(job_id, "parked", 2)
        [second] = await inbox(store)
        assert second.review_id != card.review_id
        await Operations(store).decide(second.review_id, Decision("stop", "ann", "enough"))
        assert (await rest(served, job_id, *FINISHED)).state == "cancelled"
        assert await inbox(store) == []


async def test_other_waits_do_not_repeat_the_budget_review(store: Store, provider: SpawnedProvider) -> None:
    """A job that waits for two people at once: the answer to one question asks the other not again."""
    async with serving(store, provider, routed(CALLS)) as served, working(served):
        job_id = await start(served, asks_and_waits, 2)
        await rest(served, job_id, "parked")
        cards = {card.kind: card for card in await inbox(store)}
        assert cards.keys() == {"approval", "budget"}
        await Operations(store).decide(cards["approval"].review_id, Decision("approve", "ann"))
        await served.until(job_id, "parked", 2)
        [card] = await inbox(store)
        assert card.review_id == cards["budget"].review_id
        await top_up(served, job_id, 5)
        assert (await rest(served, job_id, *FINISHED)).result == b'"2 True"'
        assert [public_state(each) for each in await inbox(store, "", job_id)].count("superseded") == 1


async def test_cancelled_job_leaves_no_card(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed(CALLS)) as served, working(served):
        job_id = await start(served, asks_and_waits, 2)
        await rest(served, job_id, "parked")
        assert len(await inbox(store)) == 2
        await Operations(store).cancel(job_id, "ann")
        assert await inbox(store) == []
        assert len(await inbox(store, "superseded")) == 2


async def test_loop_stop_waits_in_the_inbox(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed("guards: {same_call: 2}")) as served:
        for _ in range(3):
            last = await served.ask(headers={"x-job-id": "loop"})
        assert last.status_code == 409
        [card] = await inbox(store)
        assert (card.kind, [*public_review(card)["answers"]]) == ("loop", ["continue", "stop"])


async def test_job_without_its_code_waits_in_the_inbox(store: Store, provider: SpawnedProvider) -> None:
    def move_code(job_id: str, place: str) -> None:
        def act(unit: Unit, job: JobRow) -> None:
            unit.session.query(
                f"UPDATE job SET code_ref = '{place}' WHERE job_id = '{job.job_id}' RETURNING job_id", ()
            )

        store.commit_blocking(UnderJob(job_id, act))

    async with serving(store, provider) as served:
        job_id = await start(served, asks, 1)
        code = str((await served.ledger.job(job_id)).code_ref)
        move_code(job_id, "gone_for_now.py:asks")
        async with working(served):
            await rest(served, job_id, "parked")
            [card] = await inbox(store)
            assert (card.kind, [*public_review(card)["answers"]]) == ("code", ["retry", "cancel"])
            assert "gone_for_now" in str(public_review(card)["detail"]["why"])
            await Operations(store).resume(job_id, "ann")
            await served.until(job_id, "parked", 2)
            [second] = await inbox(store)
            assert second.review_id != card.review_id, "that of the first park was superseded by the resume"
            move_code(job_id, code)
            await Operations(store).decide(second.review_id, Decision("retry", "ann"))
            assert (await rest(served, job_id, *FINISHED)).result == b"1"
        assert await inbox(store) == []


def test_commands_show_and_decide_a_card(tmp_path: Path, provider: SpawnedProvider) -> None:
    shell = Shell(tmp_path, provider.base_url)
    shell("run", "night.py:pays", code=3)
    [card] = shell.json("reviews")
    review_id = card["review_id"]
    shown = shell("reviews", "show", review_id)
    for part in ("transfer", "digest", "exception", f"overnight reviews done {review_id} --provider-id ID"):
        assert part in shown, part
    shell("reviews", "done", review_id, "--digest", "0" * 64, code=1)
    assert "stale" in shell.errors
    shell("reviews", "renew", review_id, code=1)
    assert "needs no renewal" in shell.errors
    decided = shell.json("reviews", "done", review_id, "--provider-id", "B-7", "--result", '"paid"', "--by", "mia")
    assert (decided["state"], decided["answer"], decided["provider_id"]) == ("decided", "done", "B-7")
    again = shell("reviews", "done", review_id, "--provider-id", "B-7", "--result", '"paid"', "--by", "tom")
    assert "recorded as done by mia" in again
    shell("reviews", "not-done", review_id, code=1)
    assert "already answered 'done' by mia" in shell.errors
    assert shell.json("reviews", "list", "--state", "decided")[0]["review_id"] == review_id
    assert "result  paid" in shell("resume", "last")


async def test_rule_names_a_person_of_the_command_line(store: Store) -> None:
    card = Card(store, deciders=("mia@example.com",))
    with pytest.raises(overnight.OvernightError, match="is decided by mia"):
        await Operations(store).decide(card.review.review_id, Decision("approve", "tom"))
    decided = await Operations(store).decide(card.review.review_id, Decision("approve", "mia@example.com"))
    assert public_state(decided) == "decided"


async def test_worker_and_gateway_expire_reviews(store_url: str, provider: SpawnedProvider) -> None:
    clock = Clock()
    with open_store(store_url, clock) as store:
        cards: list[Any] = [Card(store, key=f"pay_{number}", expires_in_us=MINUTE_US) for number in range(20)]
        clock.now += 2 * MINUTE_US
        async with serving(store, provider), asyncio.timeout(20):
            while await inbox(store):
                await asyncio.sleep(0.05)
        assert len(await inbox(store, "expired")) == 20
        assert {card.effect().state for card in cards} == {"expired"}


@overnight.job
async def waits_for_a_while() -> bool:
    return (await overnight.approval("Go on?")).approved


async def test_job_whose_review_expired_says_so(store_url: str, provider: SpawnedProvider) -> None:
    clock = Clock()
    with open_store(store_url, clock) as store:
        async with serving(store, provider) as served, working(served):
            job_id = await start(served, waits_for_a_while)
            job = await rest(served, job_id, "parked")
            review_id = job.waits[0]["review_id"]

            def limit(unit: Unit, _: JobRow) -> None:
                row = unit.get(REVIEW, review_id)
                assert row is not None
                row.expires_at = unit.now + MINUTE_US
                unit.change(REVIEW, row)

            store.commit_blocking(UnderJob(job_id, limit, [(REVIEW, review_id)]))
            clock.now += 2 * MINUTE_US
            async with asyncio.timeout(20):
                while not await inbox(store, "expired"):
                    await asyncio.sleep(0.02)
            assert (await served.ledger.job(job_id)).state == "parked"
            story = await told(served, job_id)
            assert "nobody decided in time, which is no rejection" in story
            assert f"overnight reviews renew {review_id}" in story
            await Operations(store).renew(review_id, "ann")
            assert f"overnight reviews approve {review_id}" in await told(served, job_id)
            await Operations(store).decide(review_id, Decision("approve", "ann"))
            assert (await rest(served, job_id, *FINISHED)).result == b"true"
