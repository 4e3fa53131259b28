"""One served gateway for all quirks, in front of an upstream that sends the bytes of the rows."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

import msgspec

from overnight.domain import Recorded
from overnight.domain.json_text import decode_json
from overnight.store import open_store
from quirk_clients import PATHS, Answer, Got, read_answer, request_of
from quirk_rows import DONE, ROLE, Json, Quirk, Reply, body, chunk, completion, contains, sse, usage_chunk
from serving import Served, serving

ROUTING = """
default_model: chat
retries: {{max_attempts: 2, backoff_ms: 1}}
breakers: {{failures: 0}}
providers:
  chat: {{base_url: '{url}', models: ["chat*"], apis: [chat]}}
  messages: {{base_url: '{url}', models: ["messages*"], apis: [messages], kind: anthropic}}
  responses: {{base_url: '{url}', models: ["responses*"], apis: [responses]}}
  spare: {{base_url: '{url}', models: [spare], apis: [chat]}}
fallbacks: [{{from: chat, to: spare}}, {{from: messages, to: spare}}, {{from: responses, to: spare}}]
prices:
  chat*: &price {{input_usd_per_mtok: 1, output_usd_per_mtok: 2}}
  messages*: *price
  responses*: *price
  spare: *price
"""
SPARE = "from the spare"
_CASE = re.compile(rb"case-(\d+)\b").search
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE).search
Split = Callable[[bytes], Sequence[bytes]]


class Asked(NamedTuple):
    """One request that the upstream got."""

    model: str
    body: Json


class QuirkUpstream:
    """Answers the n-th request of a case with the n-th reply of its row, and the model `spare` with a good answer."""

    def __init__(self) -> None:
        self.plans: dict[int, tuple[Sequence[Reply], Split | None]] = {}
        self.asked: dict[int, list[Asked]] = {}
        self._server: asyncio.Server | None = None
        self.base_url = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            is_kept = True
            while is_kept:
                head = await reader.readuntil(b"\r\n\r\n")
                length = _LENGTH(head)
                raw = await reader.readexactly(int(length[1]) if length else 0)
                is_kept = await self._answer(raw, writer)
        with suppress(ConnectionError):
            writer.close()

    async def _answer(self, raw: bytes, writer: asyncio.StreamWriter) -> bool:
        """Send the reply. Returns whether the connection stays open."""
        case = _CASE(raw)
        number = int(case[1]) if case else 0
        asked = msgspec.json.decode(raw)
        replies, split = self.plans[number]
        seen = self.asked.setdefault(number, [])
        reply = replies[min(len(seen), len(replies) - 1)]
        seen.append(Asked(asked["model"], asked))
        if asked["model"] == "spare":
            reply = _spare_reply(streamed=bool(asked.get("stream")))
        head = [f"HTTP/1.1 {reply.status} X", f"content-length: {len(reply.body) + reply.cut}"]
        head += [f"content-type: {reply.label}"] if reply.label else []
        head += [f"{name}: {value}" for name, value in reply.headers.items()]
        sent = "\r\n".join([*head, "", ""]).encode() + reply.body
        for piece in [sent] if split is None else split(sent):
            writer.write(piece)
            if split is not None:  # the gateway, which shares the loop, reads what was written
                for _ in range(3):
                    await asyncio.sleep(0)
        await writer.drain()
        return not reply.cut


def _spare_reply(*, streamed: bool) -> Reply:
    return sse(ROLE, chunk(SPARE), chunk(finish="stop"), usage_chunk(), DONE) if streamed else body(completion(SPARE))


class Outcome(NamedTuple):
    """What came of one case: what the client got, what the log says, and what was asked upstream."""

    got: Got
    answer: Answer
    events: list[Recorded]
    asked: list[Asked]

    @property
    def end(self) -> Recorded:
        return next(each for each in reversed(self.events) if each.facts.event in ("model_succeeded", "model_failed"))

    def story(self) -> list[str]:
        return [each.facts.event for each in self.events if each.facts.event.startswith("model_")]

    def facts(self) -> Json:
        """What does not depend on how the bytes arrived: the client's answer, the log, and the booked amounts."""
        booked = [
            (each.facts.event, each.facts.input_tokens, each.facts.output_tokens, each.facts.cost_microusd,
             each.facts.bound_microusd, each.facts.error and each.facts.error.code)
            for each in self.events
            if each.facts.event.startswith("model_")
        ]  # fmt: skip
        ids = len(set(self.got.call_ids))  # ids that the gateway makes depend on the call
        return {**self.got.meaning(), "call_ids": ids, "faults": self.got.faults, "booked": booked}


class QuirkGateway:
    """Runs rows. `run` makes the call of a case; `check` compares all that came of it with the row."""

    def __init__(self, served: Served, upstream: QuirkUpstream) -> None:
        self.served, self.upstream = served, upstream
        self._numbers = count(100_000)  # of one length, since estimates depend on the length of prompts

    async def run(self, quirk: Quirk, client: str, mode: str, split: Split | None = None) -> tuple[int, Outcome]:
        number = next(self._numbers)
        self.upstream.plans[number] = (quirk.replies(mode), split)
        answer = await self._ask(quirk, client, mode, number, 1)
        return number, await self._outcome(quirk, client, mode, number, answer)

    async def _ask(self, quirk: Quirk, client: str, mode: str, number: int, attempt: int) -> Answer:
        asked = request_of(client, f"case-{number}", quirk, streamed=mode == "stream")
        headers = {"x-job-id": f"case-{number}", "x-job-attempt": str(attempt)}
        answer = await self.served.http.post(PATHS[client], json=asked, headers=headers)
        return Answer(answer.status_code, answer.headers, answer.content)

    async def _outcome(self, quirk: Quirk, client: str, mode: str, number: int, answer: Answer) -> Outcome:
        valid = quirk.valid and client != quirk.target and answer.status == 200
        got = read_answer(client, mode, answer, valid=valid, asked_usage=quirk.usage_asked)
        events = await self.served.events(f"case-{number}") if answer.status != 400 else []
        return Outcome(got, answer, events, self.upstream.asked.get(number, []))

    async def check(self, quirk: Quirk, client: str, mode: str) -> list[str]:
        """Run a case; what is not as the row says."""
        wanted = quirk.expected(client, mode)
        number, outcome = await self.run(quirk, client, mode)
        found = outcome.got.differs(wanted, client)
        if wanted.error is None or outcome.got.error is None:
            found += outcome.got.faults
        asked = [each.model for each in outcome.asked]
        if asked != list(quirk.asked or (quirk.target,)):
            found.append(f"asked: {asked}")
        if outcome.asked and not contains(outcome.asked[-1].body, quirk.sent):
            found.append(f"sent: {outcome.asked[-1].body}")
        if quirk.distinct and outcome.asked:
            found += _faults_of_turns(outcome.asked[-1].body["messages"])
        if not outcome.events:
            return found
        found += _log_differs(quirk, client, outcome, len(asked), failed=wanted.error is not None)
        if wanted.error is None:
            found += await self._replays(quirk, client, number, outcome)
        return found

    async def _replays(self, quirk: Quirk, client: str, number: int, first: Outcome) -> list[str]:
        """A second attempt of the job is given the recorded answer, at no cost, streamed and whole."""
        found: list[str] = []
        for attempt, mode in enumerate(("stream", "whole"), start=2):
            answer = await self._ask(quirk, client, mode, number, attempt)
            again = await self._outcome(quirk, client, mode, number, answer)
            if answer.headers.get("x-overnight-replayed") != "true" or len(again.asked) != len(first.asked):
                found.append(f"{mode}: not replayed: {answer.status} {answer.raw[:200]!r}")
            elif (gets := again.got.meaning()) != (was := first.got.meaning()):
                found += [
                    f"replayed {mode}: {name} {gets[name]!r}, not {was[name]!r}"
                    for name in was
                    if gets[name] != was[name]
                ]
            found += [f"replayed {mode}: {fault}" for fault in again.got.faults]
        return found


def _faults_of_turns(turns: list[Json]) -> list[str]:
    """What Anthropic would refuse in a conversation with tools."""
    found, seen = list[str](), list[str]()
    for turn, after in zip(turns, [*turns[1:], {"content": []}], strict=True):
        blocks = turn["content"] if isinstance(turn["content"], list) else []
        calls = [each["id"] for each in blocks if each["type"] == "tool_use"]
        then = after["content"] if isinstance(after["content"], list) else []
        results = [each["tool_use_id"] for each in then if each["type"] == "tool_result"]
        if calls and (sorted(results) != sorted(calls) or then[0]["type"] != "tool_result"):
            found.append(f"calls {calls} are followed by results of {results}")
        if turn["role"] == after.get("role"):
            found.append(f"two turns of {turn['role']}")
        seen += calls
    if len(set(seen)) != len(seen) or "" in seen:
        found.append(f"ids {seen}")
    return found


def _log_differs(quirk: Quirk, client: str, outcome: Outcome, attempts: int, *, failed: bool) -> list[str]:
    found: list[str] = []
    ends = ["model_failed"] * (attempts - 1) + ["model_failed" if failed else "model_succeeded"]
    story = [each for end in ends for each in ("model_called", end)]
    if outcome.story() != story:
        found.append(f"log: {outcome.story()}, not {story}")
    failures = [each.facts.error.error_class for each in outcome.events if each.facts.event == "model_failed"]
    if quirk.failures and failures != list(quirk.failures):
        found.append(f"failures: {failures}")
    end = outcome.end
    if not quirk.estimated:
        wanted = quirk.billed or quirk.gets.usage
        booked = (end.facts.input_tokens, end.facts.output_tokens)
        if wanted is not None and (booked != wanted or end.facts.cost_microusd != wanted[0] + 2 * wanted[1]):
            found.append(f"billed: {booked} for {end.facts.cost_microusd}, not {wanted}")
    elif not (end.facts.detail or {}).get("estimated"):
        found.append("billed: not an estimate")
    if bool(end.facts.bound_microusd) != quirk.bound:
        found.append(f"bound: {end.facts.bound_microusd}")
    if end.facts.event == "model_succeeded":
        recorded = decode_json(end.content or b"null")
        for fields in (quirk.recorded.get("*"), quirk.recorded.get(client)):
            if fields is not None and not contains(recorded, fields):
                found.append(f"recorded: {recorded}")
    return found


@asynccontextmanager
async def quirk_gateway(folder: Path) -> AsyncIterator[QuirkGateway]:
    """A gateway on a socket with its store in `folder`."""
    upstream = QuirkUpstream()
    await upstream.start()
    async with AsyncExitStack() as stack:
        store = stack.enter_context(open_store(str(folder / "ledger.db")))
        routing = ROUTING.format(url=upstream.base_url)
        served = await stack.enter_async_context(serving(store, upstream, routing))  # type: ignore[arg-type]
        yield QuirkGateway(served, upstream)
    await upstream.stop()
