"""Headers of providers that reach the client: rate limits and request ids, of answers, streams and errors."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import pytest

from faulty_upstream import WHOLE, Asked, chunk, faulty_upstream, head, pieces_of
from overnight.keys import Keyring, Keys, MasterKeys
from overnight.store import Store, open_store
from serving import Served, serving

ROUTING = """
default_model: m
retries: {{max_attempts: 1}}
cache: {{exact: {{ttl_s: 60}}}}
providers: {{house: {{base_url: "{url}", models: [m], apis: [{form}]}}}}
prices: {{m: {{input_usd_per_mtok: 1, output_usd_per_mtok: 2}}}}
"""
LIMITS = {
    "anthropic-ratelimit-unified-5h-utilization": "0.85",
    "anthropic-ratelimit-requests-remaining": "49",
    "x-ratelimit-remaining-tokens": "149984",
    "x-ratelimit-reset-requests": "6m0s",
    "ratelimit-limit": "100",
}
OTHERS = ("set-cookie: a=b", "x-secret: s", "x-overnight-model: forged", "server: x")
PATHS: dict[str, tuple[str, dict[str, Any], str]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "x-request-id"),
    "messages": ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9}, "request-id"),
    "responses": ("/v1/responses", {"input": "x"}, "x-request-id"),
}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with open_store(str(tmp_path / "ledger.db")) as opened:
        yield opened


@asynccontextmanager
async def before(store: Store, form: str, status: int = 200, **options: Any) -> AsyncIterator[Served]:
    sent = [f"{name}: {value}" for name, value in LIMITS.items()] + list(OTHERS)
    sent.append("request-id: req_theirs" if form == "messages" else "X-Request-Id: req_theirs")

    async def act(asked: Asked, _reader: Any, writer: Any) -> None:
        if asked.streamed and status == 200:
            start = head(200, "text/event-stream", "transfer-encoding: chunked", *sent)
            writer.write(start + b"".join(map(chunk, pieces_of(asked))) + b"0\r\n\r\n")
        else:
            error = {"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}}
            body = json.dumps(WHOLE[asked.form] if status == 200 else error).encode()
            writer.write(head(status, "application/json", f"content-length: {len(body)}", *sent) + body)
        await writer.drain()

    async with (
        faulty_upstream({"m": act}) as upstream,
        serving(store, upstream, ROUTING.format(url=upstream.base_url, form=form), **options) as served,  # type: ignore[arg-type]
    ):
        yield served


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("status", [200, 429])
@pytest.mark.parametrize("target", PATHS)
async def test_limits_and_request_id_reach_the_client(store: Store, target: str, status: int, stream: bool) -> None:
    async with before(store, target, status) as served:
        for client in PATHS if target == "chat" else [target]:
            path, body, request_id = PATHS[client]
            answer = await served.http.post(path, json={"model": "m", **body, "stream": stream})
            assert answer.status_code == status, answer.text
            assert {name: answer.headers[name] for name in LIMITS} == LIMITS
            assert answer.headers[request_id] == "req_theirs"
            assert answer.headers["x-overnight-model"] == "m"
            assert "set-cookie" not in answer.headers
            assert "x-secret" not in answer.headers


async def test_sdk_reads_the_request_id(store: Store) -> None:
    async with before(store, "messages") as served:
        client = anthropic.AsyncAnthropic(base_url=served.url, api_key="unused", max_retries=0)
        said = await client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}])
        assert said._request_id == "req_theirs"
        await client.close()


async def test_cached_answer_has_no_limits_of_its_provider(store: Store) -> None:
    async with before(store, "chat") as served:
        answers = [await served.ask(model="m", headers={"x-job-id": job}) for job in ("a", "b")]
        assert [each.headers["x-overnight-cache"] for each in answers] == ["miss", "exact"]
        assert "x-ratelimit-remaining-tokens" in answers[0].headers
        assert not any("ratelimit" in name for name in answers[1].headers)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("status", [200, 429])
async def test_limits_of_a_shared_account_stay_hidden(store: Store, status: int, stream: bool) -> None:
    master = MasterKeys("11" * 32)
    await Keys(store, master).set_provider_key("acme", "house", "sk-acmes-own-key-4711", "ann")
    path, body, request_id = PATHS["chat"]
    async with before(store, "chat", status, environment={"HOUSE_KEY": "x"}, keys=Keyring(store, master)) as served:
        found: dict[str, bool] = {}
        for tenant in ("default", "acme", "other"):
            headers = {"x-tenant-id": tenant}
            answer = await served.http.post(path, json={"model": "m", **body, "stream": stream}, headers=headers)
            assert answer.status_code == status, answer.text
            assert answer.headers[request_id] == "req_theirs"
            found[tenant] = any("ratelimit" in name for name in answer.headers)
    assert found == {"default": True, "acme": True, "other": False}
