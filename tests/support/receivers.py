"""Receivers of notifications on real sockets, reviews to be sent to them, and the process that sends."""

import asyncio
import email
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import msgspec
import openai
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from machine_parts import UnderJob, make_job
from overnight.domain import new_id
from overnight.keys import MasterKeys
from overnight.ledger import SinkConsumer
from overnight.notifications import Addresses, DeliveryFilter, MessageSender, NewAddress, NotificationSink
from overnight.notifications.messages import delivery_id_of
from overnight.notifications.rows import DELIVERY, DeliveryRow
from overnight.outgoing import AddressPolicy
from overnight.reviews import ReviewRow, request_review
from overnight.store import Store

LOCAL = AddressPolicy.of(("127.0.0.0/8",))
PUBLIC_URL = "https://overnight.example.com"
_SDK = openai.OpenAI(api_key="unused")


class Arrival:
    """One request: `headers` in lower case."""

    def __init__(self, path: str, headers: dict[str, str], body: bytes) -> None:
        self.path, self.headers, self.body = path, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def is_signed_by(self, secret: str) -> bool:
        """Whether an independent implementation of Standard Webhooks accepts the signature."""
        try:
            _SDK.webhooks.verify_signature(self.body, self.headers, secret=secret)
        except openai.InvalidWebhookSignatureError:
            return False
        return True


class Receiver:
    """Takes POST requests. `answers` are (status, headers) for the next ones, then 200; "hang" never answers, "reset" closes."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.answers: list[Any] = []
        self.news = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks/T000/B000/very-secret-path"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
            }
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.arrivals.append(Arrival(head[0].split(" ")[1], headers, body))
            self.news.set()
            answer = self.answers.pop(0) if self.answers else 200
            if answer == "hang":
                await asyncio.sleep(60)
            if answer != "reset":
                status, more = answer if isinstance(answer, tuple) else (answer, {})
                lines = [f"HTTP/1.1 {status} X", "content-length: 2", *(f"{n}: {v}" for n, v in more.items()), "", "ok"]
                writer.write("\r\n".join(lines).encode())
                await writer.drain()
        writer.close()

    async def count(self, number: int) -> list[Arrival]:
        """The arrivals, once there are so many."""
        async with asyncio.timeout(20):
            while len(self.arrivals) < number:
                self.news.clear()
                await self.news.wait()
        return self.arrivals


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    served = Receiver()
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()


class Mailbox:
    """What a mail server took. `refuse` is its answer to the next messages, at the end of DATA."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.envelopes: list[Envelope] = []
        self.raw: list[bytes] = []
        self.refuse: list[str] = []
        self.users: list[tuple[str, str]] = []
        self.was_encrypted: list[bool] = []
        self.port = 0

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if self.refuse:
            return self.refuse.pop(0)
        content = envelope.content
        assert isinstance(content, bytes)
        self.raw.append(content)
        self.envelopes.append(envelope)
        mail = email.message_from_bytes(content, policy=default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        self.was_encrypted.append(session.ssl is not None)
        return "250 OK"

    def authenticate(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.users.append((data.login.decode(), data.password.decode()))
        return AuthResult(success=data.password == b"correct horse")


@asynccontextmanager
async def mail_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[Mailbox]:
    """A mail server. With `tls`, it requires STARTTLS and a password."""
    box, loop, options = Mailbox(), asyncio.get_running_loop(), dict[str, Any]()
    if tls is not None:
        options = {
            "tls_context": tls,
            "require_starttls": True,
            "auth_required": True,
            "authenticator": box.authenticate,
        }
    server = await loop.create_server(lambda: SMTP(box, loop=loop, hostname="mx", **options), "127.0.0.1", 0)
    box.port = server.sockets[0].getsockname()[1]
    try:
        yield box
    finally:
        server.close()


def masters(folder: Path) -> MasterKeys:
    return MasterKeys(None, folder, makes_file=True)


def addresses_of(store: Store, folder: Path, policy: AddressPolicy = LOCAL) -> Addresses:
    return Addresses(store, masters(folder), policy)


async def add(store: Store, folder: Path, tenant: str = "default", **fields: Any) -> str:
    """Register an address; the signing secret of a webhook."""
    _, secret = await addresses_of(store, folder).add(tenant, NewAddress(**fields), "ann")
    return secret or ""


def mail_fields(box: Mailbox, **more: Any) -> dict[str, Any]:
    return {
        "kind": "email",
        "to": ("ann@example.com",),
        "sender": "overnight@example.com",
        "server": "127.0.0.1",
        "port": box.port,
        "security": "none",
        **more,
    }


async def ask(
    store: Store, question: str = "Refund pay_8?", job_id: str = "", kind: str = "approval", **more: Any
) -> Any:
    """A review of a new job, or of this one."""
    detail = more.pop("detail", {"usd": 250})
    job_id = job_id or make_job(store, tenant_id=more.pop("tenant", "default"))

    def act(unit: Any, job: Any) -> ReviewRow:
        return request_review(unit, job, kind, question, detail, None, **more)

    return await store.commit(UnderJob(job_id, act))


@asynccontextmanager
async def sending(
    store: Store, folder: Path, owner: str = "w1", public_url: str = "", policy: AddressPolicy = LOCAL, **options: Any
) -> AsyncIterator[NotificationSink]:
    """A process that serves the sink during the block; retries come at once, unless the receiver asks for a time."""
    sender = MessageSender(masters(folder), policy, timeout_s=options.pop("timeout_s", 5.0))
    sink = NotificationSink(store, sender, owner, public_url)
    sink._dispatcher._delay = options.pop("delay", lambda attempt, asked: asked or 0.01)
    task = asyncio.create_task(SinkConsumer(store, sink, owner).run())
    try:
        yield sink
    finally:
        task.cancel()
        await asyncio.wait([task])


async def deliveries(store: Store, folder: Path, **wanted: Any) -> list[Any]:
    found = await addresses_of(store, folder).deliveries(DeliveryFilter(**wanted))
    return [row for row, _ in found]


async def ended(store: Store, folder: Path, count: int = 1) -> list[Any]:
    """The deliveries, once so many have ended."""
    async with asyncio.timeout(20):
        while True:
            found = await deliveries(store, folder)
            if sum(row.ended_at is not None for row in found) >= count:
                return found
            await asyncio.sleep(0.02)


class _Insert(msgspec.Struct):
    row: DeliveryRow

    def locks(self) -> list[tuple[Any, Any]]:
        return [(DELIVERY, self.row.delivery_id)]

    def decide(self, unit: Any) -> None:
        unit.insert(DELIVERY, self.row)


def failed_delivery(store: Store, tenant: str) -> str:
    """The id of a delivery that was given up."""
    review_id = new_id("rev")
    row = DeliveryRow(
        delivery_id=delivery_id_of(review_id, "adr_1"),
        tenant_id=tenant,
        address_id="adr_1",
        review_id=review_id,
        job_id="job_1",
        state="failed",
        attempts=9,
        created_at=1,
        due_at=1,
        give_up_at=2,
        ended_at=2,
    )
    store.commit_blocking(_Insert(row))
    return row.delivery_id
