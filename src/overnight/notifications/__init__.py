"""What: reviews sent to people outside: webhooks, mail and Slack, with one-time links that answer.
Owns: the tables notification_address, notification_delivery and review_link.
Depends on: jobs, keys, reviews, ledger, outgoing, store, domain.
Never: decides by itself, and is known by no package that asks for a review.
"""

from .addresses import Addresses, DeliveryFilter, NewAddress, SecretRotation
from .link_pages import link_page, problem_page
from .links import LinkAnswer, LinkView, ReviewLinks
from .outcomes import Delivered, NotDelivered, Outcome, OutcomeUnknown, outcome_name
from .rows import KINDS, LINKS, AddressRow, DeliveryRow, public_address, public_delivery
from .sender import MessageSender
from .service import serve_notifications
from .sink import NotificationSink

__all__ = [
    "KINDS",
    "LINKS",
    "AddressRow",
    "Addresses",
    "Delivered",
    "DeliveryFilter",
    "DeliveryRow",
    "LinkAnswer",
    "LinkView",
    "MessageSender",
    "NewAddress",
    "NotDelivered",
    "NotificationSink",
    "Outcome",
    "OutcomeUnknown",
    "ReviewLinks",
    "SecretRotation",
    "link_page",
    "outcome_name",
    "problem_page",
    "public_address",
    "public_delivery",
    "serve_notifications",
]
