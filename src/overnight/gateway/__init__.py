"""What: model calls, from wire format to answer: attribute, route, admit, call, retry, fall back, settle, record.
Owns: no table; upstream connections, prices, failure classes, the events of the model boundary.
Depends on: budgets, ledger, store, domain. The routing is handed in.
Never: hands on an answer that is not recorded, or calls a provider without a reservation.
"""

from .calling import Gateway
from .formats import CODECS, Codec
from .identity import MOST_ATTEMPTS, named_job, tags_of
from .port import JobCalls
from .prices import PriceBook, UnknownPrice
from .refusals import Answer, BodyTooLarge, fault, refusal
from .routes import Routing, Unavailable

__all__ = [
    "CODECS",
    "MOST_ATTEMPTS",
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
    "refusal",
    "tags_of",
]
