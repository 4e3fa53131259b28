"""What: model calls, from request to response: attribute, route, admit, attempt, retry, fall back, settle, record.
Owns: the events of the model boundary; the tables of cache and stored_responses.
Depends on: wire_formats, providers, circuit_breakers, pricing, budgets, keys, ledger, store, domain. The routing is handed in.
Never: returns an answer that is not recorded, or calls a provider without a reservation.
"""

from overnight.circuit_breakers import (
    Circuit,
    CloseCircuit,
    list_circuits,
    public_circuit,
)
from overnight.pricing.price_book import PriceBook, UnknownPrice
from overnight.providers.targets import Unavailable
from overnight.wire_formats import (
    CHAT,
    CODECS,
    RESPONSES,
    Codec,
)

from .admission.key_permissions import permitted_decision
from .cache import CacheUsage, cache_usage
from .call.stream_buffer import BroadcastBuffer
from .call_facts import facts_of
from .error_responses import (
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
from .gateway import Gateway
from .identity import MAX_ATTEMPTS, named_job, tags_of, with_metadata
from .job_calls import JobCalls
from .routing_simulation import (
    LeftOut,
    Move,
    PastCall,
    Rerouting,
    past_calls,
)

__all__ = [
    "CHAT",
    "CODECS",
    "MAX_ATTEMPTS",
    "RESPONSES",
    "WANTS_KEY",
    "Answer",
    "BodyTooLarge",
    "BroadcastBuffer",
    "CacheUsage",
    "Circuit",
    "CloseCircuit",
    "Codec",
    "Gateway",
    "JobCalls",
    "LeftOut",
    "Move",
    "Overloaded",
    "PastCall",
    "PriceBook",
    "RateLimited",
    "Rerouting",
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
    "permitted_decision",
    "public_circuit",
    "refusal",
    "tags_of",
    "with_metadata",
]
