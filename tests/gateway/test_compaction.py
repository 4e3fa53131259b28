"""Compacted conversations: passed on where the target has it, else refused with the way out; they stay at their provider."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from faulty_upstream import WHOLE
from overnight.api import Server
from overnight.store import open_store
from serving import Served, serving

PRICE = "{input_usd_per_mtok: 1, output_usd_per_mtok: 2}"
ROUTING = """
default_model: m
retries: {{max_attempts: 1}}
providers:
  first: {{base_url: '{url}/first', models: [m, sibling], apis: [responses, chat]}}
  other: {{base_url: '{url}/other', models: [spare], apis: [responses]}}
  plain: {{base_url: '{url}/plain', models: [chat], apis: [chat]}}
fallbacks: [{fallback}]
prices: {{m: {price}, spare: {price}, chat: {price}, sibling: {price}}}
"""
COMPACTION = {"type": "compaction", "id": "cmp_1", "encrypted_content": "opaque+/=State"}
HISTORY: list[Any] = [{"role": "user", "content": "Keep this"}, COMPACTION, {"role": "user", "content": "go on"}]


class Upstream:
    """Providers with Responses and compaction, and one without. `down` are the paths that fail."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []
        self.down: set[str] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, message = b"", {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        path, asked = scope["path"], json.loads(body)
        self.seen.append((path, asked))
        form = "chat" if path.endswith("/chat/completions") else "responses"
        answer: Any = WHOLE[form]
        if path.endswith("/responses/compact"):
            usage = {"input_tokens": 1200, "output_tokens": 100, "total_tokens": 1300}
            answer = {
                "id": "x",
                "object": "response.compaction",
                "created_at": 1,
                "output": [COMPACTION],
                "usage": usage,
            }
        status = 500 if path in self.down else 200
        await send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]}
        )
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


@asynccontextmanager
async def before(tmp_path: Path, fallback: str = "") -> AsyncIterator[tuple[Served, Upstream]]:
    upstream = Upstream()
    server = Server(upstream)
    _, port = await server.start("127.0.0.1", 0)
    url = f"http://127.0.0.1:{port}"
    routing = ROUTING.format(url=url, price=PRICE, fallback=fallback)
    try:
        with open_store(str(tmp_path / "ledger.db")) as store:
            provider: Any = type("Provider", (), {"base_url": url})
            async with serving(store, provider, routing, environment={"X": "y"}, offline_base_url=None) as served:
                yield served, upstream
    finally:
        await server.stop(0)


async def test_compaction_is_passed_on_billed_and_recorded(tmp_path: Path) -> None:
    async with before(tmp_path) as (served, upstream):
        headers = {"x-job-id": "j"}
        body = {"model": "m", "input": HISTORY[:1], "instructions": "Keep constraints"}
        answer = await served.http.post("/v1/responses/compact", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.json()["output"] == [COMPACTION]
        assert answer.json()["id"] != "x"
        assert upstream.seen == [("/first/responses/compact", body)]
        assert answer.headers["x-overnight-cost-usd"] == "0.001400"
        assert await served.story("j") == ["created", "model_called", "model_succeeded"]
        compacted = await served.openai.responses.compact(model="m", input="hello")
        assert compacted.output[0].type == "compaction"


async def test_compaction_continues_a_stored_response(tmp_path: Path) -> None:
    async with before(tmp_path) as (served, upstream):
        first = await served.openai.responses.create(model="m", input="Keep this")
        await served.openai.responses.compact(model="m", previous_response_id=first.id, input="more")
        path, sent = upstream.seen[-1]
        assert (path, "previous_response_id" in sent) == ("/first/responses/compact", False)
        assert [item.get("role") for item in sent["input"]] == ["user", "assistant", "user"]


async def test_target_without_compaction_is_400_with_the_way_out(tmp_path: Path) -> None:
    async with before(tmp_path) as (served, upstream):
        with pytest.raises(openai.BadRequestError, match="plain, which has no /responses/compact") as refused:
            await served.openai.responses.compact(model="chat", input="hello")
        assert refused.value.code == "compaction_not_supported"
        streamed = await served.http.post("/v1/responses/compact", json={"model": "m", "input": "x", "stream": True})
        assert (streamed.status_code, streamed.json()["error"]["param"]) == (400, "stream")
        with pytest.raises(openai.BadRequestError, match="does not support compaction"):
            await served.openai.responses.create(model="chat", input=HISTORY)
        assert upstream.seen == []


@pytest.mark.parametrize(
    "item", [COMPACTION, {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAB"}]
)
async def test_conversation_with_an_encrypted_item_stays_at_its_provider(tmp_path: Path, item: Any) -> None:
    async with before(tmp_path, "{from: m, to: spare}") as (served, upstream):
        upstream.down = {"/first/responses"}
        history: Any = [*HISTORY[:1], item, *HISTORY[2:]]
        with pytest.raises(openai.APIStatusError) as failed:
            await served.openai.responses.create(model="m", input=history)
        assert failed.value.status_code == 502
        assert [path for path, _ in upstream.seen] == ["/first/responses"]
        # Without one the other provider is asked.
        assert (await served.openai.responses.create(model="m", input=HISTORY[:1])).status == "completed"
        assert upstream.seen[-1][0] == "/other/responses"


async def test_other_models_of_the_provider_read_the_item(tmp_path: Path) -> None:
    async with before(tmp_path, "{from: m, to: sibling}") as (served, upstream):
        upstream.down = set()
        await served.openai.responses.create(model="m", input=HISTORY)
        assert upstream.seen[0][1]["input"][1] == COMPACTION
        await served.openai.responses.create(model="sibling", input=HISTORY)
        assert upstream.seen[1][1]["input"][1] == COMPACTION
