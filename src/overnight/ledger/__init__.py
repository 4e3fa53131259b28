"""What: the log of every job: append, read, follow; the state of a job; content by its hash; rollups of cost.
Owns: the tables job, event, message, node, blob, usage_day, usage_job, seal, feed_epoch, feed_cursor, audit_entry,
brain_version, brain_file.
Depends on: store, domain.
Never: decides when a job changes its state; it writes the decision of a package above, in the same transaction.
"""

from .audit import AuditEntry, list_audit, write_audit
from .brain_versions import (
    BrainVersion,
    KeepBrain,
    ReloadRequest,
    find_brain_version,
    list_brain_versions,
    list_changed_files,
    read_brain_file,
    read_brain_files,
    read_reload,
)
from .content import KnownContent, Link, address_chain, parse_reference, store_blob, store_chain
from .event_sinks import CURSOR, CursorRow, EventSink, SinkConsumer, serve_sink, sink_lags
from .feed import START, Feed, FeedEvent, FeedIdentity, FeedMark, FeedPage, FeedPosition
from .idleness import IDLE_US, Idleness, abandon, closed_idle, is_idle, last_outcome, read_idleness
from .lifecycle import ATTEMPT_MARK, begin_attempt
from .log import MAX_INLINE_CONTENT, Append, NewJob, append, locked_job, open_job
from .processes import RENEWAL_INTERVAL_S, Registration, delete_dead_processes, is_dead, this_host
from .queries import Ledger, recorded
from .rows import EXTERNAL, JOB, JobRow
from .rows import SQL as LEDGER_SQL
from .usage import count_usage

__all__ = [
    "ATTEMPT_MARK",
    "CURSOR",
    "EXTERNAL",
    "IDLE_US",
    "JOB",
    "LEDGER_SQL",
    "MAX_INLINE_CONTENT",
    "RENEWAL_INTERVAL_S",
    "START",
    "Append",
    "AuditEntry",
    "BrainVersion",
    "CursorRow",
    "EventSink",
    "Feed",
    "FeedEvent",
    "FeedIdentity",
    "FeedMark",
    "FeedPage",
    "FeedPosition",
    "Idleness",
    "JobRow",
    "KeepBrain",
    "KnownContent",
    "Ledger",
    "Link",
    "NewJob",
    "Registration",
    "ReloadRequest",
    "SinkConsumer",
    "abandon",
    "address_chain",
    "append",
    "begin_attempt",
    "closed_idle",
    "count_usage",
    "delete_dead_processes",
    "find_brain_version",
    "is_dead",
    "is_idle",
    "last_outcome",
    "list_audit",
    "list_brain_versions",
    "list_changed_files",
    "locked_job",
    "open_job",
    "parse_reference",
    "read_brain_file",
    "read_brain_files",
    "read_idleness",
    "read_reload",
    "recorded",
    "serve_sink",
    "sink_lags",
    "store_blob",
    "store_chain",
    "this_host",
    "write_audit",
]
