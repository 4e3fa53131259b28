"""The storm: jobs are created while processes are killed and restarted, until all jobs have ended."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from overnight.brain import load_brain
from overnight.gateway import Gateway, PriceBook
from overnight.jobs import Decision, Operations
from overnight.reviews import ReviewRow, list_reviews
from overnight.store import open_store
from overnight.testing import start_scripted_provider

from .fleet import Fleet, Process, free_port, line_of
from .outside import Outside
from .points import GATEWAY, PLACES, PROGRAM, STREAMS, WORKER, Plan
from .program import WAITS_FOR_PERSON
from .rows import Rows
from .workload import JOBS, Case, approves, rejects

HERE = Path(__file__).parent
PATIENCE_S, MOST_PATIENCE_S = 6.0, 40.0
"""An armed process that has not come to its point by then is killed where it stands. Each time the next ones get longer: a busy
machine takes that long to start them."""
PAIRS = 0.15
"""The share of moments at which two workers are killed at once."""


@dataclass(frozen=True)
class Terms:
    """How hard a storm is. `settle_s`: how long the last jobs may take once the killing is over."""

    kills: int
    seed: int
    places: list[tuple[str, str]] = field(default_factory=lambda: list(PLACES))
    workers: int = 3
    jobs_at_once: int = 10
    longest_pause_s: float = 1.0
    settle_s: float = 120.0
    stops: int = 0
    """How many workers are stopped (SIGSTOP) for longer than their lease: each second one between a claim and its call."""
    lease_s: float = 15.0


@dataclass(frozen=True)
class Kill:
    """One `kill -9`. `how` is the crash point with its pass, `random`, or `pair`."""

    role: str
    owner: str
    how: str
    after_s: float


@dataclass(frozen=True)
class Stop:
    """A worker that was stopped past its lease and went on. `claimed`: between a claim and its call, else anywhere."""

    owner: str
    pid: int
    claimed: bool


@dataclass
class Seen:
    """What the storm knows from outside of the product."""

    cases: dict[str, tuple[str, Case]] = field(default_factory=dict)
    kills: list[Kill] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    rejected: set[str] = field(default_factory=set)
    programs: dict[str, Any] = field(default_factory=dict)
    persons: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    """What went wrong on the way, as sentences."""


class Storm:
    """One storm on one store. `run` leaves everything in `seen`, `outside`, the provider's count file and the tail's file."""

    def __init__(self, database_url: str, folder: Path, terms: Terms) -> None:
        self.url, self.folder, self.terms = database_url, folder, terms
        self.chance = random.Random(terms.seed)
        self.seen = Seen()
        self.plan = Plan(self.chance, terms.places, 0.6)
        self.counted, self.tailed = folder / "paid.jsonl", folder / "tail.txt"
        self.store = open_store(database_url)
        self.rows = Rows(database_url)
        self.operations = Operations(self.store)
        self.outside = Outside(random.Random(terms.seed + 1), self._claimed)
        self.brain = load_brain(HERE / "brain")
        prices = PriceBook(self.brain.routing.prices)
        self.settling = Gateway(self.store, self.brain.routing, prices, owner="harness", environment={})
        self.calm = self.over = False
        self._patience_s = PATIENCE_S
        self._stops_left = terms.stops
        self._stops_begun = 0
        self.fleet: Fleet
        self._began = time.monotonic()

    async def _claimed(self, key: str) -> bool:
        return bool(self.rows.ask("SELECT 1 FROM effect WHERE effect_key = ? AND state = 'claimed'", key))

    # ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Until all jobs rest, or the bound is reached (then `seen.faults` says so)."""
        rules = HERE / "rules.yaml"
        async with (
            self.outside.open() as place,
            start_scripted_provider(rules, count_file=self.counted) as provider,
        ):
            self.fleet = Fleet(self.url, self.folder, provider.base_url, place)
            tail = await self.fleet.tail(self.url, self.tailed)
            ports = {GATEWAY: free_port(), STREAMS: free_port()}
            slots = [self._keep(WORKER, self._worker) for _ in range(self.terms.workers)]
            slots += [self._stop(stop % 2 == 0) for stop in range(min(2, self.terms.stops))]
            slots += [self._keep_gateway(role, port) for role, port in ports.items()]
            slots += [self._keep_programs("plain", ports[GATEWAY]), self._keep_programs("stream", ports[STREAMS])]
            tasks = [asyncio.create_task(slot) for slot in (*slots, self._feed(), self._person(), self._kill())]
            watching = asyncio.gather(*tasks)
            try:
                await asyncio.wait({watching, asyncio.create_task(self._until_rest())}, return_when="FIRST_COMPLETED")
                if watching.done():
                    watching.result()  # a fault of the harness itself: say so
            finally:
                self.over = True
                for task in tasks:
                    task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await watching
                ending = [
                    self.fleet.end(process) for process in self.fleet.processes if process.alive and process != tail
                ]
                await asyncio.gather(*ending)
                await self.fleet.end(tail)

    def close(self) -> None:
        self.rows.close()
        self.store.close()

    async def _until_rest(self) -> None:
        while len(self.seen.kills) < self.terms.kills or self.plan.missing or self._stops_left > 0:
            await asyncio.sleep(0.05)
        self.calm = True
        until = time.monotonic() + self.terms.settle_s
        while self._unrested() and time.monotonic() < until:
            await asyncio.sleep(0.1)

    def _unrested(self) -> int:
        """What still has to come to its end: jobs, programs, questions to the person, and calls in flight."""
        jobs = self.rows.ask("SELECT count(*) FROM job WHERE state IN ('queued', 'running', 'parked')")[0][0]
        calls = self.rows.ask("SELECT count(*) FROM reservation")[0][0]
        questions = self.rows.ask("SELECT count(*) FROM review WHERE state = 'open'")[0][0]
        return jobs + calls + questions + sum(result is None for result in self.seen.programs.values())

    # ── work and people ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _feed(self) -> None:
        """Keep so many root jobs unfinished, of all kinds in turn."""
        number = 0
        kinds = list(JOBS)
        while not self.calm:
            unfinished = self.rows.ask(
                "SELECT count(*) FROM job WHERE state IN ('queued', 'running', 'parked') AND parent_job_id IS NULL"
                " AND runtime = 'python'"
            )[0][0]
            for _ in range(self.terms.jobs_at_once - unfinished):
                kind = kinds[number % len(kinds)]
                case = Case(f"{kind}-{number}", number)
                job = await self.operations.create(JOBS[kind], (case,), external_id=case.name)
                self.seen.cases[job.job_id] = (kind, case)
                number += 1
            await asyncio.sleep(0.1)

    async def _person(self) -> None:
        """Answer approvals, find out by looking what nobody else can tell, and put quarantined jobs back in line."""
        while True:
            answered = [self._decide(review) for review in await list_reviews(self.store)]
            await asyncio.gather(*answered)
            for job_id, waiting in self.rows.ask("SELECT job_id, waiting FROM job WHERE state = 'parked'"):
                for wait in msgspec.json.decode(waiting):
                    await self._look_after(job_id, wait)
            await asyncio.sleep(0.1)

    async def _decide(self, review: ReviewRow) -> None:
        if review.kind == "divergence":
            return  # see `_look_after`
        self.seen.persons["poison" if review.kind == "code" else review.kind] += 1
        if review.kind == "code":
            await self.operations.decide(review.review_id, Decision("retry", "ann"))
            return
        decision = Decision("approve" if approves(review.question) else "reject", "ann")
        if review.kind == "quarantine":
            decision = await self._find_out(msgspec.json.decode(review.detail))
        await self.operations.decide(review.review_id, decision)

    async def _find_out(self, detail: dict[str, Any]) -> Decision:
        subject: str = detail["arguments"]["subject"]
        deed = await self.outside.settled(detail["effect_key"])
        if deed is not None:
            result = msgspec.json.encode(deed.value)
            return Decision("done", "ann", provider_id=str(deed.number), result=result)
        if rejects(subject):
            self.seen.rejected.add(subject)
            return Decision("reject", "ann", note="not any more")
        return Decision("not_done", "ann")

    async def _look_after(self, job_id: str, wait: dict[str, Any]) -> None:
        if wait["for"] == "divergence":
            self.seen.faults.append(f"{job_id} diverged: {wait}")
            await self.operations.cancel(job_id, "ann")

    # ── stops ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _worker(self, armed: Any) -> Process:
        return await self.fleet.worker(armed, lease_s=self.terms.lease_s)

    async def _stop(self, claimed: bool) -> None:
        """One worker after another is stopped for longer than its lease, and goes on where it stood."""
        while self._stops_begun < self.terms.stops:
            self._stops_begun += 1
            process = await (self._stopped_at_its_claim() if claimed else self._stopped_anywhere())
            self.seen.stops.append(Stop(process.owner, process.handle.pid, claimed))
            await asyncio.sleep(self.terms.lease_s * 1.27)
            process.go_on()
            await asyncio.sleep(1.0)
            if claimed:
                process.kill()
                await process.handle.wait()
                await self.operations.expire_leases(process.owner)
            self._stops_left -= 1

    async def _stopped_at_its_claim(self) -> Process:
        """A further worker, which stops itself as soon as a claim of its own is durable."""
        # At its first claim: at a later one, calls that it began before would be in their midst.
        process = await self.fleet.worker(lease_s=self.terms.lease_s, stop_at="effect_claimed:1")
        process.stopped = True  # not to be killed meanwhile
        while not process.stands_still:
            await asyncio.sleep(0.01)
        return process

    async def _stopped_anywhere(self) -> Process:
        while True:
            await asyncio.sleep(self.chance.uniform(0.5, 1.5))
            working = {row[0] for row in self.rows.ask("SELECT lease_owner FROM job WHERE state = 'running'")}
            free = [each for each in self.fleet.processes if each.alive and each.owner in working and not each.stopped]
            free = [each for each in free if each.armed is None]
            if free:
                process = self.chance.choice(free)
                process.stop()
                return process

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _next_armed(self, role: str) -> Any:
        return self.plan.next(role, self.calm or len(self.seen.kills) >= self.terms.kills)

    async def _ended(self, process: Process) -> int:
        """Wait for its end and note how it came; its exit code."""
        code = await process.handle.wait()
        hit = code == -9 and not process.doomed
        if process.armed is not None:
            self.plan.ended(process.role, process.armed, hit)
        if hit:
            self._note(process, str(process.armed))
        return code

    def _note(self, process: Process, how: str) -> None:
        after = time.monotonic() - process.started
        self.seen.kills.append(Kill(process.role, process.owner, how, round(after, 3)))

    async def _keep(self, role: str, start: Callable[[Any], Awaitable[Process]]) -> None:
        """A worker, and another one when it is dead."""
        while True:
            process = await start(self._next_armed(role))
            code = await self._ended(process)
            if code != -9:
                self.seen.faults.append(f"{process.owner} ended by itself ({code}): {process.last_words()}")
                await asyncio.sleep(0.5)
            await self.operations.expire_leases(process.owner)

    async def _keep_gateway(self, role: str, port: int) -> None:
        while True:
            process = await self.fleet.gateway(role, port, self._next_armed(role))
            code = await self._ended(process)
            if code != -9:
                self.seen.faults.append(f"{process.owner} ended by itself ({code}): {process.last_words()}")
                await asyncio.sleep(0.5)
            await self.settling.settle_owner(process.owner)

    async def _keep_programs(self, form: str, port: int) -> None:
        """One program after another; each is started again until it says that it is done."""
        number = 0
        while not self.calm:
            label = f"program-{form}-{number}"
            self.seen.programs[label] = None
            while self.seen.programs[label] is None:
                process = await self.fleet.program(PROGRAM, label, form, port, self._next_armed(PROGRAM))
                said = asyncio.create_task(line_of(process, 120.0))
                code = await self._ended(process)
                if code == 0:
                    self.seen.programs[label] = await said
                elif code == WAITS_FOR_PERSON:
                    while self.rows.ask("SELECT 1 FROM review WHERE state = 'open'"):
                        await asyncio.sleep(0.05)
                else:
                    await asyncio.sleep(0.05)
                said.cancel()
            number += 1

    async def _kill(self) -> None:
        """At random moments: one process, or two workers at once; and armed ones that do not come to their point."""
        while len(self.seen.kills) < self.terms.kills or self.plan.missing:
            await asyncio.sleep(self.chance.uniform(0.05, self.terms.longest_pause_s))
            alive = [each for each in self.fleet.processes if each.alive and each.role != "tail" and not each.stopped]
            late = [each for each in alive if each.armed and time.monotonic() - each.started > self._patience_s]
            free = [process for process in alive if process.armed is None]
            workers = [process for process in alive if process.role == WORKER]
            if len(self.seen.kills) >= self.terms.kills:
                # Only what must make room for a process that is armed with a place still missing.
                waiting = {role for _, role in self.plan.waiting}
                free, workers = [process for process in free if process.role in waiting], []
            if late:
                self._patience_s = min(MOST_PATIENCE_S, self._patience_s * 1.1)
                self._strike(late, "random")
            elif len(workers) > 1 and self.chance.random() < PAIRS:
                self._strike(self.chance.sample(workers, 2), "pair")
            elif free:
                self._strike([self.chance.choice(free)], "random")

    def _strike(self, chosen: list[Process], how: str) -> None:
        for process in chosen:
            process.kill()
        for process in chosen:
            self._note(process, how)
