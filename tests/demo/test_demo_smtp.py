"""The replies of the demo: no header injection, and a mail server that reports their delivery."""

import contextlib
import email
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email import policy
from email.header import decode_header, make_header
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.demo import (
    IncomingMail,
    NotSent,
    SendDeferred,
    SendRefused,
    SendUnknown,
    compose_reply,
    count_by_message_id,
    create_maildir,
    demo_expected,
    demo_mails,
    find_by_message_id,
    read_mail,
    send_mail,
)

SHOP = "hello@tallowandtide.test"
SENT_AT = datetime(2026, 11, 21, 5, 0, tzinfo=UTC)
CORPUS = demo_mails()
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def mail_number(number: int) -> IncomingMail:
    key = next(key for key in CORPUS if f".M{number:03d}" in key)
    return read_mail(key, CORPUS[key])


# ── replies ─────────────────────────────────────────────────────────────────────────────────────────────────────────

REPLY_HEADERS = {
    "from",
    "to",
    "subject",
    "date",
    "message-id",
    "in-reply-to",
    "references",
    "auto-submitted",
    "content-type",
    "content-transfer-encoding",
    "mime-version",
}


def assert_clean_reply(reply: bytes, recipient: str, text: str) -> None:
    """Both parsers of the library and a plain look at the lines agree that nothing was added."""
    for rules in (policy.default, policy.compat32):
        message = email.message_from_bytes(reply, policy=rules)
        names = [name.lower() for name in message]
        assert set(names) <= REPLY_HEADERS
        assert len(names) == len(set(names))
        assert message["To"] == recipient
        assert not message.is_multipart()
        body = message.get_payload(decode=True)
        assert isinstance(body, bytes)
        assert body.decode(message.get_content_charset() or "ascii").replace("\r\n", "\n").strip() == text.strip()
    head = reply.partition(b"\r\n\r\n")[0]
    names = {line.partition(b":")[0].decode().lower() for line in head.split(b"\r\n") if not line.startswith(b" ")}
    assert names <= REPLY_HEADERS
    assert b"\n" not in head.replace(b"\r\n", b"")
    assert b"\r" not in head.replace(b"\r\n", b"")
    assert reply.isascii()
    assert max(map(len, reply.split(b"\r\n"))) <= 998


@pytest.mark.parametrize("key", [key for key, expected in demo_expected().items() if expected.answer])
def test_replies_to_the_corpus_are_clean(key: str) -> None:
    mail = read_mail(key, CORPUS[key])
    text = "Grüße, 佐藤\n.\n..two dots\nFrom here on\n" + "long " * 400
    reply = compose_reply(mail, text, f"<{key}@tallowandtide.test>", sent_at=SENT_AT)
    assert_clean_reply(reply, mail.sender, text)
    assert reply == compose_reply(mail, text, f"<{key}@tallowandtide.test>", sent_at=SENT_AT)


INJECTIONS = st.sampled_from(
    [
        "\r\nBcc: evil@example.test",
        "\nX-Evil: 1",
        "\rTo: evil@example.test",
        "=?utf-8?Q?=0D=0ABcc:_evil@example.test?=",
        "=?utf-8?B?DQpCY2M6IGV2aWxAZXhhbXBsZS50ZXN0?=",
        "\u2028Bcc: evil@example.test",
        "\x00\x0b\x0c\x85",
        "\ud800",
        "\r\n\r\nbody",
        "=?us-ascii?Q?=3D=3Futf-8=3FQ=3F=0D=0ABcc=3A?=",
    ]
)
HOSTILE = st.lists(st.text(max_size=30) | INJECTIONS, max_size=6).map("".join)


@settings(max_examples=200, deadline=None)
@given(subject=HOSTILE, name=HOSTILE, ids=st.lists(st.from_regex(r"<[!-;=?-~]{1,240}>", fullmatch=True), max_size=4))
def test_no_mail_can_inject_a_reply_header(subject: str, name: str, ids: list[str]) -> None:
    mail = IncomingMail(
        key="k", sender="a@example.com", sender_name=name, subject=subject, message_id="<m@x>", references=tuple(ids)
    )
    reply = compose_reply(mail, "Hello", "<r@tallowandtide.test>", sent_at=SENT_AT, name=name)
    assert_clean_reply(reply, "a@example.com", "Hello")
    message = email.message_from_bytes(reply, policy=policy.compat32)
    assert message["Message-ID"] == "<r@tallowandtide.test>"
    shown = str(make_header(decode_header(message["Subject"].replace("\r\n", ""))))
    assert not CONTROL.search(shown)
    assert message["References"].split() == list(dict.fromkeys([*ids, "<m@x>"]))


def test_a_reply_continues_the_thread() -> None:
    message = email.message_from_bytes(
        compose_reply(mail_number(8), "Yes", "<r@tallowandtide.test>", sent_at=SENT_AT), policy=policy.default
    )
    assert message["Subject"] == "Re: Your order TT-10497 has been shipped"
    assert message["In-Reply-To"] == "<20261120225230.77B0@example.com>"
    assert message["References"].split()[-1] == message["In-Reply-To"]
    assert len(message["References"].split()) == 3


@pytest.mark.parametrize(
    "subject", ["Größe? 佐藤 " * 10 + "x", "plain words " * 15 + "x", "w" * 180, "=?a?q?b?= as text", "re"]
)
def test_subject_round_trips(subject: str) -> None:
    reply = compose_reply(
        IncomingMail(key="k", sender="a@example.com", subject=f"AW: Re: {subject}"), "Hi", "<r@x>", sent_at=SENT_AT
    )
    assert read_mail("k", reply).subject == f"Re: {subject}"
    assert max(map(len, reply.split(b"\r\n"))) <= 200


def refusals() -> Iterator[Any]:
    plain = IncomingMail(key="k", sender="a@example.com")
    yield pytest.param(mail_number(31), {}, "to a list|by a program", id="newsletter")
    yield pytest.param(mail_number(33), {}, "to a list", id="mailing list")
    yield pytest.param(mail_number(34), {}, "by a program", id="out of office")
    yield pytest.param(IncomingMail(key="k"), {}, "no valid reply address", id="no sender")
    yield pytest.param(IncomingMail(key="k", sender=SHOP.upper()), {}, "to the shop itself", id="loop")
    yield pytest.param(IncomingMail(key="k", sender="a@x\r\nBcc: b@x"), {}, "not a plain address", id="sender")
    yield pytest.param(plain, {"message_id": "<a@b>\r\nBcc: x@y"}, "not a Message-ID", id="message id")
    yield pytest.param(plain, {"shop": "a@b\nBcc: x@y"}, "not a plain address", id="shop")
    yield pytest.param(plain, {"body": " \n"}, "has 0 characters", id="empty")
    yield pytest.param(plain, {"body": "x" * 50_001}, "expected 1 to 50000", id="long")


@pytest.mark.parametrize(("mail", "changes", "problem"), list(refusals()))
def test_forbidden_replies_are_rejected(mail: IncomingMail, changes: dict[str, str], problem: str) -> None:
    arguments: dict[str, Any] = {"body": "Hello", "message_id": "<r@x>", "sent_at": SENT_AT} | changes
    with pytest.raises(ValueError, match=problem):
        compose_reply(mail, **arguments)


# ── the mail server ─────────────────────────────────────────────────────────────────────────────────────────────────


class Server:
    def __init__(self, process: subprocess.Popen[str], maildir: Path) -> None:
        self.process = process
        self.maildir = maildir
        self.port = int(self.line()["port"])

    def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def send(self, mail: bytes, recipients: tuple[str, ...] = ("a@example.com",)) -> str:
        return send_mail("127.0.0.1", self.port, mail, SHOP, recipients)

    def only_mail(self) -> bytes:
        (place,) = (self.maildir / "new").iterdir()
        return place.read_bytes()


@contextlib.contextmanager
def running_server(maildir: Path, *options: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "overnight.demo.mail_server", "--maildir", str(maildir), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Server(process, maildir)
        finally:
            process.kill()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path / "sent") as running:
        yield running


def test_round_trip_with_8_bit_dots_and_long_lines(server: Server) -> None:
    body = "Grüße\n.\n.hidden\n..\nFrom me\n".encode() + b"\xff\xfe\n" + b"y" * 30_000 + b"\nbare\rreturn\nend"
    mail = b"Subject: \xe4\nMessage-ID: <rt@tallowandtide.test>\n\n" + body
    answer = server.send(mail, ("a@example.com", "b@example.com"))
    received = server.only_mail()
    assert received.startswith(
        b"Return-Path: <hello@tallowandtide.test>\r\nDelivered-To: a@example.com\r\nDelivered-To: b"
    )
    assert received.endswith(re.sub(rb"\r\n|\r|\n", b"\r\n", mail) + b"\r\n")
    name = find_by_message_id(server.maildir, "<rt@tallowandtide.test>")
    assert name is not None
    assert name in answer


def test_the_whole_corpus_is_answered_over_the_wire(server: Server) -> None:
    for key, data in CORPUS.items():
        if demo_expected()[key].answer:
            mail = read_mail(key, data)
            server.send(compose_reply(mail, "Grüße", f"<{key}@x.test>", sent_at=SENT_AT), (mail.sender,))
    answered = [key for key, expected in demo_expected().items() if expected.answer]
    assert count_by_message_id(server.maildir) == {f"<{key}@x.test>": 1 for key in answered}
    assert all(read_mail("k", place.read_bytes()).text == "Grüße" for place in (server.maildir / "new").iterdir())


def test_a_mail_is_on_disk_before_it_is_acknowledged(tmp_path: Path) -> None:
    client = "import sys; from overnight.demo import send_mail; send_mail('127.0.0.1', int(sys.argv[1]), \
        sys.argv[2].encode(), 'a@example.com', ['b@example.com'])"
    with running_server(tmp_path, "--pause-after", "2", "--pause-ms", "60000") as server:
        server.send(b"Message-ID: <1@x>\n\n")
        sending = subprocess.Popen([sys.executable, "-c", client, str(server.port), "Message-ID: <2@x>\n\n"])
        assert server.line() == {"accepted": 2}
        assert sending.poll() is None
        sending.kill()
        sending.wait()
        assert count_by_message_id(tmp_path) == {"<1@x>": 1, "<2@x>": 1}
        assert list((tmp_path / "tmp").iterdir()) == []
        server.send(b"Message-ID: <3@x>\n\n")
        assert find_by_message_id(tmp_path, "<3@x>")


def test_server_death_before_its_answer_is_unknown(tmp_path: Path) -> None:
    with running_server(tmp_path, "--pause-after", "1", "--pause-ms", "60000") as server, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(server.send, b"Message-ID: <1@x>\n\n")
        assert server.line() == {"accepted": 1}
        server.process.kill()
        with pytest.raises(SendUnknown, match="may have been accepted"):
            sending.result()
        assert find_by_message_id(tmp_path, "<1@x>")


def test_permanent_and_temporary_rejections_differ(server: Server) -> None:
    with pytest.raises(SendRefused, match="552"):
        server.send(b"x\n" * 1_500_000)
    with pytest.raises(SendRefused, match="500 Line too long"):
        server.send(b"x" * 100_000)
    for address in ("a@x\r\nRCPT TO:<evil@example.test>", "a@x> SIZE=1", "ü@example.com", "", "a"):
        with pytest.raises(SendRefused, match="not a valid address"):
            server.send(b"x", (address,))
    (server.maildir / "tmp").rmdir()
    with pytest.raises(SendDeferred, match="451"):
        server.send(b"Message-ID: <later@x>\n\n")
    create_maildir(server.maildir)
    assert count_by_message_id(server.maildir) == {}
    server.send(b"Message-ID: <later@x>\n\n")
    assert count_by_message_id(server.maildir) == {"<later@x>": 1}


def test_server_ends_with_its_parent(server: Server) -> None:
    assert server.process.stdin is not None
    server.process.stdin.close()
    assert server.process.wait(30) == 0
    with pytest.raises(NotSent, match="no connection"):
        server.send(b"x")


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ([], NotSent),
        (["421 busy"], SendDeferred),
        (["554 go away"], SendRefused),
        (["220 hi"], NotSent),
        (["220 hi", "250 ok", "250 ok", "550 no such user"], SendRefused),
        (["220 hi", "250 ok", "250 ok", "450 greylisted"], SendDeferred),
        (["220 hi", "250 ok", "250 ok", "250 ok"], NotSent),
        (["220 hi", "250 ok", "250 ok", "250 ok", "354 go"], SendUnknown),
        (["220 hi", "250 ok", "250 ok", "250 ok", "354 go", "gibberish"], SendUnknown),
        (["220 hi", "250 ok", "250 ok", "250 ok", "354 go", "421 closing"], SendDeferred),
        (["220 hi", "250 ok", "250 ok", "250 ok", "354 go", "554 spam"], SendRefused),
        (["220 hi", "250 ok", "250 ok", "250 ok", "354 go", "250 " + "x" * 20_000], SendUnknown),
    ],
)
def test_every_end_of_a_conversation_is_classified(answers: list[str], outcome: type[Exception]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def play() -> None:
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as lines:
                for number, answer in enumerate(answers):
                    if number:
                        end = b".\r\n" if answers[number - 1].startswith("354") else b"\r\n"
                        while not lines.readline().endswith(end):
                            pass
                    connection.sendall(answer.encode() + b"\r\n")
                if answers and answers[-1].startswith("354"):
                    lines.readline()

        playing = threading.Thread(target=play)
        playing.start()
        with pytest.raises(outcome) as caught:
            send_mail("127.0.0.1", listening.getsockname()[1], b"Subject: x\n\nx", SHOP, ["a@example.com"])
        playing.join()
    assert type(caught.value) is outcome
