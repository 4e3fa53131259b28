"""The client, the scheme and the path that a request has behind proxies, and the lifespan protocol."""

from typing import Any

import pytest

from overnight.api import TrustedProxies
from raw_http import answer, served

LOCAL = "127.0.0.1"


async def scope_of(head: str, path: str = "/x", **options: Any) -> dict[str, Any]:
    """What the application is given for a request with these header lines."""
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope)
        await answer(send, b"")

    async with served(app, **options) as (_, connect):
        client = await connect()
        client.say(f"GET {path} HTTP/1.1\r\nhost: x\r\n{head}\r\n".encode())
        await client.answer()
    return seen


@pytest.mark.parametrize(
    ("head", "client", "scheme"),
    [
        ("x-forwarded-for: 203.0.113.9\r\nx-forwarded-proto: https\r\n", "203.0.113.9", "https"),
        ("x-forwarded-for: 198.51.100.1, 203.0.113.9\r\n", "203.0.113.9", "http"),
        ("x-forwarded-for: 198.51.100.1, 203.0.113.9, 10.0.0.2\r\n", "203.0.113.9", "http"),
        ("x-forwarded-for: 198.51.100.1\r\nx-forwarded-for: 203.0.113.9:4711\r\n", "203.0.113.9", "http"),
        ("x-forwarded-for: 10.0.0.1, 10.0.0.2\r\n", "10.0.0.1", "http"),
        ("x-forwarded-for: 203.0.113.9, unknown\r\n", LOCAL, "http"),
        ("x-forwarded-for: [2001:db8::1]:80\r\n", "2001:db8::1", "http"),
        ("x-forwarded-proto: javascript\r\n", LOCAL, "http"),
        ('forwarded: for="[2001:db8::1]:80";proto=https\r\n', "2001:db8::1", "https"),
        ("forwarded: for=198.51.100.1, for=203.0.113.9;proto=https;by=10.0.0.1\r\n", "203.0.113.9", "https"),
        ("forwarded: for=_hidden\r\n", LOCAL, "http"),
        ("", LOCAL, "http"),
    ],
)
async def test_trusted_proxy_names_the_client(head: str, client: str, scheme: str) -> None:
    seen = await scope_of(head, proxies=TrustedProxies([LOCAL, "10.0.0.0/8"]))
    assert (seen["client"][0], seen["scheme"]) == (client, scheme)
    assert ("overnight.forwarded" in seen) == bool(head)


@pytest.mark.parametrize("networks", [[], ["10.0.0.0/8"], ["::/0"]])
async def test_forwarded_headers_of_others_are_ignored(networks: list[str]) -> None:
    head = "x-forwarded-for: 203.0.113.9\r\nx-forwarded-proto: https\r\nforwarded: for=203.0.113.9\r\n"
    seen = await scope_of(head, proxies=TrustedProxies(networks))
    assert (seen["client"][0], seen["scheme"]) == (LOCAL, "http")
    assert "overnight.forwarded" not in seen
    assert seen["server"][0] == LOCAL
    assert seen["server"][1] > 0


@pytest.mark.parametrize("path", ["/x", "/overnight/x"])
async def test_path_begins_with_the_root_path(path: str) -> None:
    seen = await scope_of("", path, root_path="/overnight/")
    assert (seen["root_path"], seen["path"], seen["raw_path"]) == ("/overnight", "/overnight/x", b"/overnight/x")


async def test_application_is_notified_of_start_and_stop() -> None:
    said: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        while True:
            kind = (await receive())["type"]
            said.append(kind)
            await send({"type": f"{kind}.complete"})

    async with served(app, lifespan=True):
        assert said == ["lifespan.startup"]
    assert said == ["lifespan.startup", "lifespan.shutdown"]


async def test_application_without_lifespan_is_served() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await answer(send, b"hello")

    async with served(app, lifespan=True) as (_, connect):
        client = await connect()
        client.say(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert await client.answer() == (200, b"hello")
