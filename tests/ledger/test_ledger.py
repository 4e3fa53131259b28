"""The ledger: dense logs, complete reads, sums that match their events, isolated tenants."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine_parts import Open, UnderJob, all_of, examples, make_job, names, newjob, note, rows
from overnight.domain import Event, Fenced, NotFound
from overnight.jobs import Complete
from overnight.ledger import JobRow, Ledger, append, count_usage
from overnight.store import Store, Unit, open_store


def foreign(**facts: Any) -> Open:
    new = newjob(**facts)
    return Open(type(new)(new.job_id, new.tenant_id, "foreign", "contract", state="running", **facts))


# ── jobs and their logs ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_created_event_holds_the_fields_of_a_job(store: Store) -> None:
    new = newjob(external_id="mail-1", agent_id="triage", workflow="inbox", session_id="s", actor="ann", input=b"[1]")
    job_id, fresh = await store.commit(Open(new))
    job = await Ledger(store).job("mail-1")
    assert (fresh, job.job_id, job.state, job.last_seq, job.attempt, job.lease_epoch) == (
        True,
        job_id,
        "queued",
        1,
        1,
        0,
    )
    assert (job.agent_id, job.workflow, job.session_id, job.input) == ("triage", "inbox", "s", b"[1]")
    (created,) = await Ledger(store).events(job_id)
    assert (created.seq, created.facts.event, created.facts.actor) == (1, "created", "ann")
    assert (created.facts.detail or {})["external_id"] == "mail-1"
    assert await store.commit(Open(newjob(external_id="mail-1", input=b"[1]"))) == (job_id, False)
    assert len(await Ledger(store).events(job_id)) == 1


async def test_one_batch_creates_a_job_and_appends(store: Store, store_url: str) -> None:
    new = newjob(external_id="x")
    outcomes = await all_of(store, [Open(new), *(note(new.job_id, n) for n in range(3)), Open(newjob(external_id="x"))])
    assert outcomes == [(new.job_id, True), 2, 3, 4, (new.job_id, False)]
    assert names(store_url, new.job_id) == ["0", "1", "2"]


@pytest.mark.parametrize(("epoch", "fenced"), [(None, False), (0, False), (1, True), (-1, True)])
async def test_only_the_present_lease_may_write(store: Store, store_url: str, epoch: int | None, fenced: bool) -> None:
    job_id, _ = await store.commit(foreign())
    (outcome,) = await all_of(store, [note(job_id, "x", lease_epoch=epoch)])
    assert isinstance(outcome, Fenced) == fenced
    assert names(store_url, job_id) == ([] if fenced else ["x"])


async def test_a_job_that_does_not_run_has_no_present_lease(store: Store) -> None:
    (outcome,) = await all_of(store, [note(make_job(store), "x", lease_epoch=0)])
    assert isinstance(outcome, Fenced)


async def test_content_is_stored_beside_the_facts(store: Store, store_url: str) -> None:
    job_id = make_job(store)
    await store.commit(note(job_id, "x", content=b'{"a":1}'))
    event = (await Ledger(store).events(job_id))[-1]
    assert event.content == b'{"a":1}'
    assert (event.facts.content_sha256, len(event.facts.content_mac or "")) == (None, 64)
    ((body,),) = rows(store_url, f"SELECT body FROM event WHERE job_id = '{job_id}' AND seq = 2")
    assert b'"a"' not in bytes(body)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_follow_sees_every_event_in_order_while_it_is_written(store: Store, store_url: str) -> None:
    job_id, _ = await store.commit(foreign())
    ledger = Ledger(store)

    async def write(writer: Store, mine: str) -> None:
        for first in range(0, 150, 3):
            await all_of(writer, [note(job_id, f"{mine}{n}") for n in range(first, first + 3)])
            await asyncio.sleep(0)

    async def follow(after: int) -> list[int]:
        return [event.seq async for event in ledger.follow(job_id, after, every_s=0.001)]

    with open_store(store_url) as other:
        following = [asyncio.create_task(follow(after)) for after in (0, 0, 100)]
        await asyncio.gather(write(store, "a"), write(other, "b"))
        await store.commit(Complete(job_id))
        async with asyncio.timeout(20):
            seen = await asyncio.gather(*following)
    assert seen == [list(range(1, 303)), list(range(1, 303)), list(range(101, 303))]
    async with asyncio.timeout(20):
        assert await follow(301) == [302], "who comes late gets the rest and the end"


async def test_pages_are_slices_of_the_log(store: Store) -> None:
    job_id = make_job(store)
    await all_of(store, [note(job_id, n) for n in range(2300)])
    ledger = Ledger(store)
    for after, most in [(0, None), (0, 1), (0, 1000), (0, 1001), (999, 1000), (1300, None), (2300, 5), (2301, None)]:
        found = [event.seq for event in await ledger.events(job_id, after, most)]
        assert found == list(range(1, 2302))[after:][:most]


async def test_jobs_are_listed_newest_first_by_page(store: Store) -> None:
    made = [make_job(store, tenant_id="t" if n % 3 else "u") for n in range(12)]
    ledger = Ledger(store)
    wanted = [job_id for n, job_id in enumerate(made) if n % 3][::-1]
    listed: list[str] = []
    while page := await ledger.jobs(tenant_id="t", before=listed[-1] if listed else "", most=3):
        listed += [job.job_id for job in page]
    assert sorted(listed) == sorted(wanted)
    assert listed == sorted(listed, reverse=True)
    assert await ledger.jobs(state="running") == []


async def test_jobs_are_isolated_by_tenant(store: Store) -> None:
    job_id = make_job(store, "blue", external_id="mail-1")
    red = make_job(store, "red", external_id="mail-1")
    ledger = Ledger(store)
    assert red != job_id
    for name in (job_id, "mail-1"):
        assert (await ledger.job(name, "blue")).job_id == job_id
    for name in (job_id, "mail-2"):
        with pytest.raises(NotFound):
            await ledger.job(name, "red")
    with pytest.raises(NotFound):
        await ledger.job("mail-1", "green")
    assert [job.job_id for job in await ledger.jobs(tenant_id="red")] == [red]


# ── sums ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

DAY_US = 86_400_000_000
calls = st.lists(
    st.tuples(
        st.integers(0, 2),  # job
        st.sampled_from(["gpt", "opus"]),
        st.sampled_from([None, "triage"]),
        st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)),
        st.integers(0, 10**9),
        st.integers(0, 3),  # days later
        st.booleans(),  # by which of two processes
        st.integers(1, 4),  # how many at once
    ),
    max_size=12,
)


def test_sums_agree_with_their_events(store_url: str) -> None:
    """Counted by two processes at once, over days, agents, models, jobs and tenants, against a sum over the events."""
    at = [1_700_000_000_000_000]

    @examples(15, 300)
    @given(calls)
    def agree(said: list[Any]) -> None:
        asyncio.run(_sums_agree(one, other, at, said))

    with open_store(store_url, lambda: at[0]) as one, open_store(store_url, lambda: at[0]) as other:
        agree()


async def _sums_agree(one: Store, other: Store, at: list[int], said: list[Any]) -> None:
    tenants = [f"{n}-{at[0]}" for n in (0, 0, 1)]
    jobs = [make_job(one, tenant) for tenant in tenants]

    def counted(job_id: str, model: str, agent: str | None, tokens: tuple[int, int, int], cost: int) -> UnderJob:
        def act(unit: Unit, job: JobRow) -> None:
            event = Event("model_succeeded", model=model, agent_id=agent, cost_microusd=cost, bound_microusd=cost // 3)
            event.input_tokens, event.cached_tokens, event.output_tokens = tokens
            append(unit, job, event)
            count_usage(unit, job, agent, model, tokens, cost, cost // 3)

        return UnderJob(job_id, act)

    for number, model, agent, tokens, cost, days, mine, times in said:
        at[0] += days * DAY_US
        command = counted(jobs[number], model, agent, tokens, cost)
        await asyncio.gather(all_of(one if mine else other, [command] * times), all_of(one, [command]))
    at[0] += DAY_US
    ledger = Ledger(one)
    by_day: dict[str, Counter[Any]] = {tenant: Counter() for tenant in tenants}
    for job_id, tenant in zip(jobs, tenants, strict=True):
        by_model: Counter[Any] = Counter()
        for event in (await ledger.events(job_id))[1:]:
            facts = event.facts
            amounts = (1, facts.input_tokens, facts.cached_tokens, facts.output_tokens)
            amounts += (facts.cost_microusd, facts.bound_microusd)
            day = int(f"{event.at // DAY_US}")
            for index, amount in enumerate(amounts):
                by_model[facts.model, index] += amount or 0
                by_day[tenant][day, facts.agent_id or "", facts.model, index] += amount or 0
        usage = await ledger.usage(job_id)
        assert {(row[0], index): row[1 + index] for row in usage for index in range(6)} == by_model
        total = (sum(row[1] for row in usage), sum(row[5] for row in usage), sum(row[6] for row in usage))
        assert (await ledger.costs([job_id])).get(job_id, (0, 0, 0)) == total
    for tenant in set(tenants):
        found = await ledger.usage_days(tenant, 0, 99999999)
        days = sorted({row[0] for row in found})
        wanted_days = sorted({key[0] for key in by_day[tenant]})
        names_of = dict(zip(days, wanted_days, strict=True))
        sums = {(names_of[row[0]], row[1], row[2], index): row[3 + index] for row in found for index in range(6)}
        assert sums == by_day[tenant]
    assert await ledger.usage_days(tenants[0], 0, 19990101) == []
