"""Limits of one client, one key and all clients: beyond them other clients are still served."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from api_keys import key_for
from overnight.api import ConnectionLimits
from overnight.http_server.connection_limits import MAX_REFUSALS, network_of
from overnight.store import Store
from overnight.testing import SpawnedProvider
from raw_http import Client, answer, echo, served
from serving import Served, routed, serving

GET = b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n"
MIB = 1024 * 1024


@pytest.fixture
async def gateway(store: Store, provider: SpawnedProvider) -> AsyncIterator[Served]:
    async with serving(store, provider, routed(f"limits: {{max_body_bytes: {MIB}}}\n")) as running:
        yield running


@pytest.mark.parametrize(("limits", "status"), [(ConnectionLimits(3, 99), 503), (ConnectionLimits(99, 3), 429)])
async def test_connections_over_a_limit_are_rejected_and_closed(limits: ConnectionLimits, status: int) -> None:
    async with served(echo, limits=limits) as (server, connect):
        clients = [await connect() for _ in range(3)]
        refused = await connect()
        assert (await refused.answer())[0] == status
        assert await refused.rest() == b""
        for client in clients:
            client.say(GET)
            assert await client.answer() == (200, b"GET /x ")
        clients[0].writer.close()
        refused.writer.close()
        async with asyncio.timeout(10):
            while len(server.connections) > 2:
                await asyncio.sleep(0.01)
        again = await connect()
        again.say(GET)
        assert await again.answer() == (200, b"GET /x ")


async def test_connection_flood_is_closed_without_response() -> None:
    async with served(echo, limits=ConnectionLimits(1, 1)) as (server, connect):
        first = await connect()
        for _ in range(MAX_REFUSALS + 20):
            await connect()
        assert await (await connect()).rest() == b""
        assert len(server.connections) <= MAX_REFUSALS + 2
        first.say(GET)
        assert await first.answer() == (200, b"GET /x ")


@pytest.mark.parametrize(
    ("address", "holder"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
    ],
)
def test_client_address_is_derived_from_trusted_proxies(address: str, holder: str) -> None:
    assert network_of(address) == holder


async def half(gateway: Served, headers: dict[str, str], size: int, path: str = "/v1/chat/completions") -> Client:
    """A client that has sent `size` bytes of a body of a megabyte."""
    host, port = gateway.url.removeprefix("http://").split(":")
    client = Client(*await asyncio.open_connection(host, int(port)))
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    client.say(f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{fields}content-length: {MIB}\r\n\r\n".encode())
    client.say(b" " * size)
    return client


async def until_refused(gateway: Served, headers: dict[str, str], most: int, **more: Any) -> tuple[int, int]:
    """How many half bodies are taken before one is refused, and the status of that."""
    kept: list[Client] = []
    try:
        for number in range(most):
            kept.append(await half(gateway, headers, MIB - 1, **more))
            answering = asyncio.create_task(kept[-1].answer())
            done, _ = await asyncio.wait([answering], timeout=0.2)
            if done:
                status, body = answering.result()
                assert b"unfinished" in body, body
                return number, status
            answering.cancel()
        return most, 0
    finally:
        for client in kept:
            client.writer.close()


async def test_unfinished_bodies_are_bounded_per_key(gateway: Served) -> None:
    mine, others = await key_for(gateway, scopes=("call", "operate")), await key_for(gateway, tenant="other")
    await gateway.http.post("/api/v1/jobs/x/complete", json={}, headers=mine)  # the first request loads this part
    held = [await half(gateway, mine, MIB - 1) for _ in range(2)]
    await asyncio.sleep(0.2)
    assert (await until_refused(gateway, mine, 1)) == (0, 429)
    assert (await until_refused(gateway, mine, 1, path="/api/v1/jobs/x/complete")) == (0, 429)
    assert (await gateway.ask(headers=mine)).status_code == 200, "a small body is whole at once"
    assert (await gateway.ask(text="x" * 700_000, headers=others)).status_code == 200
    for client in held:
        client.writer.close()
    async with asyncio.timeout(20):
        while (await until_refused(gateway, mine, 1))[1]:
            await asyncio.sleep(0.05)


async def test_bodies_of_a_key_count_until_their_calls_are_answered(gateway: Served, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{match: {times: 2}, fault: {delay_ms: 2500}}]")
    mine, others = await key_for(gateway), await key_for(gateway, tenant="other")
    waiting = [asyncio.create_task(gateway.ask(text="x" * 900_000, headers=mine)) for _ in range(2)]
    await asyncio.sleep(0.7)
    refused = await gateway.ask(text="x" * 900_000, headers=mine)
    assert (refused.status_code, "unanswered" in refused.text) == (429, True), refused.text
    assert (await gateway.ask(headers=mine)).status_code == 200, "a small body is not counted"
    assert (await gateway.ask(text="x" * 900_000, headers=others)).status_code == 200
    assert [each.status_code for each in await asyncio.gather(*waiting)] == [200, 200]
    assert (await gateway.ask(text="x" * 900_000, headers=mine)).status_code == 200


async def test_unfinished_bodies_are_bounded_in_total(gateway: Served) -> None:
    assert await until_refused(gateway, {}, 12) == (8, 503)
    async with asyncio.timeout(20):
        while (await until_refused(gateway, {}, 1))[1]:
            await asyncio.sleep(0.05)


async def test_concurrent_requests_of_a_key_are_bounded(store: Store, provider: SpawnedProvider) -> None:
    from overnight.api import application
    from overnight.ledger import Ledger

    async with serving(store, provider) as gateway:
        app = application(gateway.gateway, Ledger(store), requests_per_key=1)
        mine, others = await key_for(gateway, scopes=("call", "read")), await key_for(gateway, scopes=("call", "read"))
        async with served(app) as (_, connect):

            async def asks(headers: dict[str, str], more: str = "") -> Client:
                client = await connect()
                fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                client.say(f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{fields}{more}\r\n".encode())
                return client

            waiting = await asks(mine, "content-length: 5\r\n")
            await asyncio.sleep(0.1)
            assert (await (await asks(mine)).answer())[0] == 429
            assert (await (await asks(others)).answer())[0] == 400
            waiting.say(b"{    ")
            assert (await waiting.answer())[0] == 400
            assert (await (await asks(mine)).answer())[0] == 400


async def test_rejected_body_is_drained_so_that_the_error_arrives() -> None:
    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            await asyncio.sleep(0.05)  # the client is ahead, and is held back
            break
        await asyncio.sleep(0.05)
        await answer(send, b"too much", 429)

    async with served(refuses) as (_, connect):
        client = await connect()
        client.say(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 20000000\r\n\r\n" + b"x" * 10_000_000)
        assert await client.answer() == (429, b"too much")
        assert await client.rest() == b""
