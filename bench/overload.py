"""Three times as many calls as a limit allows: what is answered, what is refused, what is paid.

    python bench/overload.py [--store sqlite postgres] [--gateways 1 2] [--only "places: eager"]

The upstream is healthy and stands in this process, so it knows what it was sent and when. A limit of concurrency or of requests
a minute must be used to 90 % at least; a call is refused only when its turn would not have come within `queue_ms`; every client
gets its share; what the ledger books is what the upstream bills; and no circuit opens: nothing was wrong but our own limits.
Of a budget, every call that fits the money at its turn is answered. A scenario that breaks one of these fails the run.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from flush_delay import environment
from measure import figure
from two_processes import store

from overnight.ledger import Ledger
from overnight.store import Store, open_store

INPUT, OUTPUT = 10, 50
BILL = INPUT * 1 + OUTPUT * 2  # micro-dollars, at 1 and 2 dollars a million tokens
SLACK_S = 0.3  # of what a client sees: its own process and ours have a share in it
ENDS = ("model_succeeded", "model_failed", "model_lost")
LEAST_USED, MOST_UNEVEN = 0.9, 1.5
TRIES = "retries: {max_attempts: 5, backoff_ms: 50}\nbreakers: {failures: 0}"


@dataclass(frozen=True)
class Scenario:
    """One limit and the clients that run against it. Without a `pace` (calls a second in all) each client asks again at once."""

    name: str
    model: str
    limits: str
    clients: int
    seconds: float
    service_s: float = 0.01
    queue_ms: int = 30_000
    total_ms: int = 10_000
    pace: float | None = None
    places: int | None = None
    per_minute: int | None = None
    budget_usd: float | None = None
    max_tokens: int = 1000
    one_tenant: bool = True
    fails_every: int = 0
    more: str = ""

    def routing(self, upstream: str) -> str:
        return f"""
default_model: {self.model}
providers: {{house: {{base_url: '{upstream}', models: [{self.model}]}}}}
prices: {{{self.model}: {{input_usd_per_mtok: 1, output_usd_per_mtok: 2}}}}
deadlines: {{queue_ms: {self.queue_ms}, total_ms: {self.total_ms}}}
{self.limits}
{self.more}"""

    def tenant(self, client: int) -> str:
        return self.model if self.one_tenant else f"{self.model}-{client}"


def scenarios(seconds: float = 24.0, service_s: float = 1.0, crowd: int = 30) -> list[Scenario]:
    """`crowd` is how many clients are eager; an answer takes `service_s` where places are what is limited."""
    places: dict[str, Any] = {
        "places": 2,
        "service_s": service_s,
        "seconds": seconds,
        "total_ms": int(4000 * service_s),
    }
    limit = "rate_limits: [{scope: target, concurrency: 2}]"
    money: dict[str, Any] = {"clients": 24, "seconds": seconds, "service_s": 0.05, "budget_usd": 0.02}
    budget = "budgets: {limits: [{scope: tenant, max_cost_usd: 0.02}]}"
    return [
        Scenario("places: eager", "eager", limit, crowd, **places),
        Scenario("places: eager, short queue", "short", limit, crowd, queue_ms=int(4000 * service_s), **places),
        Scenario("places: three times as many", "triple", limit, 6, one_tenant=False, **places),
        Scenario(
            "requests a minute",
            "speed",
            "rate_limits: [{scope: target, requests_per_minute: 60}]",
            clients=6,
            seconds=seconds,
            per_minute=60,
            pace=3 * (60 / seconds + 1),
            queue_ms=int(seconds / 3 * 1000),
            one_tenant=False,
        ),
        Scenario("budget", "money", budget, **money),
        Scenario("budget: one try in four fails", "fails", budget, fails_every=4, more=TRIES, **money),
    ]


# ── the upstream ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Upstream:
    """Answers every call after a while, and keeps when each came, by what its message says; a call that came is billed."""

    scenarios: dict[str, Scenario]
    arrived: dict[str, list[float]] = field(default_factory=dict)
    busy_s: list[float] = field(default_factory=list)
    billed: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    port: int = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                writer.write(await self.answer(body))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def answer(self, body: dict[str, object]) -> bytes:
        scenario = self.scenarios[str(body["model"])]
        arrivals = self.arrived.setdefault(body["messages"][0]["content"], [])  # type: ignore[index]
        arrivals.append(time.perf_counter())
        tries = self.billed[scenario.model] + self.failed[scenario.model]
        # A second try is served, so that no call uses up its tries by chance.
        if scenario.fails_every and len(arrivals) == 1 and tries % scenario.fails_every == 0:
            self.failed[scenario.model] += 1
            return _response(
                503, {"error": {"message": "not now", "type": "server_error", "code": None, "param": None}}
            )
        self.billed[scenario.model] += 1
        await asyncio.sleep(scenario.service_s)
        message = {"role": "assistant", "content": "ok"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": INPUT, "completion_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}
        told = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"]}
        return _response(200, told | {"choices": [choice], "usage": usage})


def _response(status: int, body: object) -> bytes:
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


@asynccontextmanager
async def upstream_of(several: Sequence[Scenario]) -> AsyncIterator[Upstream]:
    upstream = Upstream({scenario.model: scenario for scenario in several})
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, backlog=1024)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()


# ── the clients ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Call:
    """One request of a client: when it was sent and answered, how, and when the upstream had it (last)."""

    client: int
    tenant: str
    sent: float
    ended: float = 0.0
    status: int = 0
    code: str = ""
    arrived: float | None = None


@dataclass
class Outcome:
    """What became of a scenario."""

    scenario: Scenario
    calls: list[Call]
    began: float
    sent: int
    billed_microusd: int
    booked_microusd: int = 0
    circuits_opened: int = 0
    odd_ends: int = 0

    @property
    def answered(self) -> list[Call]:
        return [call for call in self.calls if call.status == 200]

    @property
    def possible(self) -> float:
        """How many answers the limit allows."""
        scenario = self.scenario
        if scenario.places is not None:
            return scenario.places * scenario.seconds / scenario.service_s
        if scenario.per_minute is not None:
            return scenario.per_minute * (1 + scenario.seconds / 60)
        return float(len(self.calls))

    @property
    def used(self) -> float:
        """The share of it that was answered in time."""
        if self.scenario.budget_usd is not None:
            return 1.0
        until = self.began + self.scenario.seconds + (self.scenario.service_s if self.scenario.places else 0)
        return sum(call.ended <= until for call in self.answered) / self.possible

    @property
    def longest_wait_s(self) -> float:
        """Of the served, but for one in a hundred."""
        waits = sorted(call.arrived - call.sent for call in self.answered if call.arrived is not None)
        return waits[int(0.99 * (len(waits) - 1))] if waits else 0.0

    @property
    def shares(self) -> tuple[int, int]:
        """The fewest and the most answers of one client."""
        counts = Counter(call.client for call in self.answered)
        found = [counts[client] for client in range(self.scenario.clients)]
        return min(found), max(found)

    def wrongly_refused(self) -> list[Call]:
        """Refused before its time was up, although calls of its tenant that came later were served within that time; or
        refused for money although a later call was not."""
        found: list[Call] = []
        queue_s, served = self.scenario.queue_ms / 1000, [call for call in self.answered if call.arrived is not None]
        for call in self.calls:
            if call.status in (429, 503) and call.ended < call.sent + queue_s - SLACK_S:
                later = [s for s in served if s.tenant == call.tenant and s.sent > call.sent + SLACK_S]
                if any(s.arrived < call.sent + queue_s - SLACK_S for s in later if s.arrived is not None):
                    found.append(call)
            elif call.status == 402 and any(s.sent > call.ended for s in served):
                found.append(call)
        return found

    def faults(self, least_used: float = LEAST_USED) -> list[str]:
        """What should not be, in words. `least_used` is the share of the limit that must have been used."""
        scenario, found = self.scenario, list[str]()
        fewest, most = self.shares
        expected = {200, 402} if scenario.budget_usd is not None else {200, 429, 503}
        strange = Counter((call.status, call.code) for call in self.calls if call.status not in expected)
        if strange:
            found.append(f"answers nobody should get: {dict(strange)}")
        if self.used < least_used:
            found.append(f"{self.used:.0%} of the limit was used, at least {least_used:.0%} are wanted")
        if wrong := self.wrongly_refused():
            found.append(f"{len(wrong)} calls were refused whose turn would have come")
        if self.longest_wait_s > scenario.queue_ms / 1000 + SLACK_S:
            found.append(f"a served call waited {self.longest_wait_s:.1f} s")
        # A budget is spent in the order of arrival: a client whose tries fail spends its turns waiting.
        even = scenario.budget_usd is None and "short" not in scenario.name
        if even and most > max(MOST_UNEVEN * fewest, fewest + 1):
            found.append(f"one client got {most} answers, another {fewest}")
        if self.sent != len(self.answered):
            found.append(f"{self.sent} calls were served by the provider, {len(self.answered)} answered to a client")
        if self.booked_microusd != self.billed_microusd:
            found.append(f"{self.booked_microusd} micro-dollars were booked, {self.billed_microusd} billed")
        if self.circuits_opened:
            found.append(f"the circuit of a healthy provider was opened {self.circuits_opened} times")
        if self.odd_ends:
            found.append(f"{self.odd_ends} calls have not exactly one end")
        if scenario.budget_usd is not None and any(call.status == 402 for call in self.calls):
            left = scenario.budget_usd * 1e6 - self.booked_microusd
            bound = 2 * scenario.max_tokens + 400  # the prompt is counted by its bytes
            if not 0 <= left < bound:
                found.append(f"{left:.0f} micro-dollars are left, one bound is {bound}")
        return found

    def told(self) -> str:
        fewest, most = self.shares
        statuses = ", ".join(f"{n} × {s}" for s, n in sorted(Counter(call.status for call in self.calls).items()))
        return (
            f"{self.scenario.name}: {len(self.answered)} answered of {self.possible:.0f} possible ({self.used:.0%}); {statuses};"
            f" waited at most {self.longest_wait_s:.2f} s; {fewest} to {most} each; {self.sent} sent;"
            f" booked {self.booked_microusd} of {self.billed_microusd} billed; circuit opened {self.circuits_opened} times"
        )


async def run(scenario: Scenario, urls: Sequence[str], upstream: Upstream) -> Outcome:
    """All clients of a scenario until its time is over and every call has ended. The ledger is read afterwards (`audit`)."""
    calls: list[Call] = []
    stop = asyncio.Event()
    limits = httpx2.Limits(max_connections=2000, max_keepalive_connections=2000)
    patience_s = (scenario.queue_ms + scenario.total_ms) / 1000 + 5
    async with httpx2.AsyncClient(timeout=patience_s, limits=limits) as http:

        async def one(client: int) -> Call:
            call = Call(client, scenario.tenant(client), time.perf_counter())
            calls.append(call)
            named = f"{scenario.model} {len(calls)}"
            body = {"model": scenario.model, "messages": [{"role": "user", "content": named}]}
            headers = {"x-tenant-id": call.tenant, "x-job-id": f"{scenario.model}-{client}"}
            url = f"{urls[client % len(urls)]}/v1/chat/completions"
            try:
                answer = await http.post(url, json=body | {"max_tokens": scenario.max_tokens}, headers=headers)
                call.status = answer.status_code
                if call.status != 200:
                    call.code = str(answer.json()["error"].get("code"))
            except httpx2.HTTPError as error:
                call.code = type(error).__name__
            call.ended = time.perf_counter()
            call.arrived = max(upstream.arrived.get(named, ()), default=None)
            return call

        async def eager(client: int) -> None:
            while not stop.is_set():
                call = await one(client)
                if call.status == 402:
                    return
                if call.status != 200:
                    await asyncio.sleep(0.01)

        began = time.perf_counter()
        if scenario.pace is None:
            clients = [asyncio.create_task(eager(client)) for client in range(scenario.clients)]
            await asyncio.wait(clients, timeout=scenario.seconds)
        else:
            clients, chance, order = [], random.Random(1), list[int]()
            for number in range(int(scenario.seconds * scenario.pace)):
                await asyncio.sleep(max(0.0, began + number / scenario.pace - time.perf_counter()))
                order = order or chance.sample(range(scenario.clients), scenario.clients)
                clients.append(asyncio.create_task(one(order.pop())))
        stop.set()
        await asyncio.gather(*clients)
    billed = upstream.billed[scenario.model]
    return Outcome(scenario, calls, began, billed, billed * BILL)


async def audit(outcome: Outcome, opened: Store) -> Outcome:
    """Add what the ledger says of the scenario's calls."""
    ledger, called, ended = Ledger(opened), Counter[str](), Counter[str]()
    for tenant in {call.tenant for call in outcome.calls}:
        for job in await ledger.jobs(tenant_id=tenant, most=1000):
            for event in await ledger.events(job.job_id):
                facts = event.facts
                outcome.circuits_opened += facts.event == "circuit_opened"
                if facts.event == "model_called":
                    called[facts.call_id or ""] += 1
                elif facts.event in ENDS:
                    ended[facts.call_id or ""] += 1
                    outcome.booked_microusd += facts.cost_microusd or 0
    outcome.odd_ends = sum(count != 1 or ended[call] != 1 for call, count in called.items())
    return outcome


# ── the benchmark ───────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def gateways(count: int, routing: str, store_url: str) -> Iterator[list[str]]:
    """So many gateway processes on one store; their URLs."""
    with ExitStack() as stack:
        urls: list[str] = []
        for _ in range(count):
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-gateway-"))
            brain = Path(home) / "brain"
            brain.mkdir()
            (brain / "routing.yaml").write_text(routing)
            env = environment(0, DATABASE_URL=store_url, OVERNIGHT_HOME=home, OVERNIGHT_BRAIN=str(brain))
            command = [sys.executable, "-m", "overnight", "gateway", "--port", "0"]
            process = subprocess.Popen(command, env=env, cwd=home, stdout=subprocess.PIPE, text=True)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            assert process.stdout is not None
            urls.append(f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}")
        yield urls


async def bench(scenario: Scenario, count: int, store_url: str) -> Outcome:
    async with upstream_of([scenario]) as upstream:
        with gateways(count, scenario.routing(upstream.base_url), store_url) as urls:
            outcome = await run(scenario, urls, upstream)
        with open_store(store_url) as opened:
            return await audit(outcome, opened)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=["sqlite", "postgres"], nargs="+", default=["sqlite", "postgres"])
    parser.add_argument("--gateways", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="scenarios whose names have this in them")
    parser.add_argument("--seconds", type=float, default=24.0)
    parser.add_argument(
        "--service-s", type=float, default=1.0, help="how long the upstream takes where places are limited"
    )
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    broken = 0
    for kind in options.store:
        for count in options.gateways:
            for scenario in scenarios(options.seconds, options.service_s):
                if options.only not in scenario.name:
                    continue
                used: list[float] = []
                for _ in range(options.runs):
                    with store(kind) as url:
                        outcome = asyncio.run(bench(scenario, count, url))
                    print(f"{kind}, {count} gateway(s), {outcome.told()}")
                    for fault in (faults := outcome.faults()):
                        print(f"    FAULT: {fault}")
                    broken += bool(faults)
                    used.append(outcome.used)
                title = f"overload, {kind}, {count} gateway(s), {scenario.name}: used"
                if scenario.budget_usd is None:
                    figure(title, "of the limit", used, at_least=LEAST_USED)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
