"""`python -m tests.crash.store_stops --seconds 6`: a gateway under load while its store is blocked.

Two ways of standing still: PostgreSQL's processes are paused (SIGSTOP), or somebody else holds a lock: SQLite's write lock, a
lock on PostgreSQL's table of events. Every call must end, as an answer or as 503 `store_unavailable`; exactly one end of each is
in the log; what the provider was asked is booked; no reservation is left; and no circuit opens, since the provider was well.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1] / "support")]

import apsw
import httpx2
import psutil
import psycopg

from faulty_upstream import faulty_upstream, trickles
from overnight.ledger import Ledger
from overnight.store import open_store
from serving import gateway_process

from .in_flight import RESERVED, ends

CLIENTS = 8
BILL = 5 * 1 + 3 * 2
"""What the provider bills for each call, in micro-dollars."""


def routing(upstream: str, total_ms: int) -> str:
    return f"""
default_model: m
providers: {{house: {{base_url: '{upstream}', models: [m]}}}}
prices: {{m: {{input_usd_per_mtok: 1, output_usd_per_mtok: 2}}}}
retries: {{max_attempts: 1}}
deadlines: {{default_ms: {total_ms}}}
"""


@contextmanager
def paused(store_url: str) -> Iterator[None]:
    """All processes of the PostgreSQL server stand still."""
    with psycopg.connect(store_url) as connection:
        found = connection.execute("SELECT pg_read_file('postmaster.pid')").fetchone()
    assert found is not None
    postmaster = psutil.Process(int(found[0].split()[0]))
    processes = [postmaster, *postmaster.children(recursive=True)]
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


@contextmanager
def locked(store_url: str) -> Iterator[None]:
    """Another process' lock, as far as the gateway can tell."""
    if store_url.startswith("postgres"):
        with psycopg.connect(store_url) as connection:
            connection.execute("LOCK TABLE event IN ACCESS EXCLUSIVE MODE")
            yield
            connection.rollback()
    else:
        connection = apsw.Connection(store_url)
        connection.setbusytimeout(10_000)
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
        connection.close()


STOPS: dict[str, Callable[[str], "contextmanager[None]"]] = {"paused": paused, "locked": locked}  # type: ignore[type-arg]


async def stop_under_load(store_url: str, folder: Path, how: str, seconds: float, total_ms: int) -> list[str]:
    """Stop the store for so long under calls of so many milliseconds each; what is wrong afterwards, in words."""
    answered: Counter[str] = Counter()
    over = asyncio.Event()
    async with faulty_upstream({"m": trickles(0.005, 100)}) as upstream:
        text = routing(upstream.base_url, total_ms)
        with gateway_process(store_url, upstream, folder, text) as gateway:  # type: ignore[arg-type]
            async with httpx2.AsyncClient(base_url=gateway.url, timeout=60) as http:

                async def client(number: int) -> None:
                    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 100}
                    while not over.is_set():
                        headers = {"x-job-id": f"job-{number}"}
                        answer = await http.post("/v1/chat/completions", json=body, headers=headers)
                        error = "" if answer.status_code == 200 else answer.json()["error"]["code"]
                        answered[f"{answer.status_code} {error}".strip()] += 1
                        await asyncio.sleep(0.01)

                clients = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
                await asyncio.sleep(0.5)
                await asyncio.to_thread(_hold, STOPS[how], store_url, seconds)
                await asyncio.sleep(0.5)
                over.set()
                async with asyncio.timeout(60):
                    await asyncio.gather(*clients)
                with open_store(store_url) as store:
                    async with asyncio.timeout(30):
                        while (await store.read(RESERVED, {}))[0][0]:
                            await asyncio.sleep(0.05)
                    _, odd = await ends(store)
                    ledger = Ledger(store)
                    events = [each.facts for job in await ledger.jobs() for each in await ledger.events(job.job_id)]
    booked = sum(event.cost_microusd or 0 for event in events)
    opened = sum(event.event == "circuit_opened" for event in events)
    found: list[str] = []
    if strange := set(answered) - {"200", "503 store_unavailable"}:
        found.append(f"answers nobody should get: { ({name: answered[name] for name in strange}) }")
    if not answered["200"]:
        found.append("no call was answered")
    if odd:
        found.append(f"{odd} calls have not exactly one end")
    if opened:
        found.append(f"the circuit of a healthy provider was opened {opened} times")
    if booked < upstream.asked["m"] * BILL:
        found.append(f"{booked} micro-dollars are booked, {upstream.asked['m'] * BILL} were billed")
    return found


def _hold(stop: Callable[[str], "contextmanager[None]"], store_url: str, seconds: float) -> None:  # type: ignore[type-arg]
    with stop(store_url):
        threading.Event().wait(seconds)


def main() -> int:
    from tests.crash.run import postgres

    parser = argparse.ArgumentParser(prog="python -m tests.crash.store_stops", description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args()
    broken = 0
    for name, how in (("sqlite", "locked"), ("postgres", "locked"), ("postgres", "paused")):
        folder = Path(tempfile.mkdtemp(prefix="overnight-store-stops-"))
        with nullcontext(str(folder / "ledger.db")) if name == "sqlite" else postgres() as url:
            found = asyncio.run(stop_under_load(url, folder, how, options.seconds, int(options.seconds * 500)))
        print(json.dumps({"store": name, "stop": how, "seconds": options.seconds, "faults": found}), flush=True)
        broken += bool(found)
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
