"""The demo: one night in the mailbox of a small shop.

Owns: the corpus of mails and what is right for each, Maildir on disk, the local mail server, the agent's replies.
Depends on: nothing above it in the house; the standard library's mail code and aiosmtpd.
Never: sends mail anywhere but to the server it is given, or lets a mail's content decide a header, a path or a recipient.
"""

from .corpus import Category, Expected, demo_expected, demo_mails, make_demo_maildir
from .incoming import IncomingMail, read_mail
from .maildir import (
    MaildirError,
    count_by_message_id,
    create_maildir,
    deliver,
    file_into,
    find_by_message_id,
    read_maildir,
)
from .reply import SHOP_ADDRESS, compose_reply, unanswerable
from .smtp_send import NotSent, SendDeferred, SendError, SendRefused, SendUnknown, send_mail

__all__ = [
    "SHOP_ADDRESS",
    "Category",
    "Expected",
    "IncomingMail",
    "MaildirError",
    "NotSent",
    "SendDeferred",
    "SendError",
    "SendRefused",
    "SendUnknown",
    "compose_reply",
    "count_by_message_id",
    "create_maildir",
    "deliver",
    "demo_expected",
    "demo_mails",
    "file_into",
    "find_by_message_id",
    "make_demo_maildir",
    "read_mail",
    "read_maildir",
    "send_mail",
    "unanswerable",
]
