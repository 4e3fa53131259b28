"""Requests to URLs of others: private addresses in every form are refused, and what was checked is connected to."""

import asyncio
import gzip
import socket
from ipaddress import ip_address
from pathlib import Path

import pytest

from certificates import Authority
from http_proxy import HttpProxy, http_proxy
from overnight.outgoing import (
    AddressPolicy,
    Client,
    EnvironmentProxies,
    MalformedResponse,
    ResponseTooLarge,
    TlsFiles,
    Unreachable,
    UpstreamTimeout,
    UrlInvalid,
    non_public_kind,
)
from overnight.outgoing.dialer import Resolve
from web_server import answer, web_server

NO_PROXY = EnvironmentProxies({})
LOOPBACK = AddressPolicy.of(networks=("127.0.0.0/8",))


def resolver(*addresses: str, seen: list[str] | None = None) -> Resolve:
    """Finds these addresses for every name."""

    async def find(host: str, port: int) -> list:  # type: ignore[type-arg]
        if seen is not None:
            seen.append(host)
        return [
            (
                socket.AF_INET6 if ":" in each else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (each, port, 0, 0) if ":" in each else (each, port),
            )
            for each in addresses
        ]

    return find


async def fetched(client: Client, url: str, method: str = "GET", body: bytes = b"", headers=(), **bounds):
    bounds = {"timeout_s": 10, "max_body_bytes": 100_000} | bounds
    return await client.fetch(method, url, headers, body, **bounds)


PRIVATE = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192", "168.63.129.16", "192.0.2.1", "198.51.100.7",
    "203.0.113.9", "198.18.0.1", "198.19.255.255", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "192.88.99.1",
    "::", "::1", "fe80::1", "febf::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "3fff::1",
    "100::1", "2001:2::1", "2001:10::1", "2001:20::1", "4000::1", "5f00::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "::ffff:100.64.0.1",
    "::127.0.0.1", "::10.0.0.1", "::8.8.8.8", "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::10.0.0.1", "64:ff9b:1::8.8.8.8", "64:ff9b:1::a9fe:a9fe",
    "2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:808:808::1", "2001:0:7f00:1::", "2001::1",
]  # fmt: skip
PUBLIC = [
    "8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1", "192.167.1.1", "198.17.0.1",
    "198.20.0.1", "223.255.255.255", "2606:4700::1111", "2001:4860:4860::8888", "2a00:1450:4001::1", "2400:cb00::1",
    "::ffff:8.8.8.8", "64:ff9b::8.8.8.8",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_address_is_not_public(address: str) -> None:
    assert non_public_kind(ip_address(address)) is not None


@pytest.mark.parametrize("address", PUBLIC)
def test_address_is_public(address: str) -> None:
    assert non_public_kind(ip_address(address)) is None


@pytest.mark.parametrize("address", PRIVATE)
async def test_address_in_a_url_is_refused(address: str) -> None:
    url = f"http://[{address}]/" if ":" in address else f"http://{address}/"
    with pytest.raises(Unreachable, match="not public") as refused:
        await fetched(Client(proxies=NO_PROXY), url)
    assert (refused.value.code, refused.value.sent) == ("address_refused", False)


@pytest.mark.parametrize("address", PRIVATE)
async def test_name_with_a_non_public_address_is_refused(address: str) -> None:
    with pytest.raises(Unreachable, match="not public"):
        await fetched(Client(proxies=NO_PROXY, resolver=resolver(address)), "https://innocent.example/")


SPELLINGS = ["2130706433", "0x7f000001", "0x7f.1", "127.1", "0177.0.0.1", "localhost", "LOCALHOST.", "１２７.0.0.1"]


@pytest.mark.parametrize("host", SPELLINGS)
async def test_loopback_in_any_notation_is_refused(host: str) -> None:
    """The system's resolver reads them; what it finds is checked."""
    async with web_server() as server:
        with pytest.raises(Unreachable):
            await fetched(Client(proxies=NO_PROXY), f"http://{host}:{server.port}/")
        assert server.connections == 0


async def test_address_with_a_zone_is_refused() -> None:
    find = resolver("fe80::1%lo")
    with pytest.raises(Unreachable, match="link-local"):
        await fetched(Client(proxies=NO_PROXY, resolver=find), "http://innocent.example/")


async def test_one_private_address_among_public_ones_refuses_the_host() -> None:
    find = resolver("8.8.8.8", "127.0.0.1")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1 is not public"):
        await fetched(Client(proxies=NO_PROXY, resolver=find), "http://innocent.example/")


async def test_host_is_resolved_once() -> None:
    """A name server that answers differently the second time is not asked again."""
    seen: list[str] = []
    async with web_server() as server:
        client = Client(LOOPBACK, proxies=NO_PROXY, resolver=resolver("127.0.0.1", seen=seen))
        response = await fetched(client, f"http://rebinding.example:{server.port}/")
        assert (response.status, response.body, seen) == (200, b"ok", ["rebinding.example"])
        assert b"host: rebinding.example" in server.requests[0]


async def test_allowed_network_covers_its_mapped_form() -> None:
    policy = AddressPolicy.of(networks=("10.1.0.0/16",))
    client = Client(policy, proxies=NO_PROXY)
    with pytest.raises(Unreachable, match="not public"):
        await fetched(client, "http://10.2.0.1/")
    assert policy.refusal([(socket.AF_INET6, 1, 6, "", ("::ffff:10.1.2.3", 80, 0, 0))]) is None


# ── redirects ───────────────────────────────────────────────────────────────────────────────────────────────────────


def moved(place: str, status: int = 302) -> bytes:
    return answer(b"", f"location: {place}", status=status)


@pytest.mark.parametrize(
    "place", ["http://10.0.0.1/", "http://[::ffff:a9fe:a9fe]/latest", "//169.254.169.254/", "http://0/"]
)
async def test_redirect_to_a_private_address_is_refused(place: str) -> None:
    async with web_server({"/": moved(place)}) as server:
        client = Client(LOOPBACK, proxies=NO_PROXY)
        with pytest.raises(Unreachable, match="not public"):
            await fetched(client, f"http://127.0.0.1:{server.port}/")


async def test_redirect_of_get_is_followed_without_secrets() -> None:
    async with web_server({"/b": answer(b"there")}) as there:
        place = f"http://localhost:{there.port}/b?x=1"
        async with web_server({"/": moved("/a"), "/a": moved(place, 307)}) as here:
            client = Client(LOOPBACK, proxies=NO_PROXY, resolver=resolver("127.0.0.1"))
            secrets = [(b"authorization", b"Bearer s3cret"), (b"x-key", b"s3cret"), (b"accept", b"text/plain")]
            response = await fetched(client, f"http://127.0.0.1:{here.port}/", headers=secrets)
            assert (response.body, response.url) == (b"there", place)
            assert all(b"s3cret" in each for each in here.requests)
            assert b"s3cret" not in there.requests[0]
            assert b"accept: text/plain" in there.requests[0]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_of_post_is_not_followed(status: int) -> None:
    async with web_server({"/": moved("/b", status)}) as server:
        response = await fetched(Client(LOOPBACK, proxies=NO_PROXY), f"http://127.0.0.1:{server.port}/", "POST", b"{}")
        assert (response.status, response.headers[b"location"]) == (status, b"/b")
        assert len(server.requests) == 1


async def test_endless_redirects_end() -> None:
    async with web_server({"/": moved("/")}) as server:
        with pytest.raises(MalformedResponse, match="5 redirects"):
            await fetched(Client(LOOPBACK, proxies=NO_PROXY), f"http://127.0.0.1:{server.port}/")
        assert len(server.requests) == 6


@pytest.mark.parametrize("place", ["file:///etc/passwd", "gopher://127.0.0.1/", "http://user:pw@127.0.0.1/"])
async def test_redirect_to_another_scheme_is_refused(place: str) -> None:
    async with web_server({"/": moved(place)}) as server:
        with pytest.raises(UrlInvalid):
            await fetched(Client(LOOPBACK, proxies=NO_PROXY), f"http://127.0.0.1:{server.port}/")


async def test_redirect_from_https_to_http_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with web_server({"/": moved("http://127.0.0.1/")}, tls=authority.serving("127.0.0.1")) as server:
        client = Client(LOOPBACK, proxies=NO_PROXY, tls=TlsFiles(ca=str(authority.ca)))
        with pytest.raises(MalformedResponse, match="https to http"):
            await fetched(client, f"https://127.0.0.1:{server.port}/")


# ── bounds and URLs ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_body_is_bounded_before_and_after_decoding() -> None:
    bomb = answer(gzip.compress(bytes(500_000)), "content-encoding: gzip")
    async with web_server({"/": answer(bytes(200_000)), "/bomb": bomb}) as server:
        client = Client(LOOPBACK, proxies=NO_PROXY)
        for path in ("/", "/bomb"):
            with pytest.raises(ResponseTooLarge):
                await fetched(client, f"http://127.0.0.1:{server.port}{path}")


async def test_deadline_ends_a_silent_server() -> None:
    async with web_server({"/": b""}) as server:
        with pytest.raises(UpstreamTimeout) as late:
            await fetched(Client(LOOPBACK, proxies=NO_PROXY), f"http://127.0.0.1:{server.port}/", timeout_s=0.1)
        assert late.value.sent


@pytest.mark.parametrize("url", [
    "ftp://example.com/", "http://", "http:///x", "example.com", "http://user:pw@example.com/", "http://example.com:0/",
    "http://example.com:99999/", "http://example.com\\@127.0.0.1/", "http://exa mple.com/", "http://example.com/\r\nx: y",
    "http://[::1/", "http://\u2028/", "http://" + "a" * 9000, "file:///etc/passwd",
])  # fmt: skip
async def test_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(UrlInvalid):
        await fetched(Client(proxies=NO_PROXY), url)


async def test_path_and_query_arrive_as_written() -> None:
    async with web_server({"/a%20b/%C3%A9": answer(b"found")}) as server:
        client = Client(LOOPBACK, proxies=NO_PROXY)
        response = await fetched(client, f"http://127.0.0.1:{server.port}/a%20b/é?q=ü&r=[1]#part")
        assert response.body == b"found"
        assert server.requests[0].startswith(b"GET /a%20b/%C3%A9?q=%C3%BC&r=[1] HTTP/1.1\r\n")


# ── behind a proxy ──────────────────────────────────────────────────────────────────────────────────────────────────


def behind(proxy: HttpProxy, *names: str) -> Client:
    return Client(AddressPolicy.of(proxied_names=names), proxies=EnvironmentProxies({"HTTP_PROXY": proxy.url}))


async def test_proxy_is_used_for_listed_names_only() -> None:
    async with web_server() as server, http_proxy() as proxy:
        proxy.hosts = {"api.example.com": "127.0.0.1", "example.org": "127.0.0.1"}
        client = behind(proxy, "*.example.com", "example.org")
        for host in ("api.example.com", "API.example.com", "example.org"):
            proxy.hosts[host] = "127.0.0.1"
            assert (await fetched(client, f"http://{host}:{server.port}/")).body == b"ok"
        asked = len(proxy.asked)
        for host in ("example.com", "metadata.internal", "10.0.0.1", "8.8.8.8", "example.org.evil.test"):
            with pytest.raises(Unreachable, match="does not allow this host through a proxy"):
                await fetched(client, f"http://{host}:{server.port}/")
        assert len(proxy.asked) == asked


@pytest.mark.parametrize("host", ["169.254.169.254", "2852039166", "0xa9fea9fe", "127.1", "[fd00::1]"])
async def test_glob_for_proxied_names_matches_no_address(host: str) -> None:
    async with http_proxy() as proxy:
        with pytest.raises(Unreachable, match="does not allow this host through a proxy"):
            await fetched(behind(proxy, "*"), f"http://{host}/")
        assert proxy.asked == []


async def test_concurrent_requests_receive_their_own_responses() -> None:
    async with web_server({"/a": answer(b"a"), "/b": answer(b"b")}) as server:
        client = Client(LOOPBACK, proxies=NO_PROXY)
        urls = [f"http://127.0.0.1:{server.port}/{name}" for name in "abab"]
        bodies = [response.body for response in await asyncio.gather(*(fetched(client, url) for url in urls))]
        assert bodies == [b"a", b"b", b"a", b"b"]
