"""What: the log of every job: append, read, follow; content by its hash; rollups of cost.
Owns: job, event, message, node, blob, usage_day, usage_job, seal.
Depends on: store, domain.
Never: decides what may happen next; it writes what a room above has decided, in that room's transaction.
"""

from .attempts import ATTEMPT_MARK, announce
from .content import KnownContent, Link, address_chain, parse_reference, store_blob, store_chain
from .log import LARGEST_CONTENT, Append, NewJob, append, closed_idle, locked_job, mark_idle, open_job
from .processes import BEAT_S, Registration, forget_dead_processes, is_dead, this_host
from .queries import Ledger, recorded
from .rows import EXTERNAL, JOB, JobRow
from .rows import SQL as LEDGER_SQL
from .usage import count_usage

__all__ = [
    "ATTEMPT_MARK",
    "BEAT_S",
    "EXTERNAL",
    "JOB",
    "LARGEST_CONTENT",
    "LEDGER_SQL",
    "Append",
    "JobRow",
    "KnownContent",
    "Ledger",
    "Link",
    "NewJob",
    "Registration",
    "address_chain",
    "announce",
    "append",
    "closed_idle",
    "count_usage",
    "forget_dead_processes",
    "is_dead",
    "locked_job",
    "mark_idle",
    "open_job",
    "parse_reference",
    "recorded",
    "store_blob",
    "store_chain",
    "this_host",
]
