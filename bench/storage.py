"""What a long conversation costs on disk: model calls through the gateway, in process, against the upstream mock.

    python bench/storage.py [--store sqlite] [--runs 3]

* growing: 100 calls of one job whose prompt grows to 200,000 tokens (4 bytes each, random text, so that no compression
  flatters us) store less than 5 MB. The prompts that were sent come to 40 MB.
* linear: 200 calls of equal turns cost at most 2.1 times what 100 calls cost.

Counted: the SQLite file after a checkpoint, `pg_database_size` after one, less what the empty store takes. Before a figure is
printed, the prompt of the last call is read back from the store and compared with what was sent.
"""

import argparse
import asyncio
import json
import random
import string
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import postgres
import psycopg
import upstream_mock
import uvloop
from measure import figure

from overnight.brain import Brain
from overnight.domain import Attribution
from overnight.gateway import Gateway, PriceBook
from overnight.ledger import Ledger
from overnight.store import open_store

CALLS = 100
TOKENS = 200_000
BYTES_PER_TOKEN = 4
EQUAL_TURN_BYTES = 400
MOST_MB = 5
MOST_RATIO = 2.1
LETTERS = string.ascii_letters + string.digits
Messages = list[dict[str, Any]]


@asynccontextmanager
async def gateway_on(url: str, upstream: str) -> AsyncIterator[Gateway]:
    with open_store(url) as store:
        brain = Brain.from_files({})
        gateway = Gateway(store, brain.routing, PriceBook(brain.routing.prices), offline_base_url=f"{upstream}/v1")
        await gateway.start()
        try:
            yield gateway
        finally:
            await gateway.close()


async def converse(gateway: Gateway, calls: int, turn_bytes: int) -> int:
    """Ask `calls` times, each time with the whole conversation; the bytes of all prompts that were sent."""
    messages: Messages = []
    sent = 0
    source = random.Random(calls)
    for _ in range(calls):
        messages.append({"role": "user", "content": "".join(source.choices(LETTERS, k=turn_bytes))})
        sent += sum(len(message["content"]) for message in messages)
        body = json.dumps({"model": "gpt-5.4-mini", "messages": messages}).encode()
        answer = await gateway.chat(body, Attribution(external_id="conversation"))
        if answer.status != 200:
            raise SystemExit(f"the gateway answered {answer.status}: {answer.body[:300]!r}")
        messages.append(json.loads(answer.body)["choices"][0]["message"])
    await read_back(gateway.ledger, messages[:-1], calls)
    return sent


async def read_back(ledger: Ledger, prompt: Messages, calls: int) -> None:
    job = await ledger.job("conversation")
    events = await ledger.events(job.job_id)
    asked = [event for event in events if event.facts.event == "model_called"]
    answered = [event for event in events if event.facts.event == "model_succeeded"]
    reference = asked[-1].facts.input_ref or ""
    stored = await ledger.content(job.tenant_id, reference)
    if len(asked) != calls or len(answered) != calls or [json.loads(body) for body in stored] != prompt:
        raise SystemExit(f"{len(asked)} of {calls} calls are stored, or the last prompt is not what was sent")


def sqlite_bytes(path: str) -> int:
    connection = apsw.Connection(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return sum(file.stat().st_size for file in Path(path).parent.iterdir())


def postgres_bytes(dsn: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        assert row is not None
        return row[0]


async def cost(store: str, upstream: str, calls: int, turn_bytes: int) -> tuple[int, int]:
    """Bytes stored over an empty store that has served one call of another job, and bytes of the prompts sent."""
    with tempfile.TemporaryDirectory() as folder:
        if store == "sqlite":
            path = str(Path(folder) / "ledger.db")
            return await _cost(path, lambda: sqlite_bytes(path), upstream, calls, turn_bytes)
        with postgres.running() as server:
            return await _cost(server.url, lambda: postgres_bytes(server.dsn), upstream, calls, turn_bytes)


async def _cost(url: str, size: Any, upstream: str, calls: int, turn_bytes: int) -> tuple[int, int]:
    async with gateway_on(url, upstream) as gateway:
        body = json.dumps({"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "Good evening."}]})
        await gateway.chat(body.encode(), Attribution(external_id="another"))  # makes this month's tables
    empty = await asyncio.to_thread(size)
    async with gateway_on(url, upstream) as gateway:
        sent = await converse(gateway, calls, turn_bytes)
    return await asyncio.to_thread(size) - empty, sent


async def bench(store: str, runs: int) -> None:
    growing: list[float] = []
    linear: list[float] = []
    with upstream_mock.running() as upstream:
        for _ in range(runs):
            stored, sent = await cost(store, upstream, CALLS, TOKENS * BYTES_PER_TOKEN // CALLS)
            print(f"{store}: {CALLS} calls sent {sent / 1e6:.1f} MB of prompts and stored {stored / 1e6:.2f} MB")
            growing.append(stored / 1e6)
            half, _ = await cost(store, upstream, CALLS, EQUAL_TURN_BYTES)
            whole, _ = await cost(store, upstream, 2 * CALLS, EQUAL_TURN_BYTES)
            print(f"{store}: equal turns: {CALLS} calls {half / 1e3:.0f} kB, {2 * CALLS} calls {whole / 1e3:.0f} kB")
            linear.append(whole / half)
    figure(f"storage, {store}, {CALLS} calls growing to {TOKENS:,} tokens", "MB", growing, at_most=MOST_MB)
    figure(f"storage, {store}, {2 * CALLS} equal turns over {CALLS}", "×", linear, at_most=MOST_RATIO)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=["sqlite", "postgres"], nargs="+", default=["sqlite", "postgres"])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    for store in options.store:
        uvloop.run(bench(store, options.runs))


if __name__ == "__main__":
    main()
