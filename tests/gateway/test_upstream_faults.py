"""Faulty providers: the client receives an answer or an error, and every call has one end."""

import asyncio
import gzip
import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from faulty_upstream import (
    STREAM,
    TEXT,
    WHOLE,
    Act,
    Asked,
    FaultyUpstream,
    HangUp,
    answers,
    breaks_off,
    chunk,
    closes,
    faulty_upstream,
    head,
    pieces_of,
    refuses,
    resets,
    says,
    stalls,
    trickles,
)
from overnight.ledger import Ledger
from overnight.store import Store, open_store
from serving import Served, gateway_process, serving

CALLED, ENDS = "model_called", ("model_succeeded", "model_failed", "model_lost")
HELLO = [{"role": "user", "content": "hello"}]


def routing(upstream: FaultyUpstream, more: str = "", **models: str) -> str:
    prices = "{input_usd_per_mtok: 1, output_usd_per_mtok: 1}"
    return f"""
default_model: m
retries: {{max_attempts: 1, backoff_ms: 1}}
breakers: {{failures: 0}}
deadlines: {{default_ms: 20000}}
providers: {{house: {{base_url: '{upstream.base_url}', models: [m, spare]}}}}
prices: {{m: {prices}, spare: {prices}}}
{more}"""


@asynccontextmanager
async def house(store: Store, act: Act | list[Act], more: str = "") -> AsyncIterator[tuple[Served, FaultyUpstream]]:
    async with faulty_upstream({"m": act}) as upstream, serving(store, upstream, routing(upstream, more)) as served:  # type: ignore[arg-type]
        yield served, upstream


async def jobs_of(store: Store) -> list[Any]:
    return await Ledger(store).jobs(most=1000)


async def all_events(store: Store) -> list[Any]:
    ledger = Ledger(store)
    return [event for job in await jobs_of(store) for event in await ledger.events(job.job_id)]


async def open_ends(store: Store) -> tuple[Counter[str], int, int]:
    """All events of all jobs by name, how many calls have not exactly one end, and what all ends cost at most."""
    ledger, names, odd, cost = Ledger(store), Counter[str](), 0, 0
    for job in await jobs_of(store):
        called, ended = Counter[str](), Counter[str]()
        for event in await ledger.events(job.job_id):
            facts = event.facts
            names[facts.event] += 1
            if facts.event == CALLED:
                called[facts.call_id or ""] += 1
            elif facts.event in ENDS:
                ended[facts.call_id or ""] += 1
                cost += (facts.cost_microusd or 0) + (facts.bound_microusd or 0)
        odd += sum(1 for call in called.keys() | ended.keys() if (called[call], ended[call]) != (1, 1))
    return names, odd, cost


async def budgets(store: Store) -> tuple[int, int]:
    """What all jobs have reserved, and spent at most."""
    from overnight.budgets import BUDGET

    columns = "sum(reserved_microusd), sum(spent_microusd + bound_microusd)"
    assert BUDGET.rank
    if store.dialect == "postgres":
        import psycopg

        with psycopg.connect(store._database._url) as connection:  # type: ignore[attr-defined]
            row = connection.execute(f"SELECT {columns} FROM budget WHERE scope = 'job'").fetchone()
    else:
        import apsw

        row = (
            apsw.Connection(str(store._database.path))
            .execute(  # type: ignore[attr-defined]
                f"SELECT {columns} FROM budget WHERE scope = 'job'"
            )
            .fetchone()
        )
    assert row is not None
    return int(row[0] or 0), int(row[1] or 0)


# ── odd answers ─────────────────────────────────────────────────────────────────────────────────────────────────────

GOOD = json.dumps(WHOLE["chat"]).encode()


def plain(body: bytes, *headers: str, length: int | None = None) -> bytes:
    return head(200, "application/json", f"content-length: {len(body) if length is None else length}", *headers) + body


async def streams_without_an_end_mark(asked: Asked, _reader: Any, writer: Any) -> None:
    pieces = [piece for piece in pieces_of(asked) if b"[DONE]" not in piece]
    writer.write(STREAM + b"".join(chunk(piece) for piece in pieces) + b"0\r\n\r\n")


async def streams_in_odd_form(asked: Asked, _reader: Any, writer: Any) -> None:
    """Comments, CRLF, a mark at the beginning, several data lines, pieces cut anywhere."""
    text = b"\xef\xbb\xbf: a comment\r\n\r\n" + b"".join(pieces_of(asked)).replace(b"\n", b"\r\n").replace(
        b"data: ", b"data:"
    )
    parts = [text[at : at + 7] for at in range(0, len(text), 7)]
    writer.write(STREAM + b"".join(chunk(part) for part in parts) + b"0\r\n\r\n")


# plain answers: what the provider sends → the class, None: it is an answer
PLAIN: dict[str, tuple[Act, str | None]] = {
    "an answer": (answers, None),
    "an answer, byte by byte": (trickles(0, 1), None),
    "an answer that ends with the connection": (says(head(200, "application/json") + GOOD), None),
    "an answer of another content type": (says(head(200, "text/html", f"content-length: {len(GOOD)}") + GOOD), None),
    "an answer after early hints": (says(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + plain(GOOD)), None),
    "a length too long": (says(plain(GOOD, length=len(GOOD) + 9)), "cut"),
    "a length too short": (says(plain(GOOD, length=len(GOOD) - 9)), "malformed"),
    "half a JSON": (says(plain(GOOD[: len(GOOD) // 2])), "malformed"),
    "no body": (says(plain(b"")), "malformed"),
    "a page": (says(plain(b"<html>hello</html>")), "malformed"),
    "no choices": (says(plain(b'{"choices": []}')), "malformed"),
    "a choice of another kind": (says(plain(b'{"choices": [7]}')), "malformed"),
    "choices of another kind": (says(plain(b'{"choices": 7}')), "malformed"),
    "a list": (says(plain(b"[]")), "malformed"),
    "deep nesting": (says(plain(b'{"choices": ' + b"[" * 100_000)), "malformed"),
    "not UTF-8": (says(plain(b'{"choices": ["\xff"]}')), "malformed"),
    "an error with a 200": (says(plain(b'{"error": {"message": "oops", "code": 502}}')), "server_error"),
    "an overload with a 200": (says(plain(b'{"error": {"type": "overloaded_error"}}')), "overloaded"),
    "a limit with a 200": (says(plain(b'{"error": {"code": 429, "message": "slow"}}')), "rate_limited"),
    "a redirect": (says(head(302, "text/plain", "location: http://elsewhere/", "content-length: 0")), "malformed"),
    "no content": (says(b"HTTP/1.1 204 No Content\r\n\r\n"), "malformed"),
    "huge headers": (says(head(200, "application/json", *(f"x-{n}: {'y' * 1000}" for n in range(80)))), "malformed"),
    "endless headers": (says(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000), "malformed"),
    "no HTTP": (says(b"SSH-2.0-OpenSSH_9\r\n\r\n"), "malformed"),
    "compressed": (says(plain(gzip.compress(GOOD), "content-encoding: gzip")), None),
    "compressed in name only": (says(plain(GOOD, "content-encoding: gzip")), None),
    "a character set as the encoding": (says(plain(GOOD, "content-encoding: utf-8")), None),
    "half a gzip": (says(plain(gzip.compress(GOOD)[:40], "content-encoding: gzip")), "cut"),
    "broken gzip": (says(plain(b"\x1f\x8b\x07\x00", "content-encoding: gzip")), "malformed"),
    "two lengths": (says(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok"), "malformed"),
    "nothing, closed": (closes, "lost"),
    "nothing, reset": (resets, "lost"),
    "half a head": (says(b"HTTP/1.1 200 OK\r\ncontent-ty"), "lost"),
    "half a body": (breaks_off(0.5), "cut"),
    "a stall": (stalls, "timeout"),
    "a stall in the head": (says(b"HTTP/1.1 200 OK\r\n", then_waits=True), "timeout"),
    "a stall in the body": (says(plain(GOOD, length=len(GOOD) + 1), then_waits=True), "timeout"),
    "too slow a trickle": (trickles(0.5, 1), "timeout"),
    "busy": (refuses(503, "server_error"), "overloaded"),
    "a refusal that is no JSON": (says(head(500, "text/html", "content-length: 5") + b"<h1>!"), "server_error"),
}


def event(piece: dict[str, Any]) -> bytes:
    return chunk(b"data: " + json.dumps(piece).encode() + b"\n\n")


FIRST = {"id": "x", "model": "m", "choices": [{"index": 0, "delta": {"content": "one "}, "finish_reason": None}]}


def first_then(raw: bytes) -> Act:
    """The first piece, and when the client has that, this."""

    async def act(_asked: Asked, _reader: Any, writer: Any) -> None:
        writer.write(STREAM + event(FIRST))
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(raw)
        await writer.drain()
        raise HangUp

    return act


# streamed answers; the class of what goes wrong, and whether the client has had a part by then
STREAMED: dict[str, tuple[Act, str | None, bool]] = {
    "an answer": (answers, None, False),
    "an answer, byte by byte": (trickles(0, 1), None, False),
    "an answer without an end mark": (streams_without_an_end_mark, None, False),
    "an answer in odd form": (streams_in_odd_form, None, False),
    "a whole answer instead": (says(plain(GOOD)), None, False),
    "an end before the first piece": (says(STREAM + b"0\r\n\r\n"), "cut", False),
    "a break before the first piece": (says(STREAM), "cut", False),
    "a break in a piece": (says(STREAM + event(FIRST) + b"40\r\ndata: {"), "cut", True),
    "a break after pieces": (breaks_off(0.5), "cut", True),
    "a stall before the first piece": (says(STREAM, then_waits=True), "timeout", False),
    "a stall after the first": (says(STREAM + event(FIRST), then_waits=True), "timeout", True),
    "comments and nothing else": (says(STREAM + chunk(b": ping\n\n"), then_waits=True), "timeout", False),
    "a first piece that is no JSON": (says(STREAM + chunk(b"data: {nope\n\n") + b"0\r\n\r\n"), "malformed", False),
    "a later piece that is no JSON": (
        first_then(chunk(b"data: {nope\n\n") + b"0\r\n\r\n"),
        "malformed",
        True,
    ),
    "a piece that is a list": (first_then(chunk(b"data: []\n\n") + b"0\r\n\r\n"), "malformed", True),
    "a piece of another kind": (
        first_then(event({"choices": [7]}) + b"0\r\n\r\n"),
        "malformed",
        True,
    ),
    "chunks that are none": (first_then(b"zz\r\n"), "malformed", True),
    "an error first": (
        says(STREAM + event({"error": {"code": 503, "message": "busy"}}) + b"0\r\n\r\n"),
        "overloaded",
        False,
    ),
    "an error later": (
        first_then(event({"error": {"message": "oops"}}) + b"0\r\n\r\n"),
        "malformed",
        True,
    ),
    "an error as a body": (says(plain(b'{"error": {"code": 502, "message": "oops"}}')), "server_error", False),
    "nothing, closed": (closes, "lost", False),
    "nothing, reset": (resets, "lost", False),
    "a stall": (stalls, "timeout", False),
    "busy": (refuses(503, "server_error"), "overloaded", False),
}


# What the provider cannot have served is not booked.
UNBILLED = {
    "an overload with a 200", "a limit with a 200", "a redirect", "no content", "no HTTP", "busy",
    "a refusal that is no JSON", "an error first",
}  # fmt: skip
# The provider ended these itself: the prompt and what came are booked.
REPORTED = {"an error with a 200", "an error as a body", "an error later"}


async def checked(served: Served, upstream: FaultyUpstream, name: str, error_class: str | None) -> None:
    """One call, one end, and booked what it may have cost."""
    names, odd, cost = await open_ends(served.store)
    assert (names[CALLED], odd) == (1, 0)
    assert await budgets(served.store) == (0, cost)
    events = await served.events("j")
    end, reserved = events[-1].facts, events[1].facts.detail["reserved_microusd"]
    assert upstream.asked["m"] == 1
    if error_class is None:
        assert (end.event, json.loads(events[-1].content)["choices"][0]["message"]["content"]) == (
            "model_succeeded",
            TEXT,
        )
    else:
        assert (end.event, end.error.error_class) == ("model_failed", error_class)
        if name in REPORTED:
            assert 0 < end.cost_microusd == end.input_tokens + end.output_tokens < reserved, end
        else:
            assert end.cost_microusd + (end.bound_microusd or 0) == (0 if name in UNBILLED else reserved), end


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with open_store(str(tmp_path / "ledger.db")) as opened:
        yield opened


@pytest.mark.parametrize("name", PLAIN)
async def test_odd_plain_answers_are_returned_or_classified(store: Store, name: str) -> None:
    act, error_class = PLAIN[name]
    async with house(store, act, "routes: {hasty: {model: m, deadline_ms: 250}}") as (served, upstream):
        answer = await served.ask(model="hasty" if error_class == "timeout" else "m", headers={"x-job-id": "j"})
        if error_class is None:
            assert (answer.status_code, answer.json()["choices"][0]["message"]["content"]) == (200, TEXT)
        else:
            assert answer.status_code in (429, 502, 503, 504)
            assert error_class in answer.json()["error"]["message"]
        await checked(served, upstream, name, error_class)


@pytest.mark.parametrize("name", STREAMED)
async def test_odd_streamed_answers_are_returned_or_classified(store: Store, name: str) -> None:
    act, error_class, had_a_part = STREAMED[name]
    async with house(store, act, "routes: {hasty: {model: m, deadline_ms: 250}}") as (served, upstream):
        model = "hasty" if error_class == "timeout" else "m"
        answer = await served.ask(model=model, stream=True, headers={"x-job-id": "j"})
        assert (answer.status_code == 200) == (error_class is None or had_a_part)
        if error_class is None:
            pieces = [json.loads(line[5:]) for line in answer.text.split("\n") if line.startswith("data: {")]
            assert "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces) == TEXT
            assert answer.text.endswith("data: [DONE]\n\n")
        else:
            last = answer.text.rpartition("data: ")[2] if had_a_part else answer.text
            assert error_class in json.loads(last)["error"]["message"]
            assert "[DONE]" not in answer.text
        await checked(served, upstream, name, error_class)


async def test_stalled_provider_blocks_no_other_connections(store: Store) -> None:
    acts: list[Act] = [stalls] * 5 + [answers]
    async with house(store, acts, "routes: {hasty: {model: m, deadline_ms: 300}}") as (served, upstream):
        stalled = [asyncio.create_task(served.ask(model="hasty")) for _ in range(5)]
        while upstream.asked["m"] < 5:
            await asyncio.sleep(0.005)
        good = await asyncio.gather(*(served.ask(model="m") for _ in range(100)))
        assert {answer.status_code for answer in good} == {200}
        assert {(await task).status_code for task in stalled} == {504}
        _, odd, cost = await open_ends(store)
        assert odd == 0
        assert await budgets(store) == (0, cost)


# ── a provider that goes away, a gateway that is killed ─────────────────────────────────────────────────────────────


async def some_work(_asked: Asked, _reader: Any, writer: Any) -> None:
    await asyncio.sleep(0.01)
    await answers(_asked, _reader, writer)


async def test_provider_outage_under_load_loses_no_call(store: Store) -> None:
    more = """
routes: {r: {model: m, when_all_open: wait}}
""".strip()
    async with faulty_upstream({"m": some_work}) as upstream:
        text = routing(upstream, more).replace(
            "breakers: {failures: 0}",
            "breakers: {failures: 5, window_ms: 5000, cool_down_ms: 200, max_cool_down_ms: 400}",
        )
        text = text.replace("max_attempts: 1, backoff_ms: 1", "max_attempts: 4, backoff_ms: 20")
        async with serving(store, upstream, text) as served:  # type: ignore[arg-type]
            statuses: Counter[int] = Counter()
            stop = asyncio.Event()

            async def client(number: int) -> None:
                while not stop.is_set():
                    streamed = number % 3 == 0
                    answer = await served.ask(model="r", stream=streamed, headers={"x-job-id": f"job-{number % 7}"})
                    statuses[answer.status_code] += 1
                    if answer.status_code == 200:
                        whole = "[DONE]" in answer.text if streamed else TEXT in answer.text
                        assert whole or '"error"' in answer.text

            clients = [asyncio.create_task(client(number)) for number in range(30)]
            await asyncio.sleep(0.5)
            await upstream.down()
            asked_before = upstream.asked["m"]
            await asyncio.sleep(1.0)
            assert upstream.asked["m"] == asked_before
            failed_while_down = (await open_ends(store))[0]["model_failed"]
            await upstream.up()
            ok_before = statuses[200]
            async with asyncio.timeout(20):
                while statuses[200] < ok_before + 100:
                    await asyncio.sleep(0.05)
            stop.set()
            await asyncio.gather(*clients)
            names, odd, cost = await open_ends(store)
            assert odd == 0
            assert await budgets(store) == (0, cost)
            assert names["circuit_opened"] >= 1
            assert names["circuit_closed"] >= 1
            # Without a circuit, thirty clients would have been refused some thousand times.
            assert failed_while_down < 200
            errors = [
                each.facts.error.error_class for each in await all_events(store) if each.facts.event == "model_failed"
            ]
            sent = sum(errors.count(name) for name in ("lost", "cut", "timeout"))
            assert names["model_succeeded"] <= upstream.asked["m"] <= names["model_succeeded"] + sent
            assert set(statuses) <= {200, 502, 503, 504}


async def test_fallback_hides_a_provider_outage(store: Store) -> None:
    async with faulty_upstream({"m": some_work}) as upstream, faulty_upstream({"spare": some_work}) as other:
        text = routing(upstream, "routes: {r: {model: m, fallbacks: [spare]}}").replace("[m, spare]", "[m]")
        text = text.replace("providers: {", f"providers: {{other: {{base_url: '{other.base_url}', models: [spare]}}, ")
        text = text.replace("failures: 0", "failures: 5, cool_down_ms: 300, max_cool_down_ms: 300")
        async with serving(store, upstream, text) as served:  # type: ignore[arg-type]
            statuses: Counter[int] = Counter()

            async def client(number: int) -> None:
                for _ in range(15):
                    statuses[(await served.ask(model="r", headers={"x-job-id": f"job-{number}"})).status_code] += 1

            async def outage() -> None:
                await asyncio.sleep(0.1)
                await upstream.down()
                await asyncio.sleep(0.5)
                await upstream.up()

            await asyncio.gather(outage(), *(client(number) for number in range(20)))
            assert statuses == {200: 300}
            _, odd, cost = await open_ends(store)
            assert odd == 0
            assert await budgets(store) == (0, cost)


async def test_possible_bill_never_exceeds_the_budget(store: Store) -> None:
    """It is paid for every token it was allowed, and breaks off: nobody knows, so the budget must have covered all of it."""
    limit_usd = 0.02
    async with house(store, breaks_off(0.5), f"budgets: {{max_cost_per_job_usd: {limit_usd}}}") as (served, upstream):
        answers_got = await asyncio.gather(
            *(served.ask("x" * 100, max_tokens=1000, headers={"x-job-id": "spender"}) for _ in range(60))
        )
        assert {answer.status_code for answer in answers_got} == {402, 502}
        billed = sum(len(json.dumps(body["messages"])) + body["max_tokens"] for body in upstream.bodies)
        _, odd, cost = await open_ends(store)
        assert odd == 0
        assert billed <= cost <= limit_usd * 1_000_000
        assert await budgets(store) == (0, cost)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("dialect", ["sqlite", "postgres"])
async def test_killed_gateway_under_load_loses_no_call(
    dialect: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path / "fleet.db") if dialect == "sqlite" else request.getfixturevalue("postgres_url")
    async with faulty_upstream({"m": some_work}) as upstream:
        with ExitStack() as stack:
            text = routing(upstream, "budgets: {max_cost_per_job_usd: 5}")
            fleet = [stack.enter_context(gateway_process(url, upstream, tmp_path, text)) for _ in range(2)]  # type: ignore[arg-type]
            acknowledged: Counter[str] = Counter()
            broken = 0

            async def client(number: int, http: httpx2.AsyncClient) -> None:
                nonlocal broken
                at = number % 2
                for turn in range(40):
                    body = {"model": "m", "messages": [{"role": "user", "content": f"{number} {turn}"}]}
                    headers = {"x-job-id": f"job-{number}"}
                    for gateway in (fleet[at], fleet[1 - at]):
                        try:
                            answer = await http.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers)
                        except httpx2.HTTPError:
                            broken += 1
                            at = 1 - at
                            continue
                        assert answer.status_code == 200, answer.text
                        acknowledged[answer.headers["x-overnight-call-id"]] += 1
                        break

            async with httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=60)) as http:
                clients = [asyncio.create_task(client(number, http)) for number in range(24)]
                while sum(acknowledged.values()) < 150:
                    await asyncio.sleep(0.01)
                os.kill(fleet[0].process.pid, 9)
                await asyncio.gather(*clients)
            assert broken >= 1
            assert sum(acknowledged.values()) == 24 * 40
        with open_store(url) as store:
            async with AsyncExitStack() as stack:
                served = await stack.enter_async_context(serving(store, upstream, routing(upstream)))  # type: ignore[arg-type]
                await served.gateway.settle_owner(fleet[0].owner)
            names, odd, cost = await open_ends(store)
            assert odd == 0
            assert await budgets(store) == (0, cost)
            succeeded = {
                each.facts.call_id for each in await all_events(store) if each.facts.event == "model_succeeded"
            }
            assert set(acknowledged) <= succeeded
            assert names["model_succeeded"] <= upstream.asked["m"] <= names["model_succeeded"] + names["model_lost"]
