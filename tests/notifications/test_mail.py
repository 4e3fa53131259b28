"""Mail: over STARTTLS with a password, to a real SMTP server; nothing of a review becomes a header or a command."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from certificates import Authority
from overnight.domain import BadInput
from overnight.notifications import Delivered, NewAddress, NotDelivered
from overnight.notifications.messages import sample_message
from overnight.notifications.outcomes import OutcomeUnknown
from overnight.notifications.rows import AddressOptions
from overnight.notifications.smtp import MailSender
from overnight.outgoing import AddressPolicy, TlsFiles
from overnight.store import Store
from receivers import LOCAL, PUBLIC_URL, add, addresses_of, ask, ended, mail_fields, mail_server, sending

HOSTILE = "Refund?\r\nBcc: eve@example.com\r\n\r\n<script>alert(1)</script>\r\n.\r\nMAIL FROM:<eve@example.com>\r\n\u202egnp.exe"


async def test_review_is_mailed_with_its_id(store: Store, tmp_path: Path) -> None:
    async with mail_server() as box:
        await add(store, tmp_path, name="ops", **mail_fields(box))
        async with sending(store, tmp_path, public_url=PUBLIC_URL):
            review = await ask(store)
            [row] = await ended(store, tmp_path)
    [mail] = box.mails
    assert row.state == "delivered"
    assert mail["Message-ID"] == f"<{row.delivery_id}@example.com>"
    assert (mail["To"], mail["Subject"]) == ("ann@example.com", "[Overnight] approval: Refund pay_8?")
    text = mail.get_content()
    assert '"usd": 250' in text
    assert review.review_id in text
    assert f"{PUBLIC_URL}/reviews/" in text
    assert mail.get_content_type() == "text/plain"


async def test_hostile_texts_stay_texts(store: Store, tmp_path: Path) -> None:
    async with mail_server() as box:
        await add(store, tmp_path, name="ops", **mail_fields(box))
        async with sending(store, tmp_path):
            await ask(store, HOSTILE, detail={"to": HOSTILE, "dots": ".\r\n..\n"})
            await ended(store, tmp_path)
    [mail] = box.mails
    assert box.envelopes[0].rcpt_tos == ["ann@example.com"]
    assert mail["Bcc"] is None
    assert "\n" not in mail["Subject"]
    assert "Bcc: eve@example.com" in mail.get_content()
    assert "\u202e" not in mail.get_content()


async def test_refused_mail_is_repeated_and_a_final_refusal_is_not(store: Store, tmp_path: Path) -> None:
    async with mail_server() as box:
        box.refuse = ["451 try again", "421 later"]
        await add(store, tmp_path, name="ops", **mail_fields(box))
        async with sending(store, tmp_path):
            await ask(store)
            [row] = await ended(store, tmp_path)
            assert (row.state, row.attempts, len(box.mails)) == ("delivered", 3, 1)
            box.refuse = ["550 no such user\u0000"]
            await ask(store)
            rows = await ended(store, tmp_path, 2)
    [failed] = [each for each in rows if each.state == "failed"]
    assert failed.attempts == 1
    assert "550 no such user" in failed.problem


def options(port: int, **more: object) -> AddressOptions:
    fields = {"to": ("ann@example.com",), "sender": "o@example.com", "server": "127.0.0.1", "port": port, **more}
    return AddressOptions(**fields)  # pyright: ignore[reportArgumentType]


async def test_starttls_and_password_are_used(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    message = sample_message("default", "msg_1", 1_000_000)
    trusted, untrusted = (MailSender(LOCAL, tls=each) for each in (TlsFiles(ca=str(authority.ca)), TlsFiles()))
    async with mail_server(context) as box:
        how = options(box.port, username="overnight")
        assert isinstance(await trusted.send(message, how, "correct horse", 1_000_000, 10), Delivered)
        assert (box.users, box.was_encrypted) == ([("overnight", "correct horse")], [True])
        wrong = await trusted.send(message, how, "wrong-secret", 1_000_000, 10)
        assert isinstance(wrong, NotDelivered)
        assert ("535" in wrong.why, "wrong-secret" in wrong.why) == (True, False)
        tries = len(box.users)
        other = await untrusted.send(message, how, "correct horse", 1_000_000, 10)
        assert isinstance(other, NotDelivered)
        assert "certificate" in other.why
        assert len(box.users) == tries, "a password is sent after the certificate is checked"
    async with mail_server() as plain:
        refused = await trusted.send(message, options(plain.port), "", 1_000_000, 10)
        assert isinstance(refused, NotDelivered), "a server without STARTTLS gets no mail"
        assert plain.mails == []


async def test_private_mail_server_is_refused() -> None:
    async with mail_server() as box:
        outcome = await MailSender(AddressPolicy()).send(
            sample_message("default", "msg_1", 1), options(box.port, security="none"), "", 1, 10
        )
    assert isinstance(outcome, NotDelivered)
    assert "not public" in outcome.why
    assert box.mails == []


@asynccontextmanager
async def odd_server(*answers: bytes) -> AsyncIterator[int]:
    """The port of a server that gives these answers, and closes the connection after the message; without any, it is silent."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            writer.write(answer + b"\r\n")
            await reader.readline()
        if answers:
            await reader.readuntil(b"\r\n.\r\n")
        else:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_connection_lost_after_the_message_leaves_the_outcome_unknown() -> None:
    sample = sample_message("default", "msg_1", 1)
    async with odd_server(b"220 hi", b"250 hi", b"250 ok", b"250 ok", b"354 go") as port:
        outcome = await MailSender(LOCAL).send(sample, options(port, security="none"), "", 1, 10)
    assert isinstance(outcome, OutcomeUnknown)


async def test_silent_server_ends_at_the_time_limit() -> None:
    sample = sample_message("default", "msg_1", 1)
    async with odd_server() as port:
        outcome = await MailSender(LOCAL).send(sample, options(port, security="none"), "", 1, 0.3)
    assert isinstance(outcome, NotDelivered)
    assert "no answer" in outcome.why


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("to", ("ann@example.com\r\nBcc: eve@example.com",)),
        ("to", ("ann@example.com, eve@example.com",)),
        ("to", ()),
        ("sender", "Overnight <o@example.com>"),
        ("server", "smtp.example.com\r\n"),
        ("security", "maybe"),
        ("username", "only"),
        ("port", 0),
    ],
)
async def test_invalid_mail_addresses_are_refused(store: Store, tmp_path: Path, field: str, value: object) -> None:
    fields = {"to": ("ann@example.com",), "sender": "o@example.com", "server": "smtp.example.com", field: value}
    with pytest.raises(BadInput, match=field):
        await addresses_of(store, tmp_path).add("default", NewAddress(name="ops", kind="email", **fields), "ann")
