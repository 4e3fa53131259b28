"""Sends a mail over SMTP, with an exact outcome."""

import re
import smtplib
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from .incoming import ADDRESS, one_line

_EOL: Final = re.compile(rb"\r\n|\r|\n")


class SendError(Exception):
    """A mail was not sent, or its outcome is unknown; see the subclasses."""


class SendRefused(SendError):
    """The server rejects the mail permanently (5xx)."""


class SendDeferred(SendError):
    """The server rejects the mail temporarily (4xx): it was not accepted and may be sent again later."""


class NotSent(SendError):
    """The connection failed before the mail was transferred: it was not accepted."""


class SendUnknown(SendError):
    """The connection was lost after the transfer and before the response: the outcome is unknown."""


def send_mail(
    host: str, port: int, mail: bytes, sender: str, recipients: Sequence[str], *, timeout_s: float = 30.0
) -> str:
    """Send one mail and return the server's response, such as `2.0.0 Ok: queued as …`. Blocks: call it in a thread.

    The mail goes to all recipients or to none. `timeout_s` limits each step of the conversation, in seconds. Raises SendRefused,
    SendDeferred, NotSent or SendUnknown.
    """
    if not recipients or len(recipients) > 100:
        raise SendRefused(f"{len(recipients)} recipients; expected 1 to 100")
    for address in (sender, *recipients):
        if not ADDRESS.fullmatch(address):
            raise SendRefused(f"{address!r} is not a valid address; expected name@domain")
    where = f"{host}:{port}"
    try:
        connection = smtplib.SMTP(host, port, local_hostname="localhost", timeout=timeout_s)
    except smtplib.SMTPResponseException as error:
        raise _refusal(where, "greeting", error.smtp_code, error.smtp_error) from error
    except OSError as error:
        raise NotSent(f"{where}: no connection to the mail server ({error}); is it running?") from error
    try:
        _send_envelope(connection, where, mail, sender, recipients)
        return _send_data(connection, where, mail)
    finally:
        with suppress(OSError):  # the outcome is known by now, so QUIT need not be waited for
            connection.putcmd("QUIT")
        connection.close()


def _send_envelope(connection: smtplib.SMTP, where: str, mail: bytes, sender: str, recipients: Sequence[str]) -> None:
    """Send the SMTP commands up to the permission to send the mail data."""
    try:
        connection.ehlo_or_helo_if_needed()
        options = [f"size={len(mail)}"] if connection.has_extn("size") else []
        if not mail.isascii() and connection.has_extn("8bitmime"):
            options.append("body=8bitmime")
        steps = [("MAIL", lambda: connection.mail(sender, options))]
        steps += [(f"RCPT {address}", lambda address=address: connection.rcpt(address)) for address in recipients]
        for name, step in steps:
            code, answer = step()
            if code not in {250, 251}:
                raise _refusal(where, name, code, answer)
        code, answer = connection.docmd("DATA")
        if code != 354:
            raise _refusal(where, "DATA", code, answer)
    except smtplib.SMTPResponseException as error:
        raise _refusal(where, "greeting", error.smtp_code, error.smtp_error) from error
    except OSError as error:  # smtplib's own exceptions are OSErrors
        raise NotSent(f"{where}: connection lost before the mail data was sent ({error})") from error


def _send_data(connection: smtplib.SMTP, where: str, mail: bytes) -> str:
    # Some servers would interpret a bare line feed or carriage return in the data as protocol (SMTP smuggling).
    lines = _EOL.sub(b"\r\n", mail)
    body = re.sub(rb"(?m)^\.", b"..", lines)
    end = b".\r\n" if body.endswith(b"\r\n") else b"\r\n.\r\n"
    try:
        connection.send(body + end)
        code, answer = connection.getreply()
    except OSError as error:
        raise SendUnknown(
            f"{where}: connection lost before the response ({error}); the mail may have been accepted"
        ) from error
    if 200 <= code < 300:
        return one_line(answer.decode("utf-8", "replace"), 300)
    raise _refusal(where, "mail", code, answer, handed_over=True)


def _refusal(where: str, step: str, code: int, answer: bytes | str, *, handed_over: bool = False) -> SendError:
    text = one_line(answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer, 300)
    message = f"{where}: {step} answered with {code} {text}"
    if 500 <= code < 600:
        return SendRefused(message)
    if 400 <= code < 500:
        return SendDeferred(message)
    return SendUnknown(message) if handed_over else NotSent(message)
