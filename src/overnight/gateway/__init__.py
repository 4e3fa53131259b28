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
    AddressedCall,
    ClientPaths,
    Codec,
)

from .admission.key_permissions import permitted_decision
from .brain_reloads import BrainReloads
from .cache import CacheUsage, cache_usage
from .call.stream_buffer import BroadcastBuffer
from .call_deadlines import store_timeout_s
from .call_facts import routing_facts
from .effects import ClaimAnswer, EffectRefused, EffectRequest, HttpEffects, Report, ReportAnswer
from .error_responses import (
    ACCEPT_ENCODING,
    BEARER_CHALLENGE,
    BodyTooLarge,
    HttpResponse,
    Overloaded,
    RateLimited,
    UnknownPath,
    UnsupportedEncoding,
    UnsupportedMediaType,
    error_response,
    internal_error_response,
)
from .gateway import Gateway
from .identity import MAX_ATTEMPTS, parse_job_name, parse_tags, with_metadata
from .job_ancestry import JobAncestry
from .job_calls import JobCalls
from .job_starts import start_job
from .routing_simulation import (
    ExcludedCalls,
    RecordedCall,
    RouteChange,
    RoutingSimulation,
    recorded_calls,
)

__all__ = [
    "ACCEPT_ENCODING",
    "BEARER_CHALLENGE",
    "CHAT",
    "CODECS",
    "MAX_ATTEMPTS",
    "RESPONSES",
    "AddressedCall",
    "BodyTooLarge",
    "BrainReloads",
    "BroadcastBuffer",
    "CacheUsage",
    "Circuit",
    "ClaimAnswer",
    "ClientPaths",
    "CloseCircuit",
    "Codec",
    "EffectRefused",
    "EffectRequest",
    "ExcludedCalls",
    "Gateway",
    "HttpEffects",
    "HttpResponse",
    "JobAncestry",
    "JobCalls",
    "Overloaded",
    "PriceBook",
    "RateLimited",
    "RecordedCall",
    "Report",
    "ReportAnswer",
    "RouteChange",
    "RoutingSimulation",
    "Unavailable",
    "UnknownPath",
    "UnknownPrice",
    "UnsupportedEncoding",
    "UnsupportedMediaType",
    "cache_usage",
    "error_response",
    "internal_error_response",
    "list_circuits",
    "parse_job_name",
    "parse_tags",
    "permitted_decision",
    "public_circuit",
    "recorded_calls",
    "routing_facts",
    "start_job",
    "store_timeout_s",
    "with_metadata",
]
