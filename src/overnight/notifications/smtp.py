"""Mail: one message over one SMTP connection, to an address that the policy allows.

smtplib runs in a thread. The time limit holds for the whole delivery: when it is over, the socket is shut down, which ends the
thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import smtplib
import socket
import ssl
import threading
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any

from overnight.outgoing import AddressPolicy, TlsFiles, tls_context

from .messages import Message, readable_detail
from .outcomes import Delivered, NotDelivered, Outcome, OutcomeUnknown
from .rows import AddressOptions
from .texts import one_line

_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~.-]{{1,64}}@{_LABEL}(\.{_LABEL})*")
MAX_DETAIL = 20_000
SECURITY = ("starttls", "tls", "none")


def is_mail_address(text: str) -> bool:
    """Whether a text is a plain mail address. Quoted local parts and names beside the address are not allowed."""
    return len(text) <= 254 and _ADDRESS.fullmatch(text) is not None


def mail_of(message: Message, options: AddressOptions, now_us: int) -> bytes:
    """The mail as plain text, in lines that end with CRLF. `Message-ID` holds the id of the delivery."""
    mail = EmailMessage(policy=SMTP)
    mail["From"] = options.sender
    mail["To"] = ", ".join(options.to)
    mail["Subject"] = one_line(f"[Overnight] {message.subject}", 180)
    mail["Date"] = format_datetime(datetime.fromtimestamp(now_us / 1_000_000, UTC))
    mail["Message-ID"] = f"<{message.message_id}@{options.sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"  # keeps automatic replies away
    mail.set_content(_text_of(message), cte="quoted-printable")
    return mail.as_bytes()


def _text_of(message: Message) -> str:
    detail = readable_detail(message.detail)
    if len(detail) > MAX_DETAIL:
        detail = detail[:MAX_DETAIL] + "\n… (cut; the card has the rest)"
    parts = [message.question, detail, "\n".join(f"{name}: {value}" for name, value in message.facts)]
    if message.link:
        parts.append(f"The card{' and the form to answer' if message.can_decide else ''}:\n{message.link}")
    if not message.can_decide:
        parts.append(message.how_to_answer)
    return "\n\n".join(part for part in parts if part) + "\n"


class _Refused(OSError):
    """The address policy forbids the server."""


class MailSender:
    """Sends mail to servers that the policy allows.

    Args:
        policy: the allowed addresses.
        tls: certificate authorities; default: the system's.
        resolve: resolves host names; default: the system's resolver.
    """

    def __init__(
        self, policy: AddressPolicy, *, tls: TlsFiles | None = None, resolve: Any = socket.getaddrinfo
    ) -> None:
        self._policy, self._tls, self._resolve = policy, tls or TlsFiles(), resolve

    async def send(
        self, message: Message, options: AddressOptions, password: str, now_us: int, timeout_s: float
    ) -> Outcome:
        """Deliver a message to the recipients of an address. Never raises for what the server does."""
        try:
            content = mail_of(message, options, now_us)
        except ValueError as error:  # a header that the mail package refuses
            return NotDelivered(f"the mail cannot be written: {error}", is_final=True)
        session = _Session(self._policy, self._resolve, self._tls, options, password)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.to_thread(session.run, content, timeout_s)
        except TimeoutError:
            session.abort()
            why = f"{options.server}:{options.port}: no answer within {timeout_s:.0f} s"
            return OutcomeUnknown(why) if session.was_sent else NotDelivered(why)
        except BaseException:
            session.abort()
            raise


class _Session:
    """One connection. `was_sent`: the server may have the whole message."""

    def __init__(
        self, policy: AddressPolicy, resolve: Any, tls: TlsFiles, options: AddressOptions, password: str
    ) -> None:
        self._policy, self._resolve, self._tls = policy, resolve, tls
        self._options, self._password = options, password
        self._socket: socket.socket | None = None
        self._lock, self._aborted = threading.Lock(), False
        self.was_sent = False

    def abort(self) -> None:
        """End the thread of `run`. May be called from another thread."""
        with self._lock:
            self._aborted, held = True, self._socket
        if held is not None:
            with contextlib.suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)

    def run(self, content: bytes, timeout_s: float) -> Outcome:
        options = self._options
        where = f"{options.server}:{options.port}"
        try:
            return self._deliver(content, timeout_s, where)
        except _Refused as error:
            return NotDelivered(f"{where}: {error}")
        except smtplib.SMTPResponseException as error:
            return NotDelivered(f"{where}: {_shown(error.smtp_code, error.smtp_error)}")
        except (OSError, smtplib.SMTPException, ValueError) as error:
            why = f"{where}: {_reason(error)}"
            return OutcomeUnknown(why) if self.was_sent else NotDelivered(why)

    def _deliver(self, content: bytes, timeout_s: float, where: str) -> Outcome:
        options = self._options
        context = tls_context(self._tls) if options.security != "none" else None
        client = _Client(self._connect, options.server, context if options.security == "tls" else None, timeout_s)
        with contextlib.closing(client):
            code, said = client.connect(options.server, options.port)
            if code != 220:
                return NotDelivered(f"{where}: {_shown(code, said)}")
            client.ehlo()
            if options.security == "starttls":
                client.starttls(context=context)
                self._hold(client.sock)
                client.ehlo()
            if options.username:
                if options.security == "none":
                    return NotDelivered(f"{where}: a password needs TLS", is_final=True)
                client.login(options.username, self._password)
            return self._transmit(client, content, where)

    def _transmit(self, client: _Client, content: bytes, where: str) -> Outcome:
        code, said = client.mail(self._options.sender)
        for recipient in self._options.to if code == 250 else ():
            code, said = client.rcpt(recipient)
            if code not in (250, 251):
                break
        if code in (250, 251):
            code, said = client.docmd("data")
        if code != 354:
            return NotDelivered(f"{where}: {_shown(code, said)}", is_final=500 <= code < 600)
        self.was_sent = True
        client.send(_stuffed(content))
        code, said = client.getreply()
        self.was_sent = False
        if code != 250:
            return NotDelivered(f"{where}: {_shown(code, said)}", is_final=500 <= code < 600)
        with contextlib.suppress(OSError, smtplib.SMTPException):
            client.docmd("quit")
        return Delivered()

    def _connect(self, host: str, port: int, timeout_s: float) -> socket.socket:
        """Resolve once, check all addresses, and connect to one of these."""
        infos = self._resolve(host, port, type=socket.SOCK_STREAM)
        refusal = self._policy.refusal(infos)
        if refusal is not None:
            raise _Refused(f"{refusal}; the operator allows networks with OVERNIGHT_OUTGOING_ALLOW")
        problem: OSError = OSError("no address")
        for family, kind, protocol, _, place in infos:
            connection = socket.socket(family, kind, protocol)
            connection.settimeout(timeout_s)
            self._hold(connection)
            try:
                connection.connect(place)
            except OSError as error:
                connection.close()
                problem = error
                continue
            return connection
        raise problem

    def _hold(self, connection: socket.socket | None) -> None:
        with self._lock:
            self._socket = connection
            if self._aborted:
                raise OSError("aborted")


class _Client(smtplib.SMTP):
    """smtplib with connections of our own, and implicit TLS if `implicit` is given."""

    def __init__(self, connect: Any, host: str, implicit: ssl.SSLContext | None, timeout_s: float) -> None:
        self._connect, self._implicit = connect, implicit
        super().__init__(local_hostname="overnight", timeout=timeout_s)
        self._host = host  # the name that STARTTLS compares with the certificate

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        connection: socket.socket = self._connect(host, port, timeout)
        if self._implicit is None:
            return connection
        return self._implicit.wrap_socket(connection, server_hostname=host)


def _stuffed(content: bytes) -> bytes:
    """The message as DATA sends it: lines that begin with a full stop get another one."""
    return content.replace(b"\r\n.", b"\r\n..") + b".\r\n"


def _shown(code: int, said: bytes | str) -> str:
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    return f"the server answered {code} {one_line(text, 160)}"


def _reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "the host name is unknown"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message[:160]}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(str(error), 160) or type(error).__name__
