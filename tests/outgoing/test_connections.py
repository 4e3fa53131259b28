"""Connections on real sockets: addresses that race, proxies, certificates of servers and clients."""

import asyncio
import base64
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from certificates import Authority
from http_proxy import HttpProxy, http_proxy
from overnight.outgoing import (
    BodyCut,
    EnvironmentProxies,
    NeverSent,
    Proxy,
    ProxyInvalid,
    TlsFileInvalid,
    TlsFiles,
    Unreachable,
    UpstreamError,
    UpstreamPool,
    UpstreamResponse,
    parse_proxy,
    tls_context,
)
from overnight.outgoing.dialer import Resolve
from overnight.outgoing.proxies import NoProxy
from web_server import answer, web_server

LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
Loop = Callable[[], asyncio.AbstractEventLoop]


def run(new_loop: Loop, test: Any) -> None:
    """Run a coroutine on a kind of loop; an error lost in a callback fails."""
    lost: list[Any] = []
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: lost.append(context))
        runner.run(asyncio.wait_for(test, 20))
    assert [each for each in lost if not isinstance(each.get("exception"), asyncio.CancelledError)] == []


async def get(pool: UpstreamPool, times: int = 1) -> UpstreamResponse:
    """The answer to the last of several requests; closes the pool."""
    try:
        for _ in range(times):
            found = await pool.request("GET", "/", [], b"", asyncio.get_running_loop().time() + 10)
        return found
    finally:
        await pool.close()


async def failed(pool: UpstreamPool) -> UpstreamError:
    with pytest.raises(UpstreamError) as raised:
        await get(pool)
    return raised.value


# ── addresses that race ─────────────────────────────────────────────────────────────────────────────────────────────


def finds(*places: tuple[int, str, int]) -> Resolve:
    async def find(_host: str, _port: int) -> list[Any]:
        return [
            (family, socket.SOCK_STREAM, 6, "", (host, port, 0, 0) if family == socket.AF_INET6 else (host, port))
            for family, host, port in places
        ]

    return find


@LOOPS
def test_unreachable_ipv6_address_is_skipped(new_loop: Loop) -> None:
    """A name with ::1, where no server listens, and 127.0.0.1."""

    async def test() -> None:
        async with web_server() as server:
            places = (socket.AF_INET6, "::1", server.port), (socket.AF_INET, "127.0.0.1", server.port)
            pool = UpstreamPool(f"http://models.example:{server.port}", resolver=finds(*places))
            assert (await get(pool)).body == b"ok"
            assert b"host: models.example" in server.requests[0]

    run(new_loop, test())


@LOOPS
def test_silent_address_is_raced_by_the_next_one(new_loop: Loop) -> None:
    """The first address drops packets: its backlog is full. The second is tried long before the time limit."""

    async def test() -> None:
        silent = socket.create_server(("127.0.0.2", 0), backlog=0)
        port = silent.getsockname()[1]
        fillers = []
        for _ in range(8):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.2", port))
            fillers.append(filler)
        await asyncio.sleep(0)
        async with web_server(host="127.0.0.1", port=port):
            places = (socket.AF_INET, "127.0.0.2", port), (socket.AF_INET, "127.0.0.1", port)
            pool = UpstreamPool(f"http://models.example:{port}", resolver=finds(*places), connect_timeout_s=9)
            assert (await get(pool)).body == b"ok"
        for each in [silent, *fillers]:
            each.close()

    run(new_loop, test())


@LOOPS
def test_host_without_reachable_address_is_never_sent(new_loop: Loop) -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        places = (socket.AF_INET6, "::1", port), (socket.AF_INET, "127.0.0.1", port)
        error = await failed(UpstreamPool(f"http://models.example:{port}", resolver=finds(*places)))
        assert isinstance(error, NeverSent)
        assert "cannot connect" in str(error)
        error = await failed(UpstreamPool(f"http://models.example:{port}", resolver=finds()))
        assert "has no address" in str(error)

    run(new_loop, test())


# ── proxies ─────────────────────────────────────────────────────────────────────────────────────────────────────────

SECRET = "us er:p@ss%word"
IN_URL = "us%20er:p%40ss%25word"


def admits(proxy: HttpProxy) -> None:
    proxy.credentials = SECRET
    proxy.hosts = {"models.example": "127.0.0.1"}


def through(proxy: HttpProxy, credentials: str = f"{IN_URL}@", scheme: str = "http", host: str = "127.0.0.1") -> Proxy:
    return parse_proxy(f"{scheme}://{credentials}{host}:{proxy.port}", "HTTPS_PROXY")


@LOOPS
def test_https_goes_through_a_tunnel(new_loop: Loop, tmp_path: Path) -> None:
    async def test() -> None:
        authority = Authority(tmp_path)
        async with web_server(tls=authority.serving("models.example")) as server, http_proxy(admits) as proxy:
            context = tls_context(TlsFiles(ca=str(authority.ca)))
            pool = UpstreamPool(f"https://models.example:{server.port}", ssl_context=context, proxy=through(proxy))
            assert (await get(pool, times=3)).body == b"ok"
            assert proxy.asked == [f"CONNECT models.example:{server.port}"]  # kept alive
            assert b"proxy-authorization" not in server.requests[0]
            assert server.requests[0].startswith(b"GET / HTTP/1.1\r\n")

    run(new_loop, test())


@LOOPS
def test_lost_tunnel_is_detected(new_loop: Loop, tmp_path: Path) -> None:
    """A body that is cut fails at once, and a tunnel that the server closed is not used again."""

    async def test() -> None:
        authority = Authority(tmp_path)
        good = answer(b"ok", "connection: close")
        cut = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 9\r\n\r\ncut"
        answers = {"/": good, "/cut": cut}
        async with web_server(answers, tls=authority.serving("models.example")) as server, http_proxy(admits) as proxy:
            context = tls_context(TlsFiles(ca=str(authority.ca)))
            pool = UpstreamPool(f"https://models.example:{server.port}", ssl_context=context, proxy=through(proxy))
            soon = asyncio.get_running_loop().time() + 10
            assert (await pool.request("GET", "/", [], b"", soon)).body == b"ok"
            with pytest.raises(BodyCut):
                await pool.request("GET", "/cut", [], b"", soon)
            assert (await get(pool)).body == b"ok"
            assert len(proxy.asked) == 3

    run(new_loop, test())


@LOOPS
def test_https_goes_through_a_proxy_with_tls(new_loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        authority = Authority(tmp_path)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
        async with (
            web_server({"/": answer(bytes(300_000))}, tls=authority.serving("models.example")) as server,
            http_proxy(admits, tls=authority.serving("127.0.0.1")) as proxy,
        ):
            pool = UpstreamPool(f"https://models.example:{server.port}", proxy=through(proxy, scheme="https"))
            assert (await get(pool, times=2)).body == bytes(300_000)
            assert proxy.asked == [f"CONNECT models.example:{server.port}"]

    run(new_loop, test())


@LOOPS
def test_http_goes_to_the_proxy_in_absolute_form(new_loop: Loop) -> None:
    async def test() -> None:
        async with web_server({"/v1/": answer(b"ok")}) as server, http_proxy(admits) as proxy:
            pool = UpstreamPool(f"http://models.example:{server.port}/v1", proxy=through(proxy))
            assert (await get(pool, times=2)).body == b"ok"
            assert proxy.asked == [f"GET http://models.example:{server.port}/v1/"] * 2
            wanted = b"proxy-authorization: Basic " + base64.b64encode(SECRET.encode())
            assert all(wanted in head for head in proxy.heads)
            assert b"host: models.example" in server.requests[0]

    run(new_loop, test())


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("credentials", ["", "us:s3cret@"])
async def test_missing_proxy_credentials_are_named_and_not_shown(scheme: str, credentials: str) -> None:
    async with http_proxy(admits) as proxy:
        error = await failed(UpstreamPool(f"{scheme}://models.example", proxy=through(proxy, credentials)))
        assert isinstance(error, Unreachable)
        assert (error.code, error.sent) == ("proxy_refused", False)
        assert f"proxy 127.0.0.1:{proxy.port} answered 407" in str(error)
        assert "s3cret" not in str(error) + repr(through(proxy, credentials))
        assert ("add user:password@" in str(error)) == (not credentials)


@pytest.mark.parametrize(("status", "permanent"), [(403, True), (404, True), (302, True), (502, False), (503, False)])
async def test_refused_tunnel_is_never_sent(status: int, permanent: bool) -> None:
    async with http_proxy(lambda proxy: setattr(proxy, "refuse", status)) as proxy:
        error = await failed(UpstreamPool("https://models.example", proxy=through(proxy)))
        assert isinstance(error, NeverSent)
        assert isinstance(error, Unreachable) == permanent
        assert f"answered {status}" in str(error)


@pytest.mark.parametrize("raw", [
    b"", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\nextra",
    b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 9000,
])  # fmt: skip
async def test_invalid_proxy_response_is_never_sent(raw: bytes) -> None:
    async with http_proxy(lambda proxy: setattr(proxy, "raw_answer", raw)) as proxy:
        error = await failed(UpstreamPool("https://models.example", proxy=through(proxy)))
        assert isinstance(error, NeverSent)
        assert "CONNECT" in str(error)


async def test_proxy_that_is_down_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    proxy = parse_proxy(f"http://u:s3cret@127.0.0.1:{port}", "HTTPS_PROXY")
    error = await failed(UpstreamPool("https://models.example", proxy=proxy))
    assert isinstance(error, NeverSent)
    assert f"proxy 127.0.0.1:{port}: cannot connect" in str(error)
    error = await failed(UpstreamPool("https://models.example", proxy=parse_proxy("proxy.invalid:3128", "x")))
    assert isinstance(error, Unreachable)
    assert "proxy proxy.invalid:3128: the host name is unknown" in str(error)


def chosen(environment: dict[str, str], url: str) -> str | None:
    scheme, _, rest = url.partition("://")
    host, _, port = rest.partition(" ")
    secure = scheme == "https"
    found = EnvironmentProxies(environment).proxy_for(host, int(port or (443 if secure else 80)), is_secure=secure)
    return found and found.origin


BOTH = {"HTTP_PROXY": "http://plain:1", "HTTPS_PROXY": "http://secure:2"}


@pytest.mark.parametrize(("environment", "url", "origin"), [
    ({}, "https://a.example", None),
    (BOTH, "https://a.example", "secure:2"),
    (BOTH, "http://a.example", "plain:1"),
    ({"http_proxy": "http://low:1"}, "http://a.example", "low:1"),
    (BOTH | {"https_proxy": "http://low:3"}, "https://a.example", "low:3"),
    (BOTH | {"https_proxy": ""}, "https://a.example", None),
    ({"ALL_PROXY": "http://all:4"}, "https://a.example", "all:4"),
    ({"all_proxy": "all:4"}, "http://a.example", "all:4"),
    (BOTH | {"ALL_PROXY": "socks5://x:9"}, "https://a.example", "secure:2"),
    ({"HTTP_PROXY": "http://plain:1"}, "https://a.example", None),
    ({"HTTPS_PROXY": "proxy.example"}, "https://a.example", "proxy.example:80"),
    ({"HTTPS_PROXY": "https://proxy.example/"}, "https://a.example", "proxy.example:443"),
    ({"HTTPS_PROXY": "http://[fd00::1]:8"}, "https://a.example", "[fd00::1]:8"),
    (BOTH | {"REQUEST_METHOD": "GET"}, "http://a.example", None),
    (BOTH | {"REQUEST_METHOD": "GET", "http_proxy": "http://low:1"}, "http://a.example", "low:1"),
    (BOTH, "http://localhost 8080", None),
    (BOTH, "http://127.0.0.3 8080", None),
    (BOTH, "http://::1 8080", None),
    (BOTH, "http://x.localhost", None),
    (BOTH | {"NO_PROXY": "*"}, "https://a.example", None),
    (BOTH | {"no_proxy": "a.example", "NO_PROXY": "other"}, "https://a.example", None),
    (BOTH | {"no_proxy": "", "NO_PROXY": "*"}, "https://a.example", "secure:2"),
])  # fmt: skip
def test_environment_selects_the_proxy(environment: dict[str, str], url: str, origin: str | None) -> None:
    assert chosen(environment, url) == origin


@pytest.mark.parametrize(("text", "hosts", "others"), [
    ("example.com", ["example.com", "EXAMPLE.com.", "a.b.example.com"], ["notexample.com", "example.com.evil.test"]),
    (".example.com", ["example.com", "a.example.com"], ["notexample.com"]),
    ("*.example.com", ["example.com", "a.example.com"], ["notexample.com"]),
    ("a.test, b.test c.test;", ["a.test", "b.test"], ["d.test"]),
    ("example.com:8443", ["example.com 8443"], ["example.com 443"]),
    ("https://example.com/", ["example.com"], []),
    ("10.0.0.0/8,192.168.1.5", ["10.1.2.3", "192.168.1.5", "::ffff:10.1.2.3"], ["11.0.0.1", "192.168.1.6", "10.example"]),
    ("10.0.0.5/8", ["10.1.2.3"], []),
    ("192.168.1.5:8080", ["192.168.1.5 8080"], ["192.168.1.5 80"]),
    ("fd00::/8,[::1]:80,2001:db8::1", ["fd12::1", "::1 80", "2001:db8::1"], ["fe80::1", "::1 81", "2001:db8::2"]),
    ("[fd00::1],internal", ["fd00::1", "internal", "a.internal"], ["fd00::2", "internally"]),
    ("", [], ["a.test"]),
    (" , ,, ", [], ["a.test"]),
    ("*", ["a.test", "10.0.0.1", "::1"], []),
    ("1.2.3", [], ["1.2.3.4"]),
])  # fmt: skip
def test_no_proxy_matches_its_hosts(text: str, hosts: list[str], others: list[str]) -> None:
    listed = NoProxy(text)

    def covers(host: str) -> bool:
        name, _, port = host.partition(" ")
        return listed.covers(name, int(port or 443))

    assert [host for host in hosts if not covers(host)] == []
    assert [host for host in others if covers(host)] == []


@pytest.mark.parametrize("text", [
    "socks5://u:s3cret@p:1", "ftp://u:s3cret@p", "http://", "http://u:s3cret@p:99999", "http://u:s3cret@p/path",
    "http://u:s3cret@p x", "http://u:s3cret@p?x=1", "http://u:s3cret@[p",
])  # fmt: skip
def test_invalid_proxy_error_contains_no_credentials(text: str) -> None:
    with pytest.raises(ProxyInvalid, match="HTTPS_PROXY") as raised:
        EnvironmentProxies({"HTTPS_PROXY": text}).proxy_for("a.example", 443, is_secure=True)
    assert "s3cret" not in str(raised.value)
    assert raised.value.__cause__ is None


# ── certificates ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_authority_and_client_certificate_are_used(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = (str(path) for path in authority.issue("client"))
    both = tmp_path / "both.pem"
    both.write_bytes(Path(key).read_bytes() + Path(cert).read_bytes())
    async with web_server(tls=authority.serving("127.0.0.1", wants_client=True)) as server:
        url = f"https://127.0.0.1:{server.port}"
        for files in (
            TlsFiles(ca=str(authority.ca), client_cert=cert, client_key=key),
            TlsFiles(ca=str(authority.ca), client_cert=str(both)),
        ):
            assert (await get(UpstreamPool(url, ssl_context=tls_context(files)))).body == b"ok"
        error = await failed(UpstreamPool(url, ssl_context=tls_context(TlsFiles(ca=str(authority.ca)))))
        assert isinstance(error, UpstreamError)
        assert server.requests == [server.requests[0]] * 2


@pytest.mark.parametrize("how", ["direct", "tunnel"])
async def test_unknown_authority_names_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    authority = Authority(tmp_path)
    async with web_server(tls=authority.serving("127.0.0.1")) as server, http_proxy() as proxy:
        url = f"https://127.0.0.1:{server.port}"
        by = through(proxy, "") if how == "tunnel" else None
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        error = await failed(UpstreamPool(url, proxy=by))
        assert isinstance(error, Unreachable)
        assert error.code == "certificate_invalid"
        assert "set SSL_CERT_FILE, or `ca` of the provider" in str(error)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
        assert "SSL_CERT_FILE names" in str(await failed(UpstreamPool(url, proxy=by)))
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
        assert (await get(UpstreamPool(url, proxy=by))).body == b"ok"


async def test_certificate_of_another_host_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with web_server(tls=authority.serving("other.example")) as server, http_proxy() as proxy:
        for by in (None, through(proxy, "")):
            context = tls_context(TlsFiles(ca=str(authority.ca)))
            error = await failed(UpstreamPool(f"https://127.0.0.1:{server.port}", ssl_context=context, proxy=by))
            assert isinstance(error, Unreachable)
            assert "not valid" in str(error)
            assert "SSL_CERT_FILE" not in str(error)
        assert server.requests == []


def test_invalid_tls_file_error_names_the_file(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    cert, key = authority.issue("client")
    _, locked = other.issue("locked", password=b"secret")
    _, foreign = other.issue("foreign")
    text = tmp_path / "text.pem"
    text.write_text("no PEM")
    for files, said in (
        (TlsFiles(ca=str(tmp_path / "missing.pem")), "ca: .*missing.pem: No such file"),
        (TlsFiles(ca=str(text)), "ca: .*text.pem: no certificate"),
        (TlsFiles(client_cert=str(tmp_path / "missing.pem")), "client_cert .*missing.pem: No such file"),
        (TlsFiles(client_cert=str(cert)), "client_cert .*client.crt: no certificate or key"),
        (TlsFiles(client_cert=str(cert), client_key=str(foreign)), "client_key .*foreign.key: .*do not match"),
        (TlsFiles(client_cert=str(cert), client_key=str(locked)), "the key is encrypted"),
    ):
        with pytest.raises(TlsFileInvalid, match=said):
            tls_context(files)
    assert isinstance(tls_context(TlsFiles(client_cert=str(cert), client_key=str(key))), ssl.SSLContext)
