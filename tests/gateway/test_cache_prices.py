"""Own prices for the provider's cache: reads, writes for five minutes and writes for an hour, billed and bounded."""

import json
from pathlib import Path
from typing import Any

import pytest

from faulty_upstream import WHOLE, Asked, chunk, faulty_upstream, head
from overnight.brain import Brain
from overnight.pricing.price_book import PriceBook
from overnight.store import Store, open_store
from serving import serving

ROUTING = """
default_model: m
providers: {{house: {{base_url: '{url}', models: [m], apis: [{form}]}}}}
prices: {{m: {{input_usd_per_mtok: 1, output_usd_per_mtok: 5, {more}}}}}
"""
ALL = "cached_input_usd_per_mtok: 0.1, cache_write_usd_per_mtok: 2, cache_write_1h_usd_per_mtok: 4"
# 3 plain, 100 read, 15 and 5 written, 2 output
COSTS = {
    ALL: 3 + 10 + 30 + 20 + 10,
    "cached_input_usd_per_mtok: 0.1, cache_write_usd_per_mtok: 2": 3 + 10 + 30 + 10 + 10,
    "cached_input_usd_per_mtok: 0.1": 3 + 10 + 15 + 5 + 10,
    "cache_write_1h_usd_per_mtok: 4": 3 + 100 + 15 + 20 + 10,
}
USAGE = {
    "input_tokens": 3,
    "cache_read_input_tokens": 100,
    "cache_creation_input_tokens": 20,
    "cache_creation": {"ephemeral_5m_input_tokens": 15, "ephemeral_1h_input_tokens": 5},
    "output_tokens": 2,
}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with open_store(str(tmp_path / "ledger.db")) as opened:
        yield opened


async def act(asked: Asked, _reader: Any, writer: Any) -> None:
    message = {**WHOLE["messages"], "usage": USAGE}
    if asked.streamed:
        start = {**message, "content": [], "stop_reason": None}
        ended = {"stop_reason": "end_turn", "stop_sequence": None}
        events = [
            {"type": "message_start", "message": start},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "one"}},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": ended, "usage": {"output_tokens": 2}},
            {"type": "message_stop"},
        ]
        parts = [chunk(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode()) for each in events]
        writer.write(head(200, "text/event-stream", "transfer-encoding: chunked") + b"".join(parts) + b"0\r\n\r\n")
    else:
        body = json.dumps(message).encode()
        writer.write(head(200, "application/json", f"content-length: {len(body)}") + body)
    await writer.drain()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("more", COSTS)
async def test_cache_is_billed_at_its_own_prices(store: Store, more: str, stream: bool) -> None:
    async with (
        faulty_upstream({"m": act}) as upstream,
        serving(store, upstream, ROUTING.format(url=upstream.base_url, form="messages", more=more)) as served,  # type: ignore[arg-type]
    ):
        said = [{"role": "user", "content": "x"}]
        body = {"model": "m", "max_tokens": 9, "messages": said, "stream": stream}
        answer = await served.http.post("/v1/messages", json=body, headers={"x-job-id": "j"})
        assert answer.status_code == 200, answer.text
        called, ended = [each.facts for each in await served.until("j", "model_succeeded")][-2:]
        assert ended.cost_microusd == COSTS[more]
        size = len(json.dumps(body, separators=(",", ":")))
        highest = 4 if "1h" in more else 2 if "write" in more else 1
        assert called.detail["reserved_microusd"] >= size * highest


def test_negative_price_of_writes_is_an_error() -> None:
    price = "prices: {m: {input_usd_per_mtok: 1, output_usd_per_mtok: 5, cache_write_usd_per_mtok: -1}}"
    with pytest.raises(Exception, match="cache_write_usd_per_mtok"):
        Brain.from_files({"routing.yaml": price.encode()})


def test_prices_of_writes_are_part_of_the_bound() -> None:
    prices = Brain.from_files(
        {"routing.yaml": ROUTING.format(url="http://x", form="chat", more=ALL).encode()}
    ).routing.prices
    assert PriceBook(prices).price("m").upper_bound_microusd(1_000_000, 0) == 4_000_000
