"""What: the demo, one night in the mailbox of a small shop.
Owns: its mails with the expected results, the Maildir on disk, the local mail server, the composed replies.
Depends on: the standard library's mail code, aiosmtpd (the extra `demo`), files.
Never: lets a mail determine a header, path or recipient; sends only to the given server.
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
