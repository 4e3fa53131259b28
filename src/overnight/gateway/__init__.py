"""What: model calls, from wire format to answer: attribute, route, admit, call, retry, fall back, settle, record.
Owns: no table; upstream connections, prices, failure classes, the events of the model boundary.
Depends on: budgets, keys, ledger, store, domain. The routing is handed in.
Never: hands on an answer that is not recorded, or calls a provider without a reservation.
"""

from .calling import Gateway
from .formats import CHAT, CODECS, RESPONSES, Codec
from .identity import MOST_ATTEMPTS, named_job, tags_of
from .permitting import permitted
from .port import JobCalls
from .prices import PriceBook, UnknownPrice
from .refusals import WANTS_KEY, Answer, BodyTooLarge, fault, refusal
from .routes import Routing, Unavailable

__all__ = [
    "CHAT",
    "CODECS",
    "MOST_ATTEMPTS",
    "RESPONSES",
    "WANTS_KEY",
    "Answer",
    "BodyTooLarge",
    "Codec",
    "Gateway",
    "JobCalls",
    "PriceBook",
    "Routing",
    "Unavailable",
    "UnknownPrice",
    "fault",
    "named_job",
    "permitted",
    "refusal",
    "tags_of",
]
