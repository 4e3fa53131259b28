"""Composes replies. Neither the mail nor the model can add a header or a recipient."""

import re
from datetime import UTC, datetime
from email.header import Header
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Final

from .incoming import ADDRESS, MESSAGE_ID, IncomingMail, one_line

SHOP_ADDRESS: Final = "hello@tallowandtide.test"
SHOP_NAME: Final = "Tallow and Tide"
MAX_BODY_CHARS: Final = 50_000
_UNPRINTABLE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_NOT_IN_NAME: Final = re.compile(r"[^\w .-]")
_REPLY_MARK: Final = re.compile(r"(?:(?:re|aw|sv|antw)\s*:\s*)+", re.IGNORECASE)


def unanswerable(mail: IncomingMail, *, shop: str = SHOP_ADDRESS) -> str:
    """The reason why this mail must not be answered; "" if it may be."""
    if not mail.sender:
        return "it has no valid reply address"
    if mail.sender.lower() == shop.lower():
        return "the reply would go to the shop itself"
    if mail.auto_submitted:
        return "it was sent by a program"
    if mail.is_list:
        return "it was sent to a list"
    return ""


def compose_reply(
    mail: IncomingMail,
    body: str,
    message_id: str,
    *,
    sent_at: datetime,
    shop: str = SHOP_ADDRESS,
    name: str = SHOP_NAME,
) -> bytes:
    """The reply as an RFC 5322 message; the same arguments give the same bytes.

    `message_id` is `<…>`; `sent_at` must have a time zone. Raises ValueError if the mail must not be answered, if the body
    is empty or longer than 50,000 characters, or if an argument is not valid in a header.
    """
    reason = unanswerable(mail, shop=shop)
    if reason:
        raise ValueError(f"mail {mail.key!r} is not answered: {reason}")
    if not MESSAGE_ID.fullmatch(message_id):
        raise ValueError(f"{message_id!r} is not a Message-ID; expected <id@domain>")
    if not ADDRESS.fullmatch(shop) or not ADDRESS.fullmatch(mail.sender):
        raise ValueError(f"mail {mail.key!r} is not answered: {shop!r} or {mail.sender!r} is not a plain address")
    text = _UNPRINTABLE.sub("", body.replace("\r\n", "\n").replace("\r", "\n")).strip()
    if not text or len(text) > MAX_BODY_CHARS:
        raise ValueError(f"the reply to {mail.key!r} has {len(text)} characters; expected 1 to {MAX_BODY_CHARS}")
    reply = EmailMessage(policy=SMTP.clone(cte_type="7bit", refold_source="none"))
    shown_name = one_line(_NOT_IN_NAME.sub(" ", name), 60)
    reply["From"] = f'"{shown_name}" <{shop}>' if shown_name else shop
    # Written unchanged, because the library would decode an encoded word in it again, including line breaks.
    subject = f"Re: {_REPLY_MARK.sub('', one_line(mail.subject, 200), count=1) or 'your message'}"
    charset = "us-ascii" if subject.isascii() and "=?" not in subject else "utf-8"
    reply.set_raw("Subject", Header(subject, charset, header_name="Subject").encode(linesep="\r\n"))
    reply["Date"] = format_datetime(sent_at.astimezone(UTC))
    # Checked against a strict pattern and written unchanged, because the library would fold long ones into encoded words.
    reply.set_raw("To", mail.sender)
    reply.set_raw("Message-ID", message_id)
    if mail.message_id:
        reply.set_raw("In-Reply-To", mail.message_id)
        reply.set_raw("References", "\r\n ".join(dict.fromkeys((*mail.references, mail.message_id))))
    reply["Auto-Submitted"] = "auto-replied"
    reply.set_content(text + "\n")
    return bytes(reply)
