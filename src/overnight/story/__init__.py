"""What: a job's events as a story that a tired person can read, and a job as public JSON.
Owns: the words of `overnight explain`.
Depends on: ledger, store, domain.
Never: writes, or shows content (prompts, answers, arguments) unless it was asked to.
"""

from .advice import Advice, advise, needs_person, waiting_list
from .lines import Header, Line, Shown, Story
from .loader import Chapter, gather, tree_costs
from .public import public_job, public_story, read_traceback
from .render import tell
from .text import (
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
    who,
)
from .totals import span_us

__all__ = [
    "Advice",
    "Chapter",
    "Header",
    "Line",
    "Shown",
    "Story",
    "advise",
    "clean",
    "clock_text",
    "content_text",
    "cost_text",
    "count_text",
    "gather",
    "local_time",
    "moment_text",
    "needs_person",
    "public_job",
    "public_story",
    "read_traceback",
    "show_times_in",
    "span_text",
    "span_us",
    "tell",
    "tree_costs",
    "until_text",
    "waiting_list",
    "who",
]
