"""Random job programs with lost workers have the results of an uninterrupted run."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import machine_programs
import overnight
from machine_lives import Clock, Life, Loss, outside
from machine_parts import examples, rows
from machine_programs import BODIES, CROWDS, KINDS, Body, acts, bodies, matches, plain, program, without_nonces
from overnight.domain import FINISHED, Event
from overnight.jobs import Decision, NoModel, Operations, Worker
from overnight.jobs.positions import Position, enclosing
from overnight.jobs.replay.history import ANSWERS
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
        self.zombies: list[Life] = []

    @initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.body = data.draw(bodies(*self.kinds))
        self.job_id = self.make().job_id

    def make(self) -> JobRow:
        return outside(self.url, self.clock, lambda jobs: jobs.create(program, (self.body,)))

    @rule(loss=losses, workers=st.sampled_from([1, 1, 2]))
    def work(self, loss: Loss | None, workers: int = 1, *, buried: bool = True) -> None:
        """A process works until it is lost; it is then known to be dead."""
        life = Life(self.url, self.clock, loss, workers)
        try:
            life.run()
        finally:
            if buried:
                life.bury()
            else:
                self.zombies.append(life)

        async def lose(jobs: Operations) -> None:
            for each in life.ids:
                await jobs.expire_leases(each)

        outside(self.url, self.clock, lose)

    @precondition(lambda self: "zombies" in self.kinds)
    @rule(loss=losses)
    def stall(self, loss: Loss) -> None:
        """A process stands still and is taken for dead, though it is not."""
        self.work(loss, buried=False)

    @precondition(lambda self: self.zombies)
    @rule()
    def come_back(self) -> None:
        """It goes on as if nothing had happened."""
        life = self.zombies.pop()
        life.go_on(0.03)
        life.bury()

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
            return Decision("approve", "ann", note=f"note-{self.world.nonce()}")
        key = msgspec.json.decode(review.detail)["effect_key"]
        done = self.world.done.get(key)
        if done is None:
            return Decision("not_done", "ann")
        return Decision("done", "ann", result=msgspec.json.encode(done))

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

    @precondition(lambda self: "fails once" in self.kinds)
    @rule(which=st.integers(0, 3))
    def resume(self, which: int) -> None:
        """A person tries a failed job again, be it a child whose parent is over or one whose parent went on."""
        failed = [job for job in self.jobs() if job.state == "failed"]
        for job in failed[which : which + 1]:
            outside(self.url, self.clock, lambda jobs, job=job: jobs.resume(job.job_id, "ann"))
            self.world.asks_afresh()

    def teardown(self) -> None:
        try:
            if self.job_id:
                self.finish()
                while self.zombies:
                    self.come_back()
                self.check()
        finally:
            for life in self.zombies:
                life.bury()

    def finish(self) -> None:
        """Work, answer every question and let time pass until the job is over."""
        for _ in range(60):
            self.work(None)
            job = self.job(self.job_id)
            if job.state == "failed" and "fails once" in self.kinds:
                outside(self.url, self.clock, lambda jobs: jobs.resume(self.job_id, "ann"))
                self.world.asks_afresh()
                continue
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
        audit(self.url, [job.job_id for job in self.jobs()])
        assert not self.world.changed
        if "zombies" not in self.kinds:  # the provider knows a call that comes twice by its key
            assert max(self.world.calls.values(), default=0) <= 1, self.world.calls
        assert max((len(keys) for keys in self.world.by_name.values()), default=0) <= 1
        if self.cancelled and root.state == "cancelled":
            assert {job.state for job in self.jobs()} <= FINISHED
            assert self.world.by_name.keys() <= acts(self.body, late=True)
            return
        assert (root.state, root.error) == ("succeeded", None)
        result = msgspec.json.decode(root.result or b"")
        assert matches(without_nonces(result), plain(self.body)), result
        assert acts(self.body, late=False) <= self.world.by_name.keys() <= acts(self.body, late=True)


def audit(url: str, job_ids: list[str]) -> None:
    """What must hold of every log: seq is dense, a boundary is answered once, an effect is committed once."""
    for job_id in job_ids:
        found = rows(
            url,
            f"SELECT seq, path, ordinal, fingerprint, body, content FROM event WHERE job_id = '{job_id}' ORDER BY seq",
        )
        assert [row[0] for row in found] == list(range(1, len(found) + 1))
        answered: dict[Position, int] = {}
        aside: dict[Position, int] = {}
        asked: dict[Position, tuple[Any, ...]] = {}
        open_claims: set[str] = set()
        retries = 0
        for seq, path, ordinal, fingerprint, body, _ in found:
            facts = msgspec.json.decode(bytes(body), type=Event)
            key = facts.idempotency_key or ""
            if facts.event == "answers_dropped":
                aside |= dropped(facts.detail or {}, answered, asked)
                retries += "loose" in (facts.detail or {})
            elif facts.event == "tool_called":
                assert key not in open_claims, f"{seq}: called again without a word about the first call"
                open_claims.add(key)
            elif facts.event in {"tool_failed", "tool_unknown"}:
                open_claims.discard(key)
            elif facts.event == "tool_succeeded" and not (facts.detail or {}).get("replayed"):
                assert key + " committed" not in open_claims, f"{seq}: committed twice"
                open_claims |= {key, key + " committed"}
            if path is None:
                continue
            place = (path, ordinal)
            if fingerprint is not None:
                was = asked.setdefault(place, (facts.kind, facts.name, fingerprint))
                assert retries or was == (facts.kind, facts.name, fingerprint), f"{seq} at {place}"
            if facts.event == "boundary_kept" and (of := (facts.detail or {}).get("of")) is not None:
                # It was set aside; or it came from outside after that, and counts from now on.
                was = (facts.detail or {}).get("was")
                stood = (was["path"], was["ordinal"]) if was else place
                assert of in {aside.pop(stood, None), answered.pop(place, None)}, f"{seq}: {of} is not to be kept"
                answered[place] = seq
            if facts.event == "child_finished" and place in answered:
                continue  # a person tried again a child that its parent knows to have failed; the parent's retry hears of it
            if facts.event in ANSWERS:
                assert place not in answered, f"{seq}: {place} was answered at {answered[place]} already"
                answered[place] = seq


def dropped(detail: dict[str, Any], answered: dict[Position, int], asked: dict[Position, Any]) -> dict[Position, int]:
    """Take out what is not replayed any more: what a retry asks afresh, what it could not come to again, and all inside of
    those. What of that may be given again."""
    at = detail.get("position")
    if at is not None:
        step = (at["path"], at["ordinal"])
        for place in [place for place in asked if step in enclosing(place[0])]:
            del asked[place]
    inside = {place for place in answered if at is None or step in enclosing(place[0])}
    out = {place for place in inside if answered[place] >= detail.get("since", answered[place] + 1)}
    out |= {place for place in inside if answered[place] in detail["seqs"]}
    out |= {place for place in inside if out & {*enclosing(place[0])}}
    return {place: seq for place in out if (seq := answered.pop(place)) not in detail["seqs"]}


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
    "retried": ("step", "effect", "fails once", "gather", "nest", "child", "approve"),
    "crowds": ("step", "effect", "fails once", "crowd", "pool", "value"),
    "families": ("effect", "fails once", "gather", "child", "sleep"),
    "all retried": tuple(sorted({*KINDS, *BODIES, *CROWDS})),
    "steps": ("step", "flaky", "effect", "nest twice", "gather", "approve", "sleep", "value"),
    "timeouts": ("step", "effect", "timeout", "sleep", "approve", "gather", "nest"),
    "stalled": ("step", "effect", "approve", "sleep", "gather", "nest", "child", "zombies"),
    "cancelled": ("step", "effect", "approve", "sleep", "gather", "nest", "child", "cancel"),
}


@pytest.mark.parametrize("mix", MIXES)
def test_lost_workers_do_not_change_results(fresh_url: Any, mix: str) -> None:
    run_state_machine_as_test(lambda: Jobs(fresh_url(), MIXES[mix]), settings=examples(3, 60, stateful_step_count=8))


# ── a store that refuses for a while ─────────────────────────────────────────────────────────────────────────────────


def test_job_continues_after_rejected_writes(fresh_url: Any) -> None:
    """A worker whose writes are refused for a moment (a full disk, a database that starts again) still finishes its jobs."""
    machine = Jobs(fresh_url(), MIXES["all"])
    machine.body = [["step", "step-1"], ["effect", "effect-2", "fine", True], ["nest", "nest-3", [["step", "step-4"]]]]
    ids = [machine.make().job_id for _ in range(4)]
    machine.work(Loss(4, "refused"))
    assert {machine.job(job_id).state for job_id in ids} == {"succeeded"}
    audit(machine.url, ids)
    assert set(machine.world.calls.values()) == {1}
    assert len(machine.world.calls) == 4


# ── what the machine found, as plain examples ────────────────────────────────────────────────────────────────────────

EXAMPLES: dict[str, Body] = {
    "what stands behind a dropped failure is asked afresh": [
        [
            "gather",
            "gather-1",
            [
                [["step", "step-2"], ["effect", "effect-3", "refused", False], ["step", "step-4"]],
                [["fails once", "fails-5"]],
            ],
        ]
    ],
    "a child that outlives its failed parent is heard by the retry": [
        ["gather", "gather-1", [[["fails once", "fails-2"]], [["child", "child-3", [["step", "step-4"]]]]]]
    ],
    "a failed child keeps what it has done": [
        ["child", "child-1", [["effect", "effect-2", "fine", True], ["fails once", "fails-3"], ["step", "step-4"]]]
    ],
    "a step that ended after the failure is not run for what it had asked before": [
        [
            "gather",
            "gather-1",
            [[["step", "step-2"], ["fails once", "fails once-3"]], [["nest", "nest-4", [["step", "step-5"]]]]],
        ]
    ],
    "what a caught failure has led to is not done again in a retried step": [
        [
            "nest twice",
            "nest twice-1",
            [
                ["try", "try-2", [["fails once", "fails once-3"], ["step", "step-4"]]],
                ["nest", "nest-5", [["effect", "effect-6", "fine", True]]],
            ],
        ]
    ],
    "what a failed step has left behind does not answer beside its retry": [
        [
            "nest twice",
            "nest twice-1",
            [["gather", "gather-2", [[["fails once", "fails once-3"]], [["flaky", "flaky-4", 2]]]]],
        ]
    ],
    "who was faster is faster again": [
        [
            "crowd",
            "crowd-1",
            [
                [["fails once", "fails once-2"]],
                [
                    [
                        "pool",
                        "pool-3",
                        [
                            ["fails once", "fails once-4"],
                            ["effect", "effect-5", "fine", False],
                            ["effect", "effect-6", "fine", False],
                        ],
                    ]
                ],
            ],
        ]
    ],
    "what was done by another branch is found": [
        [
            "crowd",
            "crowd-1",
            [
                [["fails once", "fails once-2"], ["fails once", "fails once-3"]],
                [
                    [
                        "pool",
                        "pool-4",
                        [["step", "step-5"], ["fails once", "fails once-6"], ["effect", "effect-7", "fine", False]],
                    ]
                ],
            ],
        ]
    ],
}


@pytest.mark.parametrize("what", EXAMPLES)
def test_retry_reaches_the_uninterrupted_result(fresh_url: Any, what: str) -> None:
    machine = Jobs(fresh_url(), MIXES["all retried"])
    machine.body = EXAMPLES[what]
    machine.job_id = machine.make().job_id
    machine.teardown()


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


async def test_external_events_keep_their_recorded_order(store: Store) -> None:
    """A decision that is recorded before a step's commit is handed on before it, as it will be in every replay."""
    gates.update(work=asyncio.Event(), end=asyncio.Event())
    operations, ledger = Operations(store), Ledger(store)
    job = await operations.create(races_news)
    first = Worker(store, NoModel(), worker_id="first")
    await first.start()
    async with asyncio.timeout(20):
        while not (reviews := await list_reviews(store)) or not await _has(ledger, job.job_id, "step_started"):
            await asyncio.sleep(0.01)
        await operations.decide(reviews[0].review_id, Decision("approve", "ann"))
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
