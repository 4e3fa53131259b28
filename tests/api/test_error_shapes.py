"""Errors have the format of the requested path, and no external name can break a response."""

import asyncio

import anthropic
import httpx2
import pytest

from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import serving


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("GET", "/v1/messages/count_tokens", 405, "invalid_request_error"),
        ("POST", "/v1/messages/batches", 404, "not_found_error"),
    ],
)
async def test_errors_below_messages_have_anthropics_format(
    store: Store, provider: SpawnedProvider, method: str, path: str, status: int, kind: str
) -> None:
    async with serving(store, provider) as served:
        answer = await served.http.request(method, path)
        assert (answer.status_code, answer.json()["type"], answer.json()["error"]["type"]) == (status, "error", kind)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages/batches", "/v1/responses/resp_1/other"])
async def test_unknown_path_has_its_own_error_code(store: Store, provider: SpawnedProvider, path: str) -> None:
    async with serving(store, provider) as served:
        answer = await served.http.post(path)
        error = answer.json()["error"]
        assert (answer.status_code, error.get("code") or error["details"]["error_code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v1/chat/completions", "body_too_large"),
        ("/v1/messages", "request_too_large"),
        ("/v1/messages/count_tokens", "request_too_large"),
        ("/api/v1/jobs/any/complete", "Payload too large"),
    ],
)
async def test_large_content_length_is_rejected_at_once(
    store: Store, provider: SpawnedProvider, path: str, code: str
) -> None:
    async with serving(store, provider) as served:
        url = httpx2.URL(served.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        host = f"host: 127.0.0.1\r\nexpect: 100-continue\r\ncontent-length: {10**11}"
        writer.write(f"POST {path} HTTP/1.1\r\n{host}\r\n\r\n".encode())
        async with asyncio.timeout(10):
            said = (await reader.read()).decode()
        writer.close()
        assert said.startswith("HTTP/1.1 413 ")
        assert code in said


async def test_count_tokens_without_key_has_anthropics_error(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, auth="required") as served:
        client = anthropic.AsyncAnthropic(base_url=served.url, api_key="none", max_retries=0)
        with pytest.raises(anthropic.AuthenticationError) as raised:
            await client.messages.count_tokens(model="auto", messages=[{"role": "user", "content": "hi"}])
        await client.close()
        assert raised.value.body["error"]["type"] == "authentication_error"


async def test_cross_origin_error_has_the_format_of_the_path(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider) as served:
        answer = await served.http.post("/v1/messages", headers={"host": "elsewhere.example"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")


async def test_dropped_field_name_cannot_break_the_response(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider) as served:
        body = {"model": "gpt-5.4-mini", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
        answer = await served.http.post("/v1/messages", json=body | {"odd\r\nx-made-up: 1": 1})
        assert answer.status_code == 200
        assert "odd" in answer.headers["x-overnight-dropped"]
        assert "x-made-up" not in answer.headers


@pytest.mark.parametrize(("count", "length"), [(3, 9), (120, 9), (300, 7), (1, 3000)])
async def test_long_dropped_header_ends_with_a_whole_name(
    store: Store, provider: SpawnedProvider, count: int, length: int
) -> None:
    odd = [f"{number:x>{length}}" for number in range(count)]
    async with serving(store, provider) as served:
        body = {"model": "gpt-5.4-mini", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
        answer = await served.http.post("/v1/messages", json=body | dict.fromkeys(odd, 1))
        told = answer.headers["x-overnight-dropped"]
        *names, last = told.split(", ")
        assert len(told) <= 1000
        if length > 1000:
            assert told == odd[0][:997] + "..."
        elif len(", ".join(odd)) > 1000:
            assert (names, last) == (odd[: len(names)], "...")
            assert len(told) > 980
        else:
            assert [*names, last] == odd


async def test_id_invalid_for_the_store_is_not_found(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider) as served:
        gone = await served.http.get("/v1/responses/resp_%00")
        body = {"model": "auto", "input": "on", "previous_response_id": "resp_\u0000"}
        before = await served.http.post("/v1/responses", json=body)
        assert (gone.status_code, before.status_code) == (404, 404)
        assert (await served.http.delete("/v1/responses/resp_%00")).status_code == 404


async def test_model_list_is_readable_by_anthropics_client(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider) as served:
        client = anthropic.AsyncAnthropic(base_url=served.url, api_key="none", max_retries=0)
        found = [model async for model in client.models.list()]
        one = await client.models.retrieve("claude-opus-4.6")
        await client.close()
        assert {"gpt-5.4-mini", "claude-opus-4.6"} <= {model.id for model in found}
        assert (one.type, one.display_name) == ("model", "claude-opus-4.6")
        assert one.created_at.year == 1970
