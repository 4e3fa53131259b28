"""Deterministic failures: one attempt per target, then a fallback, and no cost for unserved calls."""

import asyncio
import datetime
import gzip
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from faulty_upstream import STREAM, FaultyUpstream, faulty_upstream, head, says
from overnight.store import Store, open_store
from serving import Served, serving

PRICE = "{input_usd_per_mtok: 1, output_usd_per_mtok: 1}"


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with open_store(str(tmp_path / "ledger.db")) as opened:
        yield opened


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of 127.0.0.1 with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    kept = tmp_path_factory.mktemp("tls") / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    kept.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return kept


class Peer:
    """A server whose connections are counted, and how many bytes of requests they brought."""

    def __init__(self) -> None:
        self.connections = self.received = self.port = 0


Speaks = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def reads(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Reads, and says nothing."""
    while await reader.read(65536):
        pass


@asynccontextmanager
async def peer(speaks: Speaks = reads, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    made = Peer()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.connections += 1
        try:
            await speaks(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # what is not read stays with its sender
    server = await asyncio.start_server(serve, sock=listening, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


@contextmanager
def wants_certificates(tls: ssl.SSLContext) -> Iterator[int]:
    """The port of a server in a thread, whose OpenSSL sends its alerts itself."""
    tls.verify_mode = ssl.CERT_REQUIRED
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                made, _ = listening.accept()
            except OSError:
                return
            with made, made.dup() as kept:  # closed later: a reset would take the alert with it
                with suppress(OSError):
                    tls.wrap_socket(made, server_side=True).close()
                with suppress(OSError):
                    while kept.recv(65536):
                        pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


def routing(bad: str, good: FaultyUpstream, more: str = "") -> str:
    return f"""
default_model: bad
fallbacks: [{{from: bad, to: good}}]
routes: {{alone: {{model: bad, fallbacks: []}}}}
retries: {{max_attempts: 3, backoff_ms: 1}}
breakers: {{failures: 0}}
providers:
  broken: {{base_url: '{bad}', models: [bad]}}
  house: {{base_url: '{good.base_url}', models: [good]}}
prices: {{bad: {PRICE}, good: {PRICE}}}
{more}"""


@asynccontextmanager
async def before(store: Store, url: str, more: str = "") -> AsyncIterator[Served]:
    """A gateway before a broken target at `url`, with a good one behind it."""
    async with faulty_upstream() as good, serving(store, good, routing(url, good, more)) as served:  # type: ignore[arg-type]
        yield served


class Tries(NamedTuple):
    """The failed tries of a job: their class and code, what each was booked at, and whether all was reserved."""

    kinds: list[str]
    costs: list[int]
    reserved: list[int]


async def tries(served: Served, job: str) -> Tries:
    events = [event.facts for event in await served.events(job)]
    failed = [facts for facts in events if facts.event == "model_failed"]
    reserved = {facts.call_id: facts.detail["reserved_microusd"] for facts in events if facts.event == "model_called"}
    return Tries(
        [f"{facts.error.error_class}: {facts.error.code}" for facts in failed],
        [(facts.cost_microusd or 0) + (facts.bound_microusd or 0) for facts in failed],
        [reserved[facts.call_id] for facts in failed],
    )


async def asked_once(served: Served, kind: str, *, billed: bool = False, stream: bool = False) -> str:
    """A call with a fallback and one without: each asks the broken target once. The message of the one without."""
    more = {"stream": True} if stream else {}
    saved = await served.ask(model="bad", headers={"x-job-id": "saved"}, **more)
    assert (saved.status_code, saved.headers.get("x-overnight-fallback")) == (200, "good"), saved.text
    alone = await served.ask(model="alone", headers={"x-job-id": "alone"}, **more)
    assert alone.status_code == 502, alone.text
    for job in ("saved", "alone"):
        found = await tries(served, job)
        assert found.kinds == [kind]
        assert found.costs == (found.reserved if billed else [0])
    return str(alone.json()["error"]["message"])


BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


# ── no connection ───────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
async def test_unknown_host_is_not_retried(store: Store, stream: bool) -> None:
    async with before(store, "https://models.invalid/v1") as served:
        message = await asked_once(served, "connection: unknown_host", stream=stream)
        assert "the host name is unknown" in message


@BOTH
async def test_untrusted_certificate_is_not_retried(store: Store, certificate: Path, stream: bool) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with peer(tls=context) as broken, before(store, f"https://localhost:{broken.port}/v1") as served:
        message = await asked_once(served, "connection: certificate_invalid", stream=stream)
        assert "self-signed certificate" in message


async def test_client_certificate_request_is_not_retried(
    store: Store, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS 1.3 says so only after the request was written."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.load_verify_locations(certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with wants_certificates(context) as port:
        async with before(store, f"https://localhost:{port}/v1") as served:
            await asked_once(served, "connection: tls_failed")


async def test_tls_to_a_plain_server_is_not_retried(store: Store) -> None:
    async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(head(400, "text/plain", "content-length: 0"))
        await writer.drain()

    async with peer(refuses) as plain, before(store, f"https://127.0.0.1:{plain.port}/v1") as served:
        message = await asked_once(served, "connection: tls_failed")
        assert "use http in base_url" in message
        assert plain.connections == 2


async def test_plain_http_to_a_tls_server_is_not_retried(store: Store) -> None:
    async def alert(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(bytes.fromhex("15030100020246"))  # fatal: protocol_version
        await writer.drain()

    async with peer(alert) as broken, before(store, f"http://127.0.0.1:{broken.port}/v1") as served:
        message = await asked_once(served, "malformed: not_http")
        assert "use https in base_url" in message
        assert broken.connections == 2


async def test_tls_required_response_is_not_retried(store: Store) -> None:
    page = b"<html><center>The plain HTTP request was sent to HTTPS port</center></html>"
    raw = head(400, "text/html", f"content-length: {len(page)}") + page
    async with faulty_upstream({"bad": says(raw)}) as bad, before(store, bad.base_url) as served:
        await asked_once(served, "connection: wrong_scheme")
        assert bad.asked["bad"] == 2


async def test_partially_sent_request_costs_nothing(store: Store) -> None:
    """The peer never reads, so most of a large request is still here when the deadline passes."""

    async def waits(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(20)

    more = "deadlines: {alone: 2000}"
    async with peer(waits) as broken, before(store, f"http://127.0.0.1:{broken.port}/v1", more) as served:
        answer = await served.ask("x" * 8_000_000, model="alone", headers={"x-job-id": "alone"})
        assert answer.status_code == 502
        found = await tries(served, "alone")
        assert (set(found.kinds), sum(found.costs)) == ({"connection: send_timeout"}, 0)


# ── no answer ───────────────────────────────────────────────────────────────────────────────────────────────────────

GZIP = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xff\xff"  # a head, and no gzip
BOMB = gzip.compress(bytes(4 * 1024 * 1024))
SETTINGS = bytes.fromhex("000006040000000000000400100000")
# what the peer says → class and code, and whether it may have served the request
ANSWERS: dict[str, tuple[bytes, str, bool]] = {
    "a redirect to itself": (
        head(307, "text/plain", "location: /v1/chat/completions", "content-length: 0"),
        "malformed: http_307",
        False,
    ),
    "a redirect elsewhere": (
        head(301, "text/plain", "location: https://elsewhere.invalid/?token=s3cr3t", "content-length: 0"),
        "malformed: http_301",
        False,
    ),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", "malformed: http_204", False),
    "an empty body": (head(200, "application/json", "content-length: 0"), "malformed: empty_body", True),
    "a page": (head(200, "text/html", "content-length: 14") + b"<html>hi</html"[:14], "malformed: invalid_json", True),
    "broken gzip": (
        head(200, "application/json", "content-encoding: gzip", f"content-length: {len(GZIP)}") + GZIP,
        "malformed: malformed_response",
        True,
    ),
    "a broken gzip stream": (
        STREAM.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n") + b"c\r\n" + GZIP + b"\r\n0\r\n\r\n",
        "malformed: malformed_response",
        True,
    ),
    "an unknown encoding": (
        head(200, "application/json", "content-encoding: compress", "content-length: 4") + b"\x1f\x9d\x90{",
        "malformed: malformed_response",
        True,
    ),
    "a compression bomb": (
        head(200, "application/json", "content-encoding: gzip", f"content-length: {len(BOMB)}") + BOMB,
        "malformed: response_too_large",
        True,
    ),
    "an SSH server": (b"SSH-2.0-OpenSSH_9.6\r\n", "malformed: not_http", False),
    "a mail server": (b"220 mail.example ESMTP ready\r\n", "malformed: not_http", False),
    "bytes": (bytes(range(256)), "malformed: not_http", False),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "malformed: not_http", False),
    "frames of HTTP/2": (SETTINGS, "malformed: not_http", False),
    "an upgrade": (
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
        "malformed: not_http",
        False,
    ),
    "two lengths": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        "malformed: malformed_response",
        True,
    ),
}


@BOTH
@pytest.mark.parametrize("name", ANSWERS)
async def test_deterministic_answers_are_not_retried(store: Store, name: str, stream: bool) -> None:
    raw, kind, billed = ANSWERS[name]
    async with AsyncExitStack() as stack:
        bad = await stack.enter_async_context(faulty_upstream({"bad": says(raw)}))
        good = await stack.enter_async_context(faulty_upstream())
        served = await stack.enter_async_context(serving(store, good, routing(bad.base_url, good)))  # type: ignore[arg-type]
        message = await asked_once(served, kind, billed=billed, stream=stream)
        assert bad.asked["bad"] == 2  # once for each of the two calls
        assert "s3cr3t" not in message


@BOTH
@pytest.mark.parametrize(("status", "kind"), [(503, "overloaded: http_503"), (401, "auth: http_401")])
async def test_undecodable_error_is_classified_by_status(store: Store, status: int, kind: str, stream: bool) -> None:
    raw = head(status, "application/json", "content-encoding: gzip", f"content-length: {len(GZIP)}") + GZIP
    async with faulty_upstream({"bad": says(raw)}) as bad, before(store, bad.base_url) as served:
        answer = await served.ask(model="alone", headers={"x-job-id": "j"}, stream=stream)
        assert answer.status_code in (502, 503)
        found = await tries(served, "j")
        assert found.kinds == [kind] * (3 if status == 503 else 1) == [kind] * bad.asked["bad"]
        assert sum(found.costs) == 0
