"""The tree of a timeline: milestones of the job, and between them its boundaries by position.

A segment is the work under one lease: from a start to a crash, a park or an end. A boundary that is reached again in the next
segment is shown again there.
"""

from overnight.domain import Recorded

from .lines import Node, Shown
from .loader import JobTree
from .text import clean, content_text, trace_text

RECORD_KINDS = frozenset({"step", "model", "tool", "ask", "timer", "child"})
"""The kinds of lines that name the record of their event."""

UNFINISHED = {"lost": "in progress when the worker was lost", "stopped": "unfinished"}


class TimelineBuilder:
    """Builds the nodes of one job.

    `segment` holds the nodes of this lease by position or key, `calls` all model calls by id, `children` the nodes of each
    child job by its id, one for each attempt that awaited it. `last_milestone` is the latest milestone, `last_failure` the
    latest failed model attempt by its seq, and `pending_fallbacks` the fallbacks whose calls
    are still to come, by call id. `degraded_answers`
    are the seqs of degraded answers. `shown_reasons` are reasons of routing, each shown once.
    """

    def __init__(self, tree: JobTree, *, with_content: bool, is_child: bool) -> None:
        self.tree, self.job = tree, tree.job
        self.with_content, self.is_child = with_content, is_child
        self.roots: list[Node] = []
        self.segment: dict[object, Node] = {}
        self.calls: dict[str, Node] = {}
        self.children: dict[str, list[Node]] = {}
        self.last_milestone: Node | None = None
        self.degraded_answers: set[int] = set()
        self.last_failure: tuple[int, Node | None] = (0, None)
        self.pending_fallbacks: dict[str | None, Node] = {}
        self.shown_reasons: set[tuple[str | None, str]] = set()

    def node(self, event: Recorded, kind: str, text: str, status: str = "running") -> Node:
        """A node of this event, not yet in the tree."""
        return Node(
            job_id=self.job.job_id,
            kind=kind,
            text=text,
            at=event.at,
            status=status,
            ended_at=event.at,
            seqs=[event.seq],
            facts=[f"about {clean(event.facts.about, 60)}"] if event.facts.about and kind in RECORD_KINDS else [],
        )

    def milestone(
        self, event: Recorded, kind: str, text: str, *, leaving: str | None = None, status: str = "note"
    ) -> Node:
        """Add a milestone, which starts a new segment; unfinished nodes get the status `leaving`."""
        for node in self.segment.values():
            if leaving is not None and node.status == "running":
                node.status, node.outcome = leaving, UNFINISHED.get(leaving, node.outcome)
        self.segment = {}
        made = self.node(event, kind, text, status)
        self.roots.append(made)
        self.last_milestone = made
        return made

    def place(self, node: Node, path: str | None, key: object = None) -> Node:
        """Add the node at its path, and keep it under `key` for later events."""
        self._inside(path or "", node).append(node)
        if key is not None:
            self.segment[key] = node
        return node

    def note(self, node: Node | None, event: Recorded, text: str, status: str = "note", kind: str = "note") -> Node:
        """Add a remark to a node, or a line of its own without one."""
        made = self.node(event, kind, text, status)
        if node is None:
            return self.place(made, event.path)
        node.notes.append(made)
        node.ended_at = max(node.ended_at, event.at)
        return made

    def node_at(self, event: Recorded) -> Node | None:
        """The node at the event's position in this segment."""
        return self.segment.get((event.path, event.ordinal)) if event.path is not None else None

    def add_content(self, node: Node, what: str, content: bytes | list[bytes] | None) -> None:
        if self.with_content and content is not None:
            node.content.append(Shown(what, content_text(content)))

    def add_traceback(self, node: Node, content: bytes | None) -> None:
        """Add the place where an error was raised."""
        if self.with_content and (where := trace_text(content)):
            node.content.append(Shown("raised at", where))

    def _inside(self, path: str, child: Node) -> list[Node]:
        if not path:
            return self.roots
        cut = max(path.rfind("#"), path.rfind("/"))
        parent, number = path[:cut], int(path[cut + 1 :])
        if path[cut] == "#":
            step = self.segment.get((parent, number))
            # A step of an earlier release or segment may be missing here; its parts are then shown one level up.
            return step.inside if step is not None else self._inside(parent, child)
        branch = self.segment.get(path)
        if branch is None:
            branch = Node(
                job_id=self.job.job_id,
                kind="branch",
                text=f"branch {number + 1}",
                at=child.at,
                status="note",
                ended_at=child.at,
            )
            self._inside(parent, branch).append(branch)
            self.segment[path] = branch
        return branch.inside
