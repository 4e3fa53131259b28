"""What: the records and pure rules that all packages share.
Owns: identifiers, job states, events, attribution, errors, the records of routing.yaml.
Depends on: nothing.
Never: accesses a file, a socket, a clock or a database.
"""

from .attribution import ALL_JOBS, Attribution, KeyScope
from .calls import CallFacts
from .errors import (
    BadInput,
    BudgetStopped,
    Conflict,
    Divergence,
    Fenced,
    Forbidden,
    LoopStopped,
    NotFound,
    OvernightError,
    StoreUnavailable,
    Unauthenticated,
)
from .event_texts import restore_texts, split_texts, wait_without_texts, without_texts
from .events import EVENT_NAMES, ErrorFacts, Event, Recorded, booked, iso_utc, public_event
from .globs import allows, listed
from .identifiers import check_identifier, day_of, month_of, new_id, parse_whole
from .money import micro_to_usd, usd_text, usd_to_micro
from .scopes import INSTANCE_SCOPES, ROLES, SCOPES, Scope, expand_scopes, ordered_scopes
from .states import FINISHED, Waiting, job_states
from .time_limits import TimeLimits
from .tracing import TraceParent, read_traceparent, span_of, traceparent_of

__all__ = [
    "ALL_JOBS",
    "EVENT_NAMES",
    "FINISHED",
    "INSTANCE_SCOPES",
    "ROLES",
    "SCOPES",
    "Attribution",
    "BadInput",
    "BudgetStopped",
    "CallFacts",
    "Conflict",
    "Divergence",
    "ErrorFacts",
    "Event",
    "Fenced",
    "Forbidden",
    "KeyScope",
    "LoopStopped",
    "NotFound",
    "OvernightError",
    "Recorded",
    "Scope",
    "StoreUnavailable",
    "TimeLimits",
    "TraceParent",
    "Unauthenticated",
    "Waiting",
    "allows",
    "booked",
    "check_identifier",
    "day_of",
    "expand_scopes",
    "iso_utc",
    "job_states",
    "listed",
    "micro_to_usd",
    "month_of",
    "new_id",
    "ordered_scopes",
    "parse_whole",
    "public_event",
    "read_traceparent",
    "restore_texts",
    "span_of",
    "split_texts",
    "traceparent_of",
    "usd_text",
    "usd_to_micro",
    "wait_without_texts",
    "without_texts",
]
