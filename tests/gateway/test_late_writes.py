"""Writes of a stream that the store takes late: the settlement of a cancelled call, and the word that a target answers."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from faulty_upstream import STREAM, WHOLE, Asked, chunk, faulty_upstream, refuses
from overnight.ledger import Ledger
from overnight.store import Store
from overnight.wire_formats import CODECS
from serving import serving
from store_locks import kept_from_answering

STREAMED = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
ENDS = ("model_succeeded", "model_failed", "model_lost")
BILL = 5 * 1 + 3 * 2


class SteppedProvider:
    """A provider whose stream begins at the event `begins` and ends at `ends`."""

    def __init__(self) -> None:
        self.begins, self.ends = asyncio.Event(), asyncio.Event()

    async def act(self, asked: Asked, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.begins.wait()
        first, *rest = CODECS[asked.form].stream_events(json.dumps(WHOLE[asked.form]).encode(), 0.0)
        writer.write(STREAM + chunk(first))
        await writer.drain()
        await self.ends.wait()
        writer.write(b"".join(map(chunk, rest)) + b"0\r\n\r\n")
        await writer.drain()


def routing(base_url: str, more: str = "") -> str:
    return f"""
default_model: m
retries: {{max_attempts: 1}}
deadlines: {{queue_ms: 20000, total_ms: 20000}}
providers: {{house: {{base_url: '{base_url}', models: [m]}}}}
prices: {{m: {{input_usd_per_mtok: 1, output_usd_per_mtok: 2}}}}
{more}"""


@asynccontextmanager
async def locked(store: Store, url: str) -> AsyncIterator[Any]:
    """The store takes no writes in the block; it yields what ends that earlier."""
    trouble = kept_from_answering("write lock" if store.dialect == "sqlite" else "locked job", url)
    await asyncio.to_thread(trouble.__enter__)
    released = False

    async def release() -> None:
        nonlocal released
        if not released:
            released = True
            await asyncio.to_thread(trouble.__exit__, None, None, None)

    try:
        yield release
    finally:
        await release()


async def test_a_call_cancelled_during_its_settlement_is_settled_as_it_ended(
    store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway closes while the store takes no writes: the answer had come, so its cost is known."""
    monkeypatch.setattr("overnight.gateway.gateway.GRACE_S", 0.1)
    provider = SteppedProvider()
    async with faulty_upstream({"m": provider.act}) as upstream:
        text = routing(upstream.base_url)
        async with serving(store, upstream, text) as served:  # type: ignore[arg-type]
            provider.begins.set()
            headers = {"x-job-id": "j"}
            async with served.http.stream("POST", "/v1/chat/completions", json=STREAMED, headers=headers) as answer:
                assert answer.status_code == 200
            async with locked(store, store_url) as release:
                provider.ends.set()
                await asyncio.sleep(0.3)  # its settlement is under way
                closing = asyncio.create_task(close_and_unlock(release))
                await served.gateway.close()
                await closing
        events = [event.facts for event in await Ledger(store).events((await Ledger(store).job("j")).job_id)]
        [end] = [event for event in events if event.event in ENDS]
        assert (end.event, end.cost_microusd, end.bound_microusd) == ("model_succeeded", BILL, None)


async def close_and_unlock(release: Any) -> None:
    await asyncio.sleep(0.6)
    await release()


async def test_streamed_probe_does_not_wait_for_its_circuit_update(store: Store, store_url: str) -> None:
    """The probe of a circuit is a stream: it flows although the store takes no writes, and the circuit closes later, once."""
    provider = SteppedProvider()
    plan = [refuses(500, "server_error"), provider.act]
    async with faulty_upstream({"m": plan}) as upstream:
        text = routing(upstream.base_url, "breakers: {failures: 1, cool_down_ms: 100}")
        async with serving(store, upstream, text) as served:  # type: ignore[arg-type]
            for n in range(2):
                await served.ask(f"fails {n}", headers={"x-job-id": "opens"})
                if "circuit_opened" in await served.story("opens"):
                    break
            await asyncio.sleep(0.4)
            headers = {"x-job-id": "probe"}
            opening = asyncio.create_task(open_stream(served.http, headers))
            await served.until("probe", "model_called")
            async with locked(store, store_url) as release:
                provider.begins.set()
                async with asyncio.timeout(8):
                    answer, pieces = await opening
                    first = await anext(pieces)
                assert b"chat.completion.chunk" in first
                await release()
            await served.until("probe", "circuit_closed")
            provider.ends.set()
            rest = b"".join([piece async for piece in pieces])
            assert rest.endswith(b"data: [DONE]\n\n")
            await answer.aclose()
            names = await served.story("probe")
            assert [name for name in names if name in (*ENDS, "circuit_closed")] == [
                "circuit_closed",
                "model_succeeded",
            ]


async def open_stream(http: Any, headers: dict[str, str]) -> tuple[Any, AsyncIterator[bytes]]:
    request = http.build_request("POST", "/v1/chat/completions", json=STREAMED, headers=headers)
    answer = await http.send(request, stream=True)
    return answer, answer.aiter_bytes()
