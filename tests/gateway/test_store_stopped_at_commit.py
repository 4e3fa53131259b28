"""PostgreSQL stands still before, in and after a COMMIT of a call: each call has one end, and no reservation is left."""

import asyncio
import contextlib
import re
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from ends import check_all_ends
from faulty_upstream import faulty_upstream, trickles
from machine_parts import rows
from overnight.store import open_store
from serving import serving

PREPARED = re.compile(rb"(_pg3_\d+)\0COMMIT\0")


class StoppingProxy:
    """Forwards PostgreSQL's protocol, in a thread of its own. `stop_at` lets everything stand at the next COMMIT, until `go_on`.

    - `before`: the server does not receive it. `in`: the server has it, and its answer does not arrive. `after`: it does.
    """

    def __init__(self, url: str) -> None:
        with psycopg.connect(url) as connection:
            self._place = connection.info.hostaddr or connection.info.host, connection.info.port
        self._moment = ""
        self.stopped, self._ready = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> "StoppingProxy":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    def stop_at(self, moment: str) -> None:
        self._moment = moment

    def go_on(self) -> None:
        self._loop.call_soon_threadsafe(self._runs.set)

    async def _run(self) -> None:
        self._loop, self._runs, self._over = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        self._runs.set()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    def _stop(self) -> None:
        self._moment = ""
        self._runs.clear()
        self.stopped.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._place
        if host.startswith("/"):
            from_server, to_server = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            from_server, to_server = await asyncio.open_connection(host, port)
        names, committed = {b"\0COMMIT\0"}, False

        async def up() -> None:
            nonlocal committed
            while data := await reader.read(65536):
                await self._runs.wait()
                if found := PREPARED.search(data):
                    names.add(b"\0" + found[1] + b"\0")
                commits = any(name in data for name in names)
                if commits and self._moment == "before":
                    self._stop()
                    await self._runs.wait()
                to_server.write(data)
                if commits and self._moment == "in":
                    self._stop()
                committed = commits

        async def down() -> None:
            while data := await from_server.read(65536):
                await self._runs.wait()
                writer.write(data)
                if committed and self._moment == "after":
                    self._stop()

        try:
            await asyncio.gather(self._until_lost(up(), to_server), self._until_lost(down(), writer))
        except asyncio.CancelledError:
            to_server.close()
            writer.close()

    async def _until_lost(self, forwarding: Coroutine[Any, Any, None], writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await forwarding
        writer.close()


@contextmanager
def stopping_proxy(url: str) -> Iterator[tuple[StoppingProxy, str]]:
    facts = conninfo_to_dict(url)
    with StoppingProxy(url) as proxy:
        user, password = facts.get("user", ""), facts.get("password")
        secret = f":{password}" if password else ""
        yield proxy, f"postgresql://{user}{secret}@127.0.0.1:{proxy.port}/{facts['dbname']}?sslmode=disable"


def routing(base_url: str) -> str:
    return f"""
default_model: m
retries: {{max_attempts: 1}}
deadlines: {{queue_ms: 300, total_ms: 5000}}
providers: {{house: {{base_url: '{base_url}', models: [m]}}}}
prices: {{m: {{input_usd_per_mtok: 1, output_usd_per_mtok: 2}}}}
rate_limits: [{{scope: target, concurrency: 100}}]"""


@pytest.mark.parametrize("moment", ["before", "in", "after"])
async def test_call_ends_once_with_the_store_stopped_at_a_commit(postgres_url: str, moment: str) -> None:
    with open_store(postgres_url):
        pass  # the schema
    statuses = Counter[str]()
    with stopping_proxy(postgres_url) as (proxy, url), open_store(url) as store:
        async with (
            faulty_upstream({"m": trickles(0.01, 100)}) as upstream,
            serving(store, upstream, routing(upstream.base_url)) as served,  # type: ignore[arg-type]
        ):

            async def ask(number: int) -> None:
                answer = await served.ask("x", model="m", max_tokens=50, headers={"x-job-id": f"job-{number}"})
                code = "" if answer.status_code == 200 else answer.json()["error"]["code"]
                statuses[f"{answer.status_code} {code}".strip()] += 1

            for nth in range(2):  # at the admissions, and later
                proxy.stopped.clear()
                asking = [asyncio.create_task(ask(number)) for number in range(6)]
                await asyncio.sleep(0.03 * nth)
                proxy.stop_at(moment)
                assert await asyncio.to_thread(proxy.stopped.wait, 10)
                await asyncio.sleep(0.6)
                proxy.go_on()
                async with asyncio.timeout(20):
                    await asyncio.gather(*asking)
                    while (await served.http.get("/readyz")).status_code != 200:
                        await asyncio.sleep(0.05)
            async with asyncio.timeout(20):
                while rows(postgres_url, "SELECT 1 FROM reservation"):
                    await asyncio.sleep(0.05)
    assert set(statuses) <= {"200", "503 store_unavailable"}
    check_all_ends(postgres_url)
    told = [body for (body,) in rows(postgres_url, "SELECT body FROM event")]
    assert not [body for body in told if b"circuit_opened" in bytes(body) or b"model_lost" in bytes(body)]
    assert rows(postgres_url, "SELECT DISTINCT in_flight FROM rate") == [(0,)]
