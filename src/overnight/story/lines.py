"""Records of a timeline. `Node`s are built while events are read; `Line`s are shown."""

import msgspec

from .advice import Advice


class Shown(msgspec.Struct, frozen=True):
    """Shortened content: `what` is prompt, answer, arguments, result, input or detail."""

    what: str
    text: str


class Line(msgspec.Struct, omit_defaults=True):
    """One line. `at` is its start in microseconds, `depth` its indentation, `seqs` the events that it summarizes.

    `kind`: start, step, branch, model, tool, ask, decision, timer, child, crash, resume, park, end, note or gap.
    `status`: done, failed, unknown, waiting, running, lost, replayed, degraded or note.
    """

    job_id: str
    at: int
    depth: int
    kind: str
    status: str
    text: str
    why: str = ""
    facts: list[str] = []
    seqs: list[int] = []
    content: list[Shown] = []


class Header(msgspec.Struct):
    """The sums of a job and its loaded child jobs.

    `bound_microusd` is the upper bound of calls of unknown cost, in addition to the known cost; `model_bounds` likewise for
    `models`. `idle` says since when an external job has made no call. Times in microseconds UTC, spans in microseconds.
    """

    job_id: str
    name: str
    state: str
    waiting: list[str]
    error: str
    tenant_id: str
    external_id: str | None
    parent_job_id: str | None
    agent_id: str | None
    attempt: int
    created_at: int
    finished_at: int | None
    span_us: int
    parked_us: int = 0
    cost_microusd: int = 0
    bound_microusd: int = 0
    idle: str = ""
    lost_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    model_calls: int = 0
    paid_calls: int = 0
    replayed_calls: int = 0
    cached_calls: int = 0
    tool_calls: int = 0
    steps: int = 0
    retries: int = 0
    fallbacks: int = 0
    human_decisions: int = 0
    crashes: int = 0
    child_jobs: int = 0
    models: dict[str, int] = {}
    model_bounds: dict[str, int] = {}


class Timeline(msgspec.Struct):
    """The timeline of a job. `advice` holds the next actions; empty if none is needed."""

    header: Header
    lines: list[Line]
    advice: list[Advice]


class Node(msgspec.Struct, eq=False):
    """Something that happened, with nested nodes (`inside`) and remarks (`notes`)."""

    job_id: str
    kind: str
    text: str
    at: int
    status: str = "running"
    ended_at: int = 0
    outcome: str = ""
    why: str = ""
    facts: list[str] = []
    seqs: list[int] = []
    notes: "list[Node]" = []
    inside: "list[Node]" = []
    content: list[Shown] = []
    hidden: bool = False
    branch: str = ""

    def end(self, at: int, status: str) -> None:
        self.ended_at, self.status = at, status
