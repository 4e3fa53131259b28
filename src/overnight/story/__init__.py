"""What: the timeline of a job, as text for people and as public JSON.
Owns: the texts of `overnight explain`.
Depends on: ledger, store, domain.
Never: writes, or shows content (prompts, answers, arguments) unless asked to.
"""

from .advice import Advice, advise, needs_person, waiting_list
from .lines import Header, Line, Shown, Timeline
from .loader import JobTree, load_job_tree, tree_costs
from .public import public_job, public_timeline, read_traceback
from .render import build_timeline
from .text import (
    actor_text,
    clean,
    clock_text,
    content_text,
    cost_text,
    count_text,
    local_time,
    moment_text,
    show_times_in,
    span_text,
    until_text,
)
from .totals import idle_text, span_us

__all__ = [
    "Advice",
    "Header",
    "JobTree",
    "Line",
    "Shown",
    "Timeline",
    "actor_text",
    "advise",
    "build_timeline",
    "clean",
    "clock_text",
    "content_text",
    "cost_text",
    "count_text",
    "idle_text",
    "load_job_tree",
    "local_time",
    "moment_text",
    "needs_person",
    "public_job",
    "public_timeline",
    "read_traceback",
    "show_times_in",
    "span_text",
    "span_us",
    "tree_costs",
    "until_text",
    "waiting_list",
]
