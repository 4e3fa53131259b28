"""What: the log of every job: append, read, follow; the state of a job; content by its hash; rollups of cost.
Owns: the tables job, event, message, node, blob, usage_day, usage_job, seal, feed_epoch, feed_cursor, audit_entry.
Depends on: store, domain.
Never: decides when a job changes its state; it writes what a package above has decided, in the same transaction.
"""

from .audit import AuditEntry, list_audit, write_audit
from .content import KnownContent, Link, address_chain, parse_reference, store_blob, store_chain
from .event_sinks import EventSink, SinkConsumer, sink_lags
from .feed import START, Feed, FeedEvent, FeedPage, FeedPosition
from .idleness import IDLE_US, Idleness, abandon, closed_idle, is_idle, last_outcome, read_idleness
from .lifecycle import ATTEMPT_MARK, begin_attempt
from .log import LARGEST_CONTENT, Append, NewJob, append, locked_job, open_job
from .processes import BEAT_S, Registration, forget_dead_processes, is_dead, this_host
from .queries import Ledger, recorded
from .rows import EXTERNAL, JOB, JobRow
from .rows import SQL as LEDGER_SQL
from .usage import count_usage

__all__ = [
    "ATTEMPT_MARK",
    "BEAT_S",
    "EXTERNAL",
    "IDLE_US",
    "JOB",
    "LARGEST_CONTENT",
    "LEDGER_SQL",
    "START",
    "Append",
    "AuditEntry",
    "EventSink",
    "Feed",
    "FeedEvent",
    "FeedPage",
    "FeedPosition",
    "Idleness",
    "JobRow",
    "KnownContent",
    "Ledger",
    "Link",
    "NewJob",
    "Registration",
    "SinkConsumer",
    "abandon",
    "address_chain",
    "append",
    "begin_attempt",
    "closed_idle",
    "count_usage",
    "forget_dead_processes",
    "is_dead",
    "is_idle",
    "last_outcome",
    "list_audit",
    "locked_job",
    "open_job",
    "parse_reference",
    "read_idleness",
    "recorded",
    "sink_lags",
    "store_blob",
    "store_chain",
    "this_host",
    "write_audit",
]
