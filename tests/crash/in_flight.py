"""`python -m tests.crash.in_flight --calls 1000 --store both`: kill a gateway with calls in flight.

The calls of the dead gateway hold every place of a limit. A survivor stands beside it. What is measured is how long a call
at the survivor waits for one, and what the log says of the dead gateway's calls: exactly one end each.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1] / "support")]

import httpx2

from faulty_upstream import answers, faulty_upstream, stalls
from overnight.ledger import Ledger
from overnight.store import Statement, Store, open_store
from serving import deadlines, gateway_process

ENDS = ("model_succeeded", "model_failed", "model_lost")
JOBS = 20
RESERVED = Statement("count_reservations", dict.fromkeys(("sqlite", "postgres"), "SELECT count(*) FROM reservation"))


@dataclass
class Found:
    """`waited_s` is how long after the kill the survivor's call was answered; `settled_s` until no call was open any more."""

    calls: int
    status: int
    waited_s: float
    settled_s: float
    lost: int
    odd_ends: int


def routing(upstream: str, places: int) -> str:
    """Room for so many calls, and more time than any of these runs takes."""
    return f"""
default_model: m
providers: {{house: {{base_url: '{upstream}', models: [m]}}}}
prices: {{m: {{input_usd_per_mtok: 1, output_usd_per_mtok: 2}}}}
rate_limits: [{{scope: target, concurrency: {places}}}]
retries: {{max_attempts: 1}}
{deadlines(120_000, 600_000)}
"""


async def kill_beside_a_survivor(store_url: str, folder: Path, calls: int) -> Found:
    """Raises TimeoutError when the dead gateway's calls are not settled within a minute."""
    async with faulty_upstream({"m": stalls}) as upstream:
        text = routing(upstream.base_url, calls)
        with ExitStack() as stack:
            doomed, survivor = (
                stack.enter_context(gateway_process(store_url, upstream, place, text))  # type: ignore[arg-type]
                for place in (folder / "doomed", folder / "survivor")
            )
            limits = httpx2.Limits(max_connections=calls + 1)
            async with httpx2.AsyncClient(timeout=180, limits=limits) as http:

                async def ask(url: str, job: str) -> int:
                    body = {"messages": [{"role": "user", "content": job}], "max_tokens": 100}
                    headers = {"x-job-id": job}
                    try:
                        return (await http.post(f"{url}/v1/chat/completions", json=body, headers=headers)).status_code
                    except httpx2.HTTPError:  # the gateway was killed
                        return 0

                asking = [asyncio.create_task(ask(doomed.url, f"job-{number % JOBS}")) for number in range(calls)]
                async with asyncio.timeout(60):
                    while upstream.asked["m"] < calls:
                        await asyncio.sleep(0.01)
                upstream.plan["m"] = answers
                doomed.process.kill()
                killed = time.monotonic()
                async with asyncio.timeout(60):
                    status = await ask(survivor.url, "survivor")
                    waited_s = time.monotonic() - killed
                    with open_store(store_url) as store:
                        while (await store.read(RESERVED, {}))[0][0]:
                            await asyncio.sleep(0.02)
                        settled_s = time.monotonic() - killed
                        lost, odd = await ends(store)
                await asyncio.gather(*asking)
    return Found(calls, status, round(waited_s, 2), round(settled_s, 2), lost, odd)


async def ends(store: Store) -> tuple[int, int]:
    """How many calls are recorded as lost, and how many have not exactly one end."""
    ledger, called, ended, lost = Ledger(store), Counter[str](), Counter[str](), 0
    for job in await ledger.jobs(most=1000):
        for event in await ledger.events(job.job_id):
            call_id = event.facts.call_id or ""
            called[call_id] += event.facts.event == "model_called"
            ended[call_id] += event.facts.event in ENDS
            lost += event.facts.event == "model_lost"
    return lost, sum(ended[call_id] != count for call_id, count in called.items())


def main() -> int:
    from tests.crash.run import postgres

    parser = argparse.ArgumentParser(prog="python -m tests.crash.in_flight", description=__doc__)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--store", choices=("sqlite", "postgres", "both"), default="both")
    options = parser.parse_args()
    broken = False
    for name in ("sqlite", "postgres") if options.store == "both" else (options.store,):
        folder = Path(tempfile.mkdtemp(prefix="overnight-in-flight-"))
        with nullcontext(str(folder / "ledger.db")) if name == "sqlite" else postgres() as url:
            try:
                found = asyncio.run(kill_beside_a_survivor(url, folder, options.calls))
            except TimeoutError:
                print(json.dumps({"store": name, "calls": options.calls, "fault": "not settled within a minute"}))
                broken = True
                continue
        print(json.dumps({"store": name, **asdict(found)}), flush=True)
        broken |= found.status != 200 or found.odd_ends > 0 or found.lost != options.calls
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
