"""One attempt to deliver a message to an address, by the kind of the address."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from overnight.keys import MasterKeys
from overnight.outgoing import (
    AddressPolicy,
    Client,
    FetchResponse,
    Headers,
    ProxyInvalid,
    TlsFileInvalid,
    TlsFiles,
    UpstreamError,
    UrlInvalid,
)

from .messages import Message, webhook_body
from .outcomes import Delivered, NotDelivered, Outcome, OutcomeUnknown
from .rows import AddressRow, Secrets, options_of
from .slack import slack_body
from .smtp import MailSender
from .texts import one_line
from .webhooks import signed_headers

TIMEOUT_S = 15.0
MAX_RESPONSE_BYTES = 64 * 1024
MAX_RETRY_AFTER_S = 86_400.0
_NOT_DONE = range(300, 500)
"""Statuses with which a receiver has certainly not taken a message."""


def secrets_of(row: AddressRow, masters: MasterKeys) -> Secrets:
    """The secrets of an address. Raises DecryptionFailed."""
    if row.sealed is None:
        return Secrets()
    return msgspec.json.decode(masters.decrypt(row.master_id, row.sealed, row.bound_to), type=Secrets)


class MessageSender:
    """Delivers messages. `policy` are the allowed hosts; `timeout_s` is the limit of one attempt."""

    def __init__(
        self,
        masters: MasterKeys,
        policy: AddressPolicy | None = None,
        *,
        tls: TlsFiles | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        policy = policy or AddressPolicy()
        self._masters, self._timeout_s = masters, timeout_s
        self._http, self._mail = Client(policy, tls=tls), MailSender(policy, tls=tls)

    async def send(self, row: AddressRow, message: Message, now_us: int) -> Outcome:
        """Make one attempt. Raises DecryptionFailed; never for what the receiver does."""
        secrets = secrets_of(row, self._masters)
        if row.kind == "email":
            options = options_of(row)
            return await self._mail.send(message, options, secrets.password, now_us, self._timeout_s)
        headers: list[tuple[bytes, bytes]] = [
            (b"content-type", b"application/json"),
            (b"user-agent", b"Overnight"),
        ]
        if row.kind == "slack":
            body = slack_body(message)
        else:
            body = webhook_body(message)
            valid = [each.secret for each in secrets.signing if each.until is None or each.until > now_us]
            headers += signed_headers(message.message_id, now_us // 1_000_000, body, valid)
        return await self._post(secrets.url, headers, body)

    async def _post(self, url: str, headers: Headers, body: bytes) -> Outcome:
        try:
            response = await self._http.fetch(
                "POST", url, headers, body, timeout_s=self._timeout_s, max_body_bytes=MAX_RESPONSE_BYTES
            )
        except UpstreamError as error:
            why = one_line(str(error), 300)
            return OutcomeUnknown(why) if error.sent else NotDelivered(why)
        except (UrlInvalid, ProxyInvalid, TlsFileInvalid) as error:
            return NotDelivered(one_line(str(error), 300))
        return _outcome_of(response)


def _outcome_of(response: FetchResponse) -> Outcome:
    status = response.status
    if 200 <= status < 300:
        return Delivered()
    why, wait = f"status {status}", _retry_after_s(response.headers)
    if status == 410:
        return NotDelivered(f"{why}: the receiver wants no more messages", is_final=True, is_gone=True)
    if status in _NOT_DONE:
        said = "; redirects are not followed" if status < 400 else ""
        return NotDelivered(why + said, wait)
    return OutcomeUnknown(why, wait)


def _retry_after_s(headers: Mapping[bytes, bytes]) -> float | None:
    """Retry-After in seconds, from a number or a date; None if it is missing or invalid."""
    text = headers.get(b"retry-after", b"").decode("latin-1").strip()
    if text.isascii() and text.isdecimal() and len(text) <= 9:
        return min(float(text), MAX_RETRY_AFTER_S)
    try:
        at = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, OSError):
        return None
    return min(max(0.0, at - time.time()), MAX_RETRY_AFTER_S)


def shown_url(url: str) -> str:
    """Scheme and host of a URL: its path may be a secret, as with Slack."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/…"
