"""A provider that echoes its key in an answer: the key reaches neither the client nor the log."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from faulty_upstream import STREAM, WHOLE, Act, Asked, FaultyUpstream, chunk, faulty_upstream, head
from overnight.providers.key_redaction import HEAD, KeyGuard, secret_of
from overnight.store import Store
from serving import Served, routed, serving

SECRET = "sk-proj-aB3/dEF0123456789wxyz"
PLACEHOLDER = "not-needed"
WORDS = f"Your key {SECRET} is fine, and so is {SECRET}."
PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}


def saying(form: str, text: str) -> dict[str, Any]:
    return json.loads(json.dumps(WHOLE[form]).replace('"one two three"', json.dumps(text)))


WRITTEN = {
    "plain": SECRET,
    "slashes": SECRET.replace("/", "\\/"),
    "first escaped": f"\\u{ord(SECRET[0]):04x}{SECRET[1:]}",
    "all escaped": "".join(f"\\u{ord(character):04X}" for character in SECRET),
}
"""The key as JSON may write it."""


def said_whole(text: str, written: str = SECRET) -> Act:
    async def act(asked: Asked, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = json.dumps(saying(asked.form, text)).encode().replace(SECRET.encode(), written.encode())
        length = f"content-length: {len(body)}"
        writer.write(head(200, "application/json", length, f"x-request-id: req-{text[:60]}") + body)
        await writer.drain()

    return act


def said_in_pieces(text: str, longest: int, *, torn: bool) -> Act:
    """Deltas of up to `longest` characters; `torn`: cut anywhere into packets."""

    async def act(asked: Asked, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rng = random.Random(longest)
        parts = list(cut(text, longest, rng))
        events = b"".join(_events(asked.form, parts))
        writer.write(STREAM)
        while events:
            size = rng.randint(1, 40) if torn else len(events)
            writer.write(chunk(events[:size]))
            await writer.drain()
            events = events[size:]
        writer.write(b"0\r\n\r\n")

    return act


def cut(text: str, longest: int, rng: random.Random) -> list[str]:
    parts: list[str] = []
    while text:
        size = rng.randint(1, longest)
        parts.append(text[:size])
        text = text[size:]
    return parts


def _events(form: str, parts: list[str]) -> list[bytes]:
    if form == "chat":
        begun = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        deltas = [{"index": 0, "delta": {"content": part}, "finish_reason": None} for part in parts]
        last = {"index": 0, "delta": {}, "finish_reason": "stop"}
        pieces = [{**begun, "choices": [each]} for each in (*deltas, last)]
        return [b"data: %b\n\n" % json.dumps(each).encode() for each in pieces] + [b"data: [DONE]\n\n"]
    start = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "usage": {"input_tokens": 1},
    }
    pieces = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": part}} for part in parts),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]
    return [b"event: %b\ndata: %b\n\n" % (each["type"].encode(), json.dumps(each).encode()) for each in pieces]


def routing(upstream: FaultyUpstream, api: str) -> str:
    kind = "anthropic" if api == "messages" else "openai"
    return routed(
        "providers:\n"
        f"  odd: {{base_url: '{upstream.base_url}', api_key_env: ODD_KEY, models: [m], kind: {kind}, apis: [{api}]}}\n"
        "prices: {m: {input_usd_per_mtok: 1, output_usd_per_mtok: 1}}\n"
    ).replace("default_model: gpt-5.4-mini", "default_model: m")


@pytest.fixture
async def upstream() -> AsyncIterator[FaultyUpstream]:
    async with faulty_upstream() as running:
        yield running


async def asked(served: Served, form: str, *, stream: bool) -> Any:
    question: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 50}
    if form == "responses":
        question = {"input": "hello"}
    body = {"model": "m", "stream": stream, **question}
    return await served.http.post(PATHS[form], json=body, headers={"x-job-id": "n1"})


async def recorded(served: Served) -> str:
    """Everything that the log knows of the job."""
    await served.until("n1", "model_succeeded")
    events = await served.events("n1")
    contents = [await served.ledger.answer(each) for each in events]
    return repr(events) + repr(contents)


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize(
    ("form", "api"), [("chat", "chat"), ("messages", "messages"), ("responses", "responses"), ("chat", "messages")]
)
async def test_plain_answer_contains_no_key(
    store: Store, upstream: FaultyUpstream, form: str, api: str, written: str
) -> None:
    upstream.plan = {"m": said_whole(WORDS, written)}
    async with serving(store, upstream, routing(upstream, api), environment={"ODD_KEY": SECRET}) as served:  # type: ignore[arg-type]
        answer = await asked(served, form, stream=False)
        told = answer.text + repr(answer.headers)
        assert (answer.status_code, "Your key [key] is fine, and so is [key]." in told) == (200, True), told
        everything = told + await recorded(served)
        assert [each for each in (SECRET, written, repr(written)[1:-1]) if each in everything] == []


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
async def test_tool_arguments_contain_no_key(store: Store, upstream: FaultyUpstream, written: str) -> None:
    """They are JSON in a string of JSON: a client that reads them undoes two escapes."""
    answer = saying("chat", "")
    arguments = f'{{"header": "{written}"}}'
    call = {"id": "c", "type": "function", "function": {"name": "send", "arguments": arguments}}
    answer["choices"][0]["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}

    async def act(_asked: Asked, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = json.dumps(answer).encode()
        writer.write(head(200, "application/json", f"content-length: {len(body)}") + body)

    upstream.plan = {"m": act}
    async with serving(store, upstream, routing(upstream, "chat"), environment={"ODD_KEY": SECRET}) as served:  # type: ignore[arg-type]
        told = (await asked(served, "chat", stream=False)).json()["choices"][0]["message"]["tool_calls"][0]
        assert json.loads(told["function"]["arguments"]) == {"header": "[key]"}


@pytest.mark.parametrize(("count", "is_whole"), [(2_000, True), (6_000, False)])
async def test_chunks_without_text_are_held_up_to_a_bound(
    store: Store, upstream: FaultyUpstream, count: int, is_whole: bool
) -> None:
    """While the beginning of a key is held, they must wait too."""
    first, *rest = _events("chat", [SECRET[: HEAD + 3], "."])
    empty = first.replace(json.dumps({"content": SECRET[: HEAD + 3]}).encode(), b"{}")

    async def act(_asked: Asked, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        for piece in (first, empty * count, *rest):
            writer.write(chunk(piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    upstream.plan = {"m": act}
    async with serving(store, upstream, routing(upstream, "chat"), environment={"ODD_KEY": SECRET}) as served:  # type: ignore[arg-type]
        answer = await asked(served, "chat", stream=True)
        assert (SECRET[: HEAD + 3] in answer.text, "[DONE]" in answer.text) == (is_whole, is_whole), answer.text[-300:]
        if not is_whole:
            assert "unknown shape" in answer.text


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("longest", [1, 4, 12, 90])
@pytest.mark.parametrize(
    ("form", "api"), [("chat", "chat"), ("messages", "messages"), ("messages", "chat"), ("responses", "chat")]
)
async def test_stream_contains_no_key(
    store: Store, upstream: FaultyUpstream, form: str, api: str, longest: int, torn: bool
) -> None:
    upstream.plan = {"m": said_in_pieces(WORDS, longest, torn=torn)}
    async with serving(store, upstream, routing(upstream, api), environment={"ODD_KEY": SECRET}) as served:  # type: ignore[arg-type]
        answer = await asked(served, form, stream=True)
        pieces = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        text = "".join(text_in(piece) for piece in pieces)
        assert text.replace(SECRET[: HEAD - 1], "").endswith("."), answer.text
        assert SECRET not in text
        assert SECRET[HEAD : HEAD + 6] not in answer.text
        assert text.count("[key]") == 2
        assert SECRET not in await recorded(served)


def text_in(piece: dict[str, Any]) -> str:
    delta = piece.get("delta")
    if isinstance(delta, str):
        return delta
    if isinstance(delta, dict):
        return str(delta.get("text", ""))  # type: ignore[union-attr]
    return "".join(str(each["delta"].get("content") or "") for each in piece.get("choices", []))


async def test_placeholder_key_is_not_redacted(store: Store, upstream: FaultyUpstream) -> None:
    upstream.plan = {"m": said_whole(f"A key is {PLACEHOLDER} here.")}
    async with serving(store, upstream, routing(upstream, "chat"), environment={"ODD_KEY": PLACEHOLDER}) as served:  # type: ignore[arg-type]
        assert PLACEHOLDER in (await asked(served, "chat", stream=False)).text


def shown(text: str, longest: int, rng: random.Random) -> str:
    guard = KeyGuard(SECRET.encode())
    out: list[bytes] = []
    for part in cut(text, longest, rng):
        piece = {"choices": [{"index": 0, "delta": {"content": part}}]}
        out += guard.take(piece, [json.dumps(piece).encode()])
    out += guard.rest()
    return "".join(text_in(json.loads(each)) for each in out)


def test_prefix_of_a_key_is_passed_on_in_order() -> None:
    rng = random.Random(7)
    starts = [SECRET[:length] for length in range(len(SECRET))]
    for _ in range(500):
        text = " ".join(rng.choices([*starts, "plain", "text", "sk-"], k=6)).replace(SECRET, "")
        assert shown(text, rng.choice([1, 3, 8, 40]), rng) == text


def test_key_between_its_prefixes_is_redacted() -> None:
    rng = random.Random(8)
    for _ in range(500):
        around = [SECRET[: rng.randint(0, len(SECRET) - 1)] for _ in range(2)]
        told = shown(around[0] + SECRET + around[1], rng.choice([1, 3, 8, 40]), rng)
        assert (SECRET in told, "[key]" in told) == (False, True), around
        assert told.startswith(around[0][:1]), around


@pytest.mark.parametrize("key", ["", "none", "EMPTY", "ollama", "lm-studio", PLACEHOLDER])
def test_known_placeholders_are_recognized(key: str) -> None:
    assert secret_of(key) == b""
