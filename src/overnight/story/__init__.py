"""What: the timeline of a job and the text of its receipt, for people and as public JSON.
Owns: the texts of `overnight explain` and `overnight receipt`.
Depends on: reports, ledger, store, domain.
Never: writes, or shows content (prompts, answers, arguments) unless asked to.
"""

from .advice import Advice, advise, needs_person, waiting_list
from .lines import Header, Line, Shown, Timeline
from .loader import JobTree, load_job_tree, tree_costs
from .public import public_job, public_timeline, read_traceback
from .receipt_text import ReceiptLine, effect_line, receipt_counts, receipt_head, receipt_lines, verification_lines
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
    "ReceiptLine",
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
    "effect_line",
    "idle_text",
    "load_job_tree",
    "local_time",
    "moment_text",
    "needs_person",
    "public_job",
    "public_timeline",
    "read_traceback",
    "receipt_counts",
    "receipt_head",
    "receipt_lines",
    "show_times_in",
    "span_text",
    "span_us",
    "tree_costs",
    "until_text",
    "verification_lines",
    "waiting_list",
]
