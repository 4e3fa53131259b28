"""What: model calls, from wire format to answer: attribute, route, admit, call, retry, fall back, settle, record.
Owns: circuit; upstream connections, prices, failure classes, the events of the model boundary.
Depends on: budgets, keys, ledger, store, domain. The routing is handed in.
Never: hands on an answer that is not recorded, or calls a provider without a reservation.
"""

from .asking import facts_of
from .caches import Usage as CacheUsage
from .caches import cache_usage
from .calling import Gateway
from .circuits import Circuit, CloseCircuit, list_circuits, public_circuit
from .feed import Feed
from .formats import CHAT, CODECS, RESPONSES, Codec
from .identity import MOST_ATTEMPTS, named_job, tags_of, with_metadata
from .permitting import permitted
from .port import JobCalls
from .prices import PriceBook, UnknownPrice
from .refusals import (
    WANTS_KEY,
    Answer,
    BodyTooLarge,
    Overloaded,
    RateLimited,
    UnknownPath,
    UnsupportedMediaType,
    fault,
    refusal,
)
from .rerouting import LeftOut, Move, PastCall, Rerouting, past_calls
from .routes import Routing, Unavailable

__all__ = [
    "CHAT",
    "CODECS",
    "MOST_ATTEMPTS",
    "RESPONSES",
    "WANTS_KEY",
    "Answer",
    "BodyTooLarge",
    "CacheUsage",
    "Circuit",
    "CloseCircuit",
    "Codec",
    "Feed",
    "Gateway",
    "JobCalls",
    "LeftOut",
    "Move",
    "Overloaded",
    "PastCall",
    "PriceBook",
    "RateLimited",
    "Rerouting",
    "Routing",
    "Unavailable",
    "UnknownPath",
    "UnknownPrice",
    "UnsupportedMediaType",
    "cache_usage",
    "facts_of",
    "fault",
    "list_circuits",
    "named_job",
    "past_calls",
    "permitted",
    "public_circuit",
    "refusal",
    "tags_of",
    "with_metadata",
]
