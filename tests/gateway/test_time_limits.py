"""Time limits of calls: streams, silence, first byte, keep-alives, and a slow store."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from faulty_upstream import STREAM, Act, Asked, FaultyUpstream, chunk, faulty_upstream, head, pieces_of
from overnight.gateway.call import streaming
from overnight.ledger import Ledger
from overnight.store import Store, open_store
from serving import Served, serving

ENDS = ("model_succeeded", "model_failed", "model_lost")
PRICES = "{input_usd_per_mtok: 1, output_usd_per_mtok: 2}"


def routing(upstream: FaultyUpstream, deadlines: str, more: str = "") -> str:
    return f"""
default_model: m
retries: {{max_attempts: 1, backoff_ms: 1}}
deadlines: {{{deadlines}}}
providers: {{house: {{base_url: '{upstream.base_url}', models: [m]}}}}
prices: {{m: {PRICES}}}
{more}"""


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with open_store(str(tmp_path / "ledger.db")) as opened:
        yield opened


@asynccontextmanager
async def house(store: Store, act: Act, deadlines: str, more: str = "") -> AsyncIterator[tuple[Served, FaultyUpstream]]:
    async with (
        faulty_upstream({"m": act}) as upstream,
        serving(store, upstream, routing(upstream, deadlines, more)) as served,
    ):  # type: ignore[arg-type]
        yield served, upstream


def paced(pause_s: float, between: bytes = b"", repeat: int = 1) -> Act:
    """The good stream, a pause before each piece, with `between` sent after each pause."""

    async def act(asked: Asked, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        first, *rest = pieces_of(asked)
        for piece in [first] * repeat + rest:
            await asyncio.sleep(pause_s)
            writer.write((chunk(between) if between else b"") + chunk(piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    return act


async def ends_of(store: Store) -> dict[str, list[Any]]:
    """Call id to its ends, of all jobs."""
    ledger, found = Ledger(store), dict[str, list[Any]]()
    for job in await ledger.jobs(most=100):
        for event in await ledger.events(job.job_id):
            facts = event.facts
            if facts.event == "model_called":
                found.setdefault(facts.call_id or "", [])
            elif facts.event in ENDS:
                found[facts.call_id or ""].append(facts)
    return found


async def streamed(served: Served, **more: Any) -> tuple[int, str]:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True, **more}
    answer = await served.http.post("/v1/chat/completions", json=body, headers={"x-job-id": "s"})
    return answer.status_code, answer.text


async def test_a_stream_longer_than_its_deadline_is_settled_once(store: Store) -> None:
    async with house(store, paced(0.15, repeat=8), "default_ms: 500") as (served, _):
        status, text = await streamed(served)
        assert (status, text.count("[DONE]")) == (200, 1)
        [[end]] = (await ends_of(store)).values()
        assert end.event == "model_succeeded"
        assert (end.cost_microusd or 0) + (end.bound_microusd or 0) > 0


async def test_live_call_is_never_settled_as_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overnight.gateway.housekeeping.SWEEP_EVERY_S", 0.05)
    monkeypatch.setattr("overnight.gateway.orphaned_calls.UNSERVED_EVERY", 1)
    limit = "rate_limits: [{scope: target, concurrency: 1}]"
    async with house(store, paced(0.2, repeat=6), "default_ms: 400, queue_ms: 100", limit) as (served, _):
        task = asyncio.create_task(streamed(served))
        await served.until("s", "model_called")
        await asyncio.sleep(0.9)
        assert (await served.ask(model="m")).status_code == 429  # its place is still its own
        assert (await task)[0] == 200
        assert Counter(len(ends) for ends in (await ends_of(store)).values()) == {1: 1}


@pytest.mark.parametrize("sign", [b": PROCESSING\n\n", b"\n\n"])
async def test_comments_and_blank_lines_reset_the_silence_limit(store: Store, sign: bytes) -> None:
    async def act(asked: Asked, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        for _ in range(8):
            await asyncio.sleep(0.1)
            writer.write(chunk(sign))
            await writer.drain()
        writer.write(b"".join(chunk(piece) for piece in pieces_of(asked)) + b"0\r\n\r\n")

    async with house(store, act, "first_byte_ms: 400, silence_ms: 400") as (served, _):
        assert (await streamed(served))[0] == 200


async def hangs(_: Asked, reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    await reader.read()


async def begins_and_hangs(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM + chunk(pieces_of(asked)[0]))
    await reader.read()


@pytest.mark.parametrize(
    ("act", "deadlines", "status"),
    [
        (hangs, "first_byte_ms: 200", 504),
        (begins_and_hangs, "silence_ms: 200", 200),
        (paced(0.05, repeat=100), "total_ms: 500", 200),
        (paced(0.05, b": hm\n\n", repeat=100), "total_ms: 500, default_ms: 400", 200),
    ],
    ids=["no first byte", "silence", "total", "total after a shorter deadline"],
)
async def test_a_stream_that_passes_a_limit_fails_with_timeout(
    store: Store, act: Act, deadlines: str, status: int
) -> None:
    async with house(store, act, deadlines) as (served, _):
        async with asyncio.timeout(5):
            found, text = await streamed(served)
        assert found == status
        assert "error" in text
        [[end]] = (await ends_of(store)).values()
        assert (end.event, end.error.error_class) == ("model_failed", "timeout")


async def test_stream_closed_at_the_total_books_received_text(store: Store) -> None:
    """It runs past its deadline as long as chunks come, and not past `total_ms`."""
    more = "breakers: {failures: 1, cool_down_ms: 60000}"
    limits = "total_ms: 900, default_ms: 300, silence_ms: 300"
    async with house(store, paced(0.1, repeat=100), limits, more) as (served, _):
        for _ in range(2):
            status, text = await streamed(served)
            last = json.loads(text.split("data: ")[-1])
            assert (status, last["error"]["code"]) == (200, "total_timeout")
            assert "deadlines.total_ms" in last["error"]["message"]
            assert text.count("chat.completion.chunk") >= 4
        ends = [end for each in (await ends_of(store)).values() for end in each]
        assert [end.event for end in ends] == ["model_failed", "model_failed"]  # the circuit is closed: both were sent
        for end in ends:
            assert (end.error.code, end.error.error_class) == ("total_timeout", "timeout")
            assert (end.cost_microusd or 0) > 0
            assert (end.bound_microusd or 0) > 0
            assert end.output_tokens > 0
        assert "circuit_opened" not in await served.story("s")


async def test_blank_lines_before_a_plain_answer_are_no_timeout(store: Store) -> None:
    async def act(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from faulty_upstream import WHOLE

        writer.write(head(200, "application/json", "transfer-encoding: chunked"))
        for _ in range(6):
            await asyncio.sleep(0.1)
            writer.write(chunk(b"\n"))
            await writer.drain()
        writer.write(chunk(json.dumps(WHOLE[asked.form]).encode()) + b"0\r\n\r\n")

    async with house(store, act, "first_byte_ms: 100, silence_ms: 100, total_ms: 5000") as (served, _):
        assert (await served.ask(model="m")).status_code == 200


# ── signs of life to the client ─────────────────────────────────────────────────────────────────────────────────────


def fails_late(status: int) -> Act:
    async def act(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)
        body = b'{"error":{"message":"no such thing","type":"invalid_request_error"}}'
        writer.write(head(status, "application/json", f"content-length: {len(body)}") + body)

    return act


async def test_silent_stream_sends_keep_alive_comments(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.15)
    async with house(store, paced(0.4), "total_ms: 20000") as (served, _):
        chunks = [piece.choices[0].delta.content async for piece in await served.openai.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], stream=True
        ) if piece.choices]  # fmt: skip
        assert "".join(filter(None, chunks)) == "one two three"
        status, text = await streamed(served)
        assert (status, text.startswith(": keep-alive")) == (200, True)
        assert text.count(": keep-alive") >= 3
        assert text.count("[DONE]") == 1


async def test_a_failure_after_a_comment_is_an_event_of_the_stream(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.15)
    async with house(store, fails_late(400), "total_ms: 20000") as (served, _):
        status, text = await streamed(served)
        assert (status, text.count("no such thing")) == (200, 1)
        assert "data: {" in text
        [[end]] = (await ends_of(store)).values()
        assert end.event == "model_failed"


async def test_a_queued_stream_gets_no_comment_and_keeps_its_status(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.15)
    limit = "rate_limits: [{scope: target, concurrency: 1}]"
    async with house(store, paced(0.4), "total_ms: 20000, queue_ms: 500", limit) as (served, _):
        first = asyncio.create_task(streamed(served))
        await served.until("s", "model_called")
        assert (await streamed(served))[0] == 429
        assert (await first)[0] == 200


# ── our own queue is not the provider's time ────────────────────────────────────────────────────────────────────────


def slow(seconds: float) -> Act:
    async def act(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from faulty_upstream import answers

        await asyncio.sleep(seconds)
        await answers(asked, reader, writer)

    return act


async def test_queue_time_does_not_shorten_an_attempt(store: Store) -> None:
    limit = "rate_limits: [{scope: target, concurrency: 1}]"
    async with house(store, slow(0.4), "total_ms: 700, queue_ms: 10000", limit) as (served, upstream):
        answers = await asyncio.gather(*(served.ask(model="m", headers={"x-job-id": f"j{n}"}) for n in range(5)))
        assert [answer.status_code for answer in answers] == [200] * 5
        assert sum(upstream.asked.values()) == 5


async def test_failed_attempt_is_settled_before_its_backoff(store: Store) -> None:
    tried: list[str] = []

    async def act(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from faulty_upstream import answers

        tried.append(asked.body["messages"][0]["content"])
        if tried == ["a"]:
            await asyncio.sleep(0.3)
            body = b'{"error":{"message":"busy","type":"server_error"}}'
            writer.write(head(503, "application/json", f"content-length: {len(body)}") + body)
        else:
            await answers(asked, reader, writer)

    more = "rate_limits: [{scope: target, concurrency: 1}]"
    async with faulty_upstream({"m": act}) as upstream:
        text = routing(upstream, "total_ms: 5000, queue_ms: 5000", more).replace("max_attempts: 1", "max_attempts: 2")
        async with serving(store, upstream, text) as served:  # type: ignore[arg-type]
            first = asyncio.create_task(served.ask("a", model="m", headers={"x-job-id": "a"}))
            await served.until("a", "model_called")
            second = await served.ask("b", model="m", headers={"x-job-id": "b"})
            assert (second.status_code, (await first).status_code) == (200, 200)
            ends = [end for each in (await ends_of(store)).values() for end in each]
            assert Counter(end.event for end in ends) == {"model_succeeded": 2, "model_failed": 1}
            assert sum(end.cost_microusd or 0 for end in ends) == 2 * (5 + 6)


async def test_queued_call_of_a_disconnected_client_is_free(store: Store) -> None:
    limit = "rate_limits: [{scope: target, concurrency: 1}]"
    async with house(store, slow(0.5), "total_ms: 5000, queue_ms: 5000", limit) as (served, upstream):
        first = asyncio.create_task(served.ask(model="m", headers={"x-job-id": "first"}))
        await served.until("first", "model_called")
        gone = asyncio.create_task(served.ask(model="m", headers={"x-job-id": "gone"}))
        await asyncio.sleep(0.1)
        gone.cancel()
        assert (await first).status_code == 200
        assert (await served.ask(model="m")).status_code == 200
        assert sum(upstream.asked.values()) == 2


# ── processes that die ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_remote_owner_without_heartbeat_is_dead(store: Store) -> None:
    from overnight.gateway.orphaned_calls import OrphanWatch

    now, beat, own = [100.0], [1], [1]

    class Rows:
        async def read(self, *_: Any) -> list[tuple[Any, ...]]:
            return [("far", "elsewhere", 1, beat[0]), ("me", "here", 2, own[0])]

    watch = OrphanWatch(Rows(), "me", lambda: now[0])  # type: ignore[arg-type]

    async def seconds(count: int, *, beats: bool = False, writes: bool = True, every: float = 1.0) -> list[str]:
        dead: list[str] = []
        for _ in range(count):
            now[0] += every
            beat[0] += beats
            own[0] += writes and now[0] % 5 < every
            dead = [each.owner for each in await watch.dead_owners()]
        return dead

    assert await seconds(40, beats=True) == []
    assert await seconds(14) == []
    now[0] += 60  # the watch itself was asleep: it saw nobody being silent
    assert await seconds(14) == []
    assert await seconds(6) == ["far"]
    assert await seconds(10, beats=True) == []
    assert await seconds(60, writes=False) == []  # nobody can write, this process neither: reads tell nothing
    assert await seconds(14) == []
    assert await seconds(6) == ["far"]
    assert await seconds(10, beats=True) == []
    assert await seconds(8, every=4.0) == ["far"]  # reads that are slow all the time find it too
