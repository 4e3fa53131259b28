"""`python -m tests.crash.effect_storm --effects 10000 --store both`: effects under kills, stops and network faults.

Jobs, attached programs and programs that speak HTTP do effects at a vendor that misbehaves. Workers, programs and gateways are
killed and stopped; the network between programs and gateways fails. Then everything rests, the inbox is read, and a person
answers each card by what the vendor knows. The exit code is 1 on a violation; the last line is JSON.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1] / "support")]

import msgspec

from effect_judge import EffectEvidence, broken_rules
from fault_proxy import FaultProxy, fault_proxy
from overnight.domain import Conflict
from overnight.jobs import Operations
from overnight.ledger import Ledger
from overnight.reports import load_receipt, public_receipt
from overnight.reviews import Decision, ReviewFilter, ReviewRow, find_reviews, list_reviews, public_review
from overnight.store import open_store
from vendor_client import VendorClient, spawn_vendor

from .effect_evidence import read_effects
from .effect_jobs import EFFECTS, WAITS_FOR_PERSON, one_of_each
from .fleet import PACKAGE, ROOT, Armed, Fleet, Process, free_port, line_of
from .rows import Rows

UNUSED = "http://127.0.0.1:9"
MOST_CARDS = 1000
POINTS = ("effect_claimed", "effect_called", "effect_committed", "effect_repeated")


@dataclass(frozen=True)
class EffectTerms:
    """How hard a storm is. `effects`: how many, over all three ways. `kills`: how many at most."""

    effects: int
    kills: int
    seed: int
    gateways: int = 2
    workers: int = 2
    programs: int = 4
    stops: int = 2
    lease_s: float = 5.0
    settle_s: float = 90.0
    mutant: str = ""

    def labels(self) -> dict[str, list[str]]:
        """Half of the effects in jobs, a part under `attach`, which starts slowly, and the rest over HTTP.

        `remote`: under `attach` in a program that has no database, only a gateway.
        """
        count = max(3, self.effects // len(EFFECTS))
        counts = {"job": count // 2, "attach": max(1, count // 12), "remote": max(1, count // 12)}
        counts["http"] = max(1, count - sum(counts.values()))
        return {kind: [f"{kind}-{n}" for n in range(number)] for kind, number in counts.items()}


class EffectFleet(Fleet):
    """Processes that know the vendor and the gateways."""

    def __init__(self, database_url: str, folder: Path, vendor: str, mutant: str) -> None:
        super().__init__(database_url, folder, UNUSED, "")
        self._broken_gateway = mutant if mutant.startswith("gateway_") else ""
        mutant = "" if self._broken_gateway else mutant
        path = os.pathsep.join(str(ROOT / place) for place in ("src", "tests/support", "tests", ""))
        self._environment |= {"VENDOR": vendor, "EFFECT_MUTANT": mutant, "PYTHONPATH": path}

    @property
    def environment(self) -> dict[str, str]:
        return self._environment

    async def gateway(self, role: str, port: int, armed: Armed | None = None) -> Process:
        if not self._broken_gateway:
            return await super().gateway(role, port, armed)
        owner = f"{role}-{next(self._numbers)}"
        command = [f"{PACKAGE}.effect_mutants", self._broken_gateway, "gateway", "--port", str(port), "--owner", owner]
        return await self._start(role, owner, [*command, "--offline-base-url", UNUSED], armed)

    async def effect_worker(self, armed: Armed | None, lease_s: float) -> Process:
        owner = f"worker-{next(self._numbers)}"
        command = ["overnight", "worker", "--worker-id", owner, "--jobs", f"{PACKAGE}.effect_jobs"]
        command += ["--lease-s", str(lease_s), "--offline-base-url", UNUSED]
        return await self._start("worker", owner, command, armed)

    async def attached(self, label: str, armed: Armed | None, gateway: str = "") -> Process:
        owner, role = f"{label}-{next(self._numbers)}", "remote" if gateway else "attach"
        more = {"OVERNIGHT_BASE_URL": gateway, "OVERNIGHT_DATABASE_URL": ""} if gateway else {}
        return await self._start(role, owner, [f"{PACKAGE}.effect_jobs", label], armed, **more)

    async def over_http(self, label: str, gateways: str, kill_at: str) -> Process:
        owner = f"{label}-{next(self._numbers)}"
        more = {"GATEWAYS": gateways, "KILL_AT": kill_at}
        return await self._start("http", owner, [f"{PACKAGE}.effect_program", label], None, **more)


class EffectStorm:
    """One storm on one store. `run` returns the evidence."""

    def __init__(self, database_url: str, folder: Path, terms: EffectTerms) -> None:
        self.url, self.folder, self.terms = database_url, folder, terms
        self.chance = random.Random(terms.seed)
        self.store = open_store(database_url)
        self.rows = Rows(database_url)
        self.operations, self.ledger = Operations(self.store), Ledger(self.store)
        self.labels = terms.labels()
        self.ended: dict[str, list[str]] = {}
        self.waiting: set[str] = set()
        self.faults: list[str] = []
        self.kills, self.stops = Counter[str](), 0
        self.stopped: set[int] = set()
        self.persons = Counter[str]()
        self.calm = False
        self.network = Counter[str]()
        self.fleet: EffectFleet
        self.vendor: VendorClient
        self._proxies: list[FaultProxy] = []
        self._queue: list[tuple[str, str]] = []

    def close(self) -> None:
        self.rows.close()
        self.store.close()

    async def run(self) -> EffectEvidence:
        self.folder.mkdir(parents=True, exist_ok=True)
        assert not (self.folder / "vendor.jsonl").exists(), "the record of another storm is in this folder"
        with spawn_vendor(self.folder, str(self.terms.seed), calm=False) as self.vendor:
            self.fleet = EffectFleet(self.url, self.folder, self.vendor.address, self.terms.mutant)
            async with self._gateways() as tasks:
                tasks += [asyncio.create_task(self._keep_worker()) for _ in range(self.terms.workers)]
                tasks += [asyncio.create_task(self._kill()), asyncio.create_task(self._stop())]
                for label in self.labels["job"]:
                    await self.operations.create(one_of_each, (label,), external_id=label)
                await self._run_programs(
                    [(kind, label) for kind in ("attach", "remote", "http") for label in self.labels[kind]]
                )
                await self._until(self._jobs_rest, "the jobs do not rest")
                self.calm = True
                for proxy in self._proxies:
                    proxy.calm = True
                    self.network.update(proxy.counts)
                await asyncio.to_thread(self.vendor.calm)
                await self._until(self._claims_ended, "claims have no end")
                inbox, unknown = await self._inbox(), self._unknown()
                await self._settle()
                for task in tasks:
                    task.cancel()
                return await self._evidence(inbox, unknown)

    # ── programs ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _run_programs(self, todo: list[tuple[str, str]]) -> None:
        """Each is started again until it has ended, or waits for a person."""
        self._queue = list(todo)
        self.chance.shuffle(self._queue)
        lanes = [self._lane() for _ in range(min(self.terms.programs, len(todo)))]
        await asyncio.gather(*lanes)

    async def _lane(self) -> None:
        while self._queue:
            kind, label = self._queue.pop()
            for start in range(100):
                process = await self._start(kind, label)
                said = asyncio.create_task(line_of(process, 120.0))
                doomed = asyncio.create_task(self._doom(process, start))
                code = await process.handle.wait()
                doomed.cancel()
                if code in (0, WAITS_FOR_PERSON):
                    words: Any = await said
                    if code == 0:
                        self.ended[label] = words
                        self.waiting.discard(label)
                    else:
                        self.waiting.add(label)
                    break
                said.cancel()
                if code != -9:
                    self.faults.append(f"{process.owner} ended by itself ({code}): {process.last_words()}")
                    break
                self.kills[f"{kind} at a point" if not process.doomed else kind] += 1

    async def _start(self, kind: str, label: str) -> Process:
        if kind == "attach":
            armed = Armed(self.chance.choice(POINTS), self.chance.randint(1, 4))
            return await self.fleet.attached(label, None if self.calm or self.chance.random() < 0.4 else armed)
        if kind == "remote":
            return await self.fleet.attached(label, None, f"http://127.0.0.1:{self.chance.choice(self._proxies).port}")
        chosen = ",".join(f"127.0.0.1:{proxy.port}" for proxy in self._proxies)
        point = f"{self.chance.choice(('claimed', 'called', 'called'))}:{self.chance.randint(1, 4)}"
        return await self.fleet.over_http(label, chosen, "" if self.calm or self.chance.random() < 0.5 else point)

    async def _doom(self, process: Process, start: int) -> None:
        """Kill a program at a random moment of its first starts, or let it stand still for longer than its claim."""
        if self.calm or start > 2:
            return
        await asyncio.sleep(self.chance.uniform(0.05, 1.5 if process.role == "http" else 4.0))
        if self.chance.random() < 0.25 and process.alive:
            process.stop()
            self.stopped.add(process.handle.pid)
            await asyncio.sleep(2.0)
            process.go_on()
        elif self.chance.random() < 0.6:
            process.kill()

    # ── workers and gateways ─────────────────────────────────────────────────────────────────────────────────────────

    async def _keep_worker(self) -> None:
        while True:
            armed = None
            if not self.calm and self._may_kill() and self.chance.random() < 0.5:
                armed = Armed(self.chance.choice(POINTS), self.chance.randint(1, 20))
            process = await self.fleet.effect_worker(armed, self.terms.lease_s)
            code = await process.handle.wait()
            if code != -9:
                self.faults.append(f"{process.owner} ended by itself ({code}): {process.last_words()}")
                await asyncio.sleep(0.5)
            self.kills["worker" if process.doomed else "worker at a point"] += 1
            await self.operations.expire_leases(process.owner)

    @contextlib.asynccontextmanager
    async def _gateways(self) -> AsyncIterator[list[asyncio.Task[None]]]:
        tasks: list[asyncio.Task[None]] = []
        async with contextlib.AsyncExitStack() as stack:
            for number in range(self.terms.gateways):
                port = free_port()
                proxy = fault_proxy(port, random.Random(f"{self.terms.seed}/{number}"))
                self._proxies.append(await stack.enter_async_context(proxy))
                tasks.append(asyncio.create_task(self._keep_gateway(port)))
            try:
                yield tasks
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                alive = [process for process in self.fleet.processes if process.alive]
                for process in alive:
                    process.go_on()
                await asyncio.gather(*(self.fleet.end(process) for process in alive))

    async def _keep_gateway(self, port: int) -> None:
        while True:
            process = await self.fleet.gateway("gateway", port)
            code = await process.handle.wait()
            if code != -9:
                self.faults.append(f"{process.owner} ended by itself ({code}): {process.last_words()}")
                await asyncio.sleep(0.5)
            self.kills["gateway"] += 1

    def _may_kill(self) -> bool:
        return self.kills.total() < self.terms.kills

    async def _kill(self) -> None:
        while not self.calm and self._may_kill():
            await asyncio.sleep(self.chance.uniform(0.5, 3.0))
            free = [each for each in self.fleet.processes if each.alive and not each.stopped and not each.armed]
            old = [each for each in free if time.monotonic() - each.started > 3 and each.role in ("worker", "gateway")]
            if old and not self.calm:
                self.chance.choice(old).kill()

    async def _stop(self) -> None:
        """Workers stand still for longer than their lease, gateways for a while."""
        while not self.calm and self.stops < self.terms.stops:
            await asyncio.sleep(self.chance.uniform(1.0, 3.0))
            free = [each for each in self.fleet.processes if each.alive and not each.stopped and not each.armed]
            free = [each for each in free if each.role in ("worker", "gateway")]
            if free and not self.calm:
                process = self.chance.choice(free)
                process.stop()
                self.stops += 1
                self.stopped.add(process.handle.pid)
                await asyncio.sleep(self.terms.lease_s * 1.3 if process.role == "worker" else 1.0)
                process.go_on()

    # ── rest, the inbox, the person ──────────────────────────────────────────────────────────────────────────────────

    async def _until(self, reached: Callable[[], bool], fault: str) -> None:
        until = time.monotonic() + self.terms.settle_s
        while not reached():
            if time.monotonic() > until:
                self.faults.append(fault)
                return
            await asyncio.sleep(0.1)

    def _jobs_rest(self) -> bool:
        busy = "SELECT count(*) FROM job WHERE runtime = 'python' AND state IN ('queued', 'running')"
        return not self.rows.ask(busy)[0][0]

    def _claims_ended(self) -> bool:
        # A job that killed its workers waits for a person, with its claims as they are.
        claims = self.rows.ask(
            "SELECT count(*) FROM effect JOIN job ON job.job_id = effect.job_id WHERE effect.state = 'claimed'"
            " AND NOT (job.runtime = 'python' AND job.state = 'parked')"
        )[0][0]
        return not claims and self._jobs_rest() and not self.vendor.pending()

    def _unknown(self) -> set[str]:
        return {row[0] for row in self.rows.ask("SELECT effect_id FROM effect WHERE state = 'unknown'")}

    async def _inbox(self) -> list[dict[str, Any]]:
        """The pending cards as a person sees them."""
        environment = self.fleet.environment
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "overnight", "reviews", "--json", env=environment, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        cards: list[dict[str, Any]] = json.loads(out)
        while cards and len(cards) % MOST_CARDS == 0:  # the command shows so many at once
            wanted = ReviewFilter(tenant_id="default", state="pending", after=cards[-1]["review_id"], most=MOST_CARDS)
            if not (further := await find_reviews(self.store, wanted)):
                break
            cards += [json.loads(msgspec.json.encode(public_review(row))) for row in further]
        return [{**card, "effect_id": card["detail"].get("effect_id")} for card in cards]

    async def _settle(self) -> None:
        """A person answers each card by the vendor's truth, and programs that waited are started again, until all is settled."""
        until = time.monotonic() + self.terms.settle_s
        while time.monotonic() < until:
            cards = await list_reviews(self.store, most=100 * MOST_CARDS)
            deeds = {deed["key"]: deed for deed in await asyncio.to_thread(self.vendor.deeds)}
            await asyncio.gather(*(self._decide(card, deeds) for card in cards))
            waiting = sorted(self.waiting)
            await self._run_programs([(label.partition("-")[0], label) for label in waiting])
            if not (cards or self.waiting or self._unknown()) and self._jobs_ended():
                return
            await asyncio.sleep(0.1)
        self.faults.append(f"not settled in time: {sorted(self.waiting)}, {self._unknown()}")

    def _jobs_ended(self) -> bool:
        open_jobs = "SELECT count(*) FROM job WHERE runtime = 'python' AND state IN ('queued', 'running', 'parked')"
        return not self.rows.ask(open_jobs)[0][0]

    async def _decide(self, card: ReviewRow, deeds: dict[str, dict[str, Any]]) -> None:
        if card.kind not in ("quarantine", "duplicate", "code"):
            self.faults.append(f"a card that nobody expected: {card.kind}: {card.question} {card.detail}")
        answer = self._answer(card, deeds)
        self.persons[answer.answer] += 1
        with contextlib.suppress(Conflict):  # a late report came first
            await self.operations.decide(card.review_id, answer)

    def _answer(self, card: ReviewRow, deeds: dict[str, dict[str, Any]]) -> Decision:
        if card.kind == "duplicate":
            return Decision("ack", "ann")
        detail = json.loads(card.detail)
        if "effect_key" not in detail:  # five workers in a row were killed in this job
            return Decision("retry", "ann")
        if done := deeds.get(detail["effect_key"]) or deeds.get(detail.get("effect_id", "")):
            result = json.dumps(done["value"]).encode()
            return Decision("done", "ann", provider_id=done["id"], result=result)
        return Decision(self.chance.choice(("not_done", "not_done", "reject")), "ann", note="as the vendor says")

    async def _evidence(self, inbox: list[dict[str, Any]], unknown: set[str]) -> EffectEvidence:
        receipts: list[dict[str, Any]] = []
        for (job_id,) in self.rows.ask("SELECT job_id FROM job"):
            job = await self.ledger.job(job_id)
            receipts += public_receipt(await load_receipt(self.ledger, job), with_content=False)["effects"]
            if job.runtime == "python" and job.state == "succeeded":
                self.ended[job.external_id or ""] = json.loads(job.result or b"[]")
        words = {
            f"{label}/{account}": word
            for label, ended in self.ended.items()
            for account, word in zip(EFFECTS, ended, strict=True)
        }
        everything = [
            f"{label}/{account}" for labels in self.labels.values() for label in labels for account in EFFECTS
        ]
        return EffectEvidence(
            subjects=everything,
            effects=read_effects(self.rows),
            arrivals=self.vendor.arrivals(),
            deeds=self.vendor.deeds(),
            ended=words,
            inbox=inbox,
            unknown_then=unknown,
            receipts=receipts,
            stopped=self.stopped,
            faults=self.faults,
        )


def figures(storm: EffectStorm, evidence: EffectEvidence, wrong: list[str], took_s: float) -> dict[str, Any]:
    """The facts of one storm, as they stand in its line of JSON."""
    return {
        "store": "postgres" if storm.url.startswith("postgres") else "sqlite",
        "seed": storm.terms.seed,
        "effects": len(evidence.effects),
        "states": dict(Counter(effect.state for effect in evidence.effects)),
        "over_http": sum(effect.over_http for effect in evidence.effects),
        "kills": dict(storm.kills),
        "stops": len(storm.stopped),
        "network": dict(storm.network),
        "arrivals": len(evidence.arrivals),
        "behaviours": dict(Counter(arrival["behaviour"] for arrival in evidence.arrivals)),
        "deeds": len(evidence.deeds),
        "unknown_at_rest": len(evidence.unknown_then),
        "cards_at_rest": len(evidence.inbox),
        "decided_by_person": dict(storm.persons),
        "violations": len(wrong),
        "took_s": round(took_s, 1),
    }


async def storm_on(database_url: str, folder: Path, terms: EffectTerms) -> tuple[dict[str, Any], list[str]]:
    """One storm: its figures and its violations."""
    began = time.monotonic()
    storm = EffectStorm(database_url, folder, terms)
    try:
        evidence = await storm.run()
        wrong = broken_rules(evidence)
        return figures(storm, evidence, wrong, time.monotonic() - began), wrong
    finally:
        storm.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.effect_storm", description=__doc__)
    parser.add_argument("--effects", type=int, default=10_000, help="per store")
    parser.add_argument("--kills", type=int, default=200, help="per store, at most")
    parser.add_argument("--seed", type=int, default=None, help="repeats the same choices; timing differs all the same")
    parser.add_argument("--store", choices=("sqlite", "postgres", "both"), default="both")
    parser.add_argument("--url", help="this store instead")
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--stops", type=int, default=10)
    parser.add_argument("--programs", type=int, default=6, help="programs at once")
    parser.add_argument("--settle-s", type=float, default=600)
    parser.add_argument("--mutant", default="", help="break the product first; see effect_mutants.py")
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10_000) if options.seed is None else options.seed
    folder = options.folder or Path(tempfile.mkdtemp(prefix="overnight-effects-"))
    terms = EffectTerms(
        effects=options.effects,
        kills=options.kills,
        seed=seed,
        gateways=options.gateways,
        stops=options.stops,
        programs=options.programs,
        settle_s=options.settle_s,
        mutant=options.mutant,
    )
    from .run import postgres

    results: list[dict[str, Any]] = []
    names = ("url",) if options.url else ("sqlite", "postgres") if options.store == "both" else (options.store,)
    for name in names:
        given = {"url": options.url, "sqlite": str(folder / name / "ledger.db")}.get(name)
        (folder / name).mkdir(parents=True, exist_ok=True)
        with contextlib.nullcontext(given) if given else postgres() as url:
            facts, wrong = asyncio.run(storm_on(url, folder / name, terms))
        results.append(facts)
        for sentence in wrong[:50]:
            print(sentence, flush=True)
        print(json.dumps(facts, indent=1), flush=True)
    print(json.dumps({"seed": seed, "folder": str(folder), "violations": sum(each["violations"] for each in results)}))
    return 1 if any(facts["violations"] for facts in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
