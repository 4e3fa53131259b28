"""Random job programs whose workers are lost at random moments, against what a plain run comes to."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import note as say
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import machine_programs
import overnight
from machine_lives import Clock, Life, Loss, outside
from machine_parts import examples, rows
from machine_programs import Body, acts, bodies, plain, program, without_nonces
from overnight.domain import FINISHED, Event
from overnight.jobs import Decision, NoModel, Operations, Worker
from overnight.jobs.history import ANSWERS
from overnight.ledger import JobRow, Ledger
from overnight.reviews import list_reviews
from overnight.store import Store, open_store

TABLES = "job, event, effect, review, worker, reservation, budget, usage_job, usage_day, message, node, blob"
losses = st.builds(Loss, st.integers(2, 14), st.sampled_from(["after", "after", "before", "stop"]))


class Jobs(RuleBasedStateMachine):
    """`kinds` are the kinds of nodes of its programs."""

    def __init__(self, url: str, kinds: tuple[str, ...]) -> None:
        super().__init__()
        self.url, self.kinds = url, kinds
        self.clock = Clock()
        self.world = machine_programs.begin()
        self.body: Body = []
        self.job_id = ""
        self.cancelled = False

    @initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.body = data.draw(bodies(*self.kinds))
        job = outside(self.url, self.clock, lambda jobs: jobs.create(program, (self.body,)))
        self.job_id = job.job_id

    @rule(loss=losses, workers=st.sampled_from([1, 1, 2]))
    def work(self, loss: Loss | None, workers: int = 1) -> None:
        """A process works until it is lost; it is then known to be dead."""
        life = Life(self.url, self.clock, loss, workers)
        try:
            life.run()
        finally:
            life.bury()

        async def lose(jobs: Operations) -> None:
            for each in life.ids:
                await jobs.lose(each)

        outside(self.url, self.clock, lose)

    @rule(which=st.integers(0, 5))
    def decide(self, which: int) -> None:
        """A person answers a review; what was done he sees in the world itself."""

        async def act(jobs: Operations) -> int:
            reviews = await list_reviews(jobs.store)
            for review in reviews[which : which + 1]:
                await jobs.decide(review.review_id, self._decision(review))
            return len(reviews)

        outside(self.url, self.clock, act)

    def _decision(self, review: Any) -> Decision:
        if review.kind == "approval":
            return Decision(True, "ann", note=f"note-{self.world.nonce()}")
        key = msgspec.json.decode(review.detail)["effect_key"]
        done = self.world.done.get(key)
        result = msgspec.json.encode(done) if done is not None else None
        return Decision(True, "ann", done=done is not None, result=result)

    @rule()
    def time_passes(self) -> None:
        self.clock.ahead += 31_000_000

    @precondition(lambda self: "cancel" in self.kinds and self.job_id)
    @rule()
    def cancel(self) -> None:
        async def act(jobs: Operations) -> None:
            if (await jobs.ledger.job(self.job_id)).state not in FINISHED:
                await jobs.cancel(self.job_id, "ann")
                self.cancelled = True

        outside(self.url, self.clock, act)

    def teardown(self) -> None:
        if self.job_id:
            self.finish()
            self.check()

    def finish(self) -> None:
        """Work, answer every question and let time pass until the job is over."""
        for _ in range(60):
            self.work(None)
            job = self.job(self.job_id)
            if job.state in FINISHED:
                return
            # A timer that fell due while the process stopped was taken and given back.
            assert job.state in {"parked", "queued"}, job
            assert not [wait for wait in job.waits if wait["for"] == "divergence"], job.waits
            for _ in range(4):
                self.decide(0)
            self.time_passes()
            outside(self.url, self.clock, self._release_quarantine)
        raise AssertionError(f"stuck: {self.jobs()}")

    async def _release_quarantine(self, jobs: Operations) -> None:
        """A job that lost too many workers in a row waits for a person."""
        for job in await jobs.ledger.jobs(state="parked"):
            if any(wait["for"] == "quarantine" and "review_id" not in wait for wait in job.waits):
                await jobs.resume(job.job_id, "ann")

    def job(self, job_id: str) -> JobRow:
        return outside(self.url, self.clock, lambda jobs: jobs.ledger.job(job_id))

    def jobs(self) -> list[JobRow]:
        return outside(self.url, self.clock, lambda jobs: jobs.ledger.jobs())

    def check(self) -> None:
        root = self.job(self.job_id)
        say(f"{root.state} after {root.recoveries} recoveries")
        audit(self.url, [job.job_id for job in self.jobs()])
        assert not self.world.changed
        assert max(self.world.calls.values(), default=0) <= 1, self.world.calls
        assert max((len(keys) for keys in self.world.by_name.values()), default=0) <= 1
        if self.cancelled and root.state == "cancelled":
            assert {job.state for job in self.jobs()} <= FINISHED
            assert self.world.by_name.keys() <= acts(self.body)
            return
        assert (root.state, root.error) == ("succeeded", None)
        result = msgspec.json.decode(root.result or b"")
        assert without_nonces(result) == plain(self.body)
        assert self.world.by_name.keys() == acts(self.body)


def audit(url: str, job_ids: list[str]) -> None:
    """What must hold of every log: seq is dense, a boundary is answered once, an effect is committed once."""
    for job_id in job_ids:
        found = rows(
            url,
            f"SELECT seq, path, ordinal, fingerprint, body, content FROM event WHERE job_id = '{job_id}' ORDER BY seq",
        )
        assert [row[0] for row in found] == list(range(1, len(found) + 1))
        answered: dict[tuple[str, int], int] = {}
        asked: dict[tuple[str, int], tuple[Any, ...]] = {}
        open_claims: set[str] = set()
        for seq, path, ordinal, fingerprint, body, _ in found:
            facts = msgspec.json.decode(bytes(body), type=Event)
            key = facts.idempotency_key or ""
            if facts.event == "answers_dropped":
                dropped = set((facts.detail or {})["seqs"])
                answered = {place: at for place, at in answered.items() if at not in dropped}
            elif facts.event == "tool_called":
                assert key not in open_claims, f"{seq}: called again without a word about the first call"
                open_claims.add(key)
            elif facts.event in {"tool_failed", "tool_unknown"}:
                open_claims.discard(key)
            elif facts.event == "tool_succeeded":
                assert key + " committed" not in open_claims, f"{seq}: committed twice"
                open_claims |= {key, key + " committed"}
            if path is None:
                continue
            place = (path, ordinal)
            if fingerprint is not None:
                was = asked.setdefault(place, (facts.kind, facts.name, fingerprint))
                assert was == (facts.kind, facts.name, fingerprint), f"{seq} at {place}"
            if facts.event in ANSWERS:
                assert place not in answered, f"{seq}: {place} was answered at {answered[place]} already"
                answered[place] = seq


@pytest.fixture
def fresh_url(store_url: str, tmp_path: Path) -> Any:
    """Gives an empty store each time it is called: a new file, or the emptied database."""
    if "://" not in store_url:
        numbers = itertools.count()
        return lambda: str(tmp_path / f"{next(numbers)}.db")
    open_store(store_url).close()

    def emptied() -> str:
        with psycopg.connect(store_url, autocommit=True) as connection:
            connection.execute(f"TRUNCATE {TABLES}")  # type: ignore[arg-type]
        return store_url

    return emptied


MIXES = {
    "flat": ("step", "flaky", "effect", "approve", "sleep", "value", "doomed"),
    "branches": ("step", "flaky", "effect", "gather", "value"),
    "waiting": ("step", "effect", "approve", "sleep", "gather", "try"),
    "nested": ("step", "flaky", "effect", "nest", "try", "doomed", "value"),
    "children": ("step", "effect", "child", "gather", "approve"),
    "all": ("step", "flaky", "effect", "approve", "sleep", "value", "doomed", "gather", "nest", "child", "try"),
    "cancelled": ("step", "effect", "approve", "sleep", "gather", "nest", "child", "cancel"),
}


@pytest.mark.parametrize("mix", MIXES)
def test_jobs_come_to_their_plain_result_whatever_is_lost(fresh_url: Any, mix: str) -> None:
    run_state_machine_as_test(lambda: Jobs(fresh_url(), MIXES[mix]), settings=examples(4, 500, stateful_step_count=8))


# ── what the machine found, as plain examples ────────────────────────────────────────────────────────────────────────

gates: dict[str, asyncio.Event] = {}


@overnight.step
async def gated(name: str) -> str:
    await gates[name].wait()
    return name


@overnight.step
async def told(order: list[str]) -> list[str]:
    return order


@overnight.job
async def races_news() -> list[str]:
    """What its two branches did first is told to a step: a replay in another order asks for something else."""
    order: list[str] = []

    async def asks() -> None:
        await overnight.approval("go on?")
        order.append("approval")

    async def works() -> None:
        order.append(await gated("work"))

    await asyncio.gather(asks(), works())
    await told(list(order))
    await gated("end")
    return order


async def test_news_from_outside_keep_their_place_among_the_jobs_own_answers(store: Store) -> None:
    """A decision that is recorded before a step's commit is handed on before it, as it will be in every replay."""
    gates.update(work=asyncio.Event(), end=asyncio.Event())
    operations, ledger = Operations(store), Ledger(store)
    job = await operations.create(races_news)
    first = Worker(store, NoModel(), worker_id="first")
    await first.start()
    async with asyncio.timeout(20):
        while not (reviews := await list_reviews(store)) or not await _has(ledger, job.job_id, "step_started"):
            await asyncio.sleep(0.01)
        await operations.decide(reviews[0].review_id, Decision(True, "ann"))
        gates["work"].set()
        while not await _has(ledger, job.job_id, "step_committed", "told"):
            await asyncio.sleep(0.01)
    await first.stop()
    gates["end"].set()
    second = Worker(store, NoModel(), worker_id="second")
    await second.start()
    async with asyncio.timeout(20):
        while (row := await ledger.job(job.job_id)).state in {"queued", "running"}:
            await asyncio.sleep(0.01)
    await second.stop()
    assert (row.state, row.waits) == ("succeeded", [])
    assert row.result == b'["approval","work"]'


async def _has(ledger: Ledger, job_id: str, event: str, name: str | None = None) -> bool:
    events = [each.facts for each in await ledger.events(job_id)]
    return any(facts.event == event and name in {None, facts.name} for facts in events)
