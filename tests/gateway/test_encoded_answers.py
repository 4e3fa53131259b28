"""Encoded answers of providers: decoded whole and streamed; errors keep their status, words and wait."""

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard

from faulty_upstream import STREAM, WHOLE, Act, Asked, chunk, faulty_upstream, head, pieces_of
from overnight.store import Store, open_store
from serving import serving

PRICE = "{input_usd_per_mtok: 1, output_usd_per_mtok: 1}"


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with open_store(str(tmp_path / "ledger.db")) as opened:
        yield opened


def raw_deflate(data: bytes) -> bytes:
    made = zlib.compressobj(wbits=-15)
    return made.compress(data) + made.flush()


ENCODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "br": ("br", brotli.compress),
    "zstd": ("zstd", zstandard.ZstdCompressor().compress),
    "utf-8": ("utf-8", bytes),
    "identity": ("identity", bytes),
    "two": ("gzip, br", lambda data: brotli.compress(gzip.compress(data))),
    "unknown": ("aws-chunked", bytes),
}


def encodes(name: str) -> Act:
    """The good answer, encoded; a stream in small chunks."""
    label, encode = ENCODINGS[name]

    async def act(asked: Asked, _reader: Any, writer: Any) -> None:
        if asked.streamed:
            body = encode(b"".join(pieces_of(asked)))
            start = STREAM.replace(b"\r\n\r\n", f"\r\ncontent-encoding: {label}\r\n\r\n".encode())
            parts = [chunk(body[at : at + 50]) for at in range(0, len(body), 50)]
            writer.write(start + b"".join(parts) + b"0\r\n\r\n")
        else:
            body = encode(json.dumps(WHOLE[asked.form]).encode())
            writer.write(
                head(200, "application/json", f"content-encoding: {label}", f"content-length: {len(body)}") + body
            )
        await writer.drain()

    return act


def limited(name: str) -> Act:
    """A 429 with an encoded body."""
    label, encode = ENCODINGS[name]
    said = {"error": {"message": "your plan has no room left", "type": "rate_limit_error", "code": "too_fast"}}
    body = encode(json.dumps(said).encode())

    async def act(_asked: Asked, _reader: Any, writer: Any) -> None:
        more = (f"content-encoding: {label}", f"content-length: {len(body)}", "retry-after: 0.001")
        writer.write(head(429, "application/json", *more) + body)
        await writer.drain()

    return act


def routing(base_url: str) -> str:
    return f"""
default_model: good
retries: {{max_attempts: 2, backoff_ms: 1}}
providers: {{house: {{base_url: '{base_url}', models: [good]}}}}
prices: {{good: {PRICE}}}
"""


@pytest.mark.parametrize("name", ENCODINGS)
async def test_encoded_answer_is_delivered_and_metered(store: Store, name: str) -> None:
    async with (
        faulty_upstream({"good": encodes(name)}) as upstream,
        serving(store, upstream, routing(upstream.base_url)) as served,  # type: ignore[arg-type]
    ):
        whole = await served.ask(model="good", headers={"x-job-id": "j"})
        assert whole.status_code == 200, whole.text
        assert whole.json()["choices"][0]["message"]["content"] == "one two three"
        assert "content-encoding" not in whole.headers
        streamed = await served.ask(model="good", headers={"x-job-id": "j"}, stream=True)
        assert streamed.status_code == 200
        assert "one" in streamed.text
        assert "[DONE]" in streamed.text
        ends = [each.facts for each in await served.until("j", "model_succeeded", 2)]
        ends = [facts for facts in ends if facts.event == "model_succeeded"]
        assert ends[0].cost_microusd == 8
        assert (ends[1].cost_microusd or 0) + (ends[1].bound_microusd or 0) > 0  # the stream reports no usage
        assert upstream.asked["good"] == 2


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", ENCODINGS)
async def test_encoded_error_keeps_class_words_and_wait(store: Store, name: str, stream: bool) -> None:
    async with (
        faulty_upstream({"good": limited(name)}) as upstream,
        serving(store, upstream, routing(upstream.base_url)) as served,  # type: ignore[arg-type]
    ):
        answer = await served.ask(model="good", headers={"x-job-id": "j"}, stream=stream)
        assert answer.status_code == 429, answer.text
        assert "your plan has no room left" in answer.text
        failed = [each.facts.error for each in await served.events("j") if each.facts.event == "model_failed"]
        assert [(error.error_class, error.code) for error in failed] == [("rate_limited", "too_fast")] * 2
        assert upstream.asked["good"] == 2
