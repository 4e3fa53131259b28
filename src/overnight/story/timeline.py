"""The tree that a story is: milestones on the trunk, and between two of them what ran, each thing where its position says.

A stretch is what one lease did: from a start to a crash, a park or an end. A boundary that is reached again in the next
stretch is told again there, because that is what happened.
"""

from overnight.domain import Recorded

from .lines import Node, Shown
from .loader import Chapter
from .text import content_text, trace_text

UNFINISHED = {"lost": "under way when it was lost", "stopped": "left unfinished"}


class Tale:
    """One job being told.

    `stretch` holds this lease's nodes by position or key, `calls` all model calls by id, `children` the nodes of each child job
    by its id, one for each attempt that came to it, `turning` the latest milestone,
    `degraded` the answers that no model gave, `failed` the latest failed model try by its seq, `moved` a fallback whose call is
    still to come, `reasons` why calls went where they went, each told once.
    """

    def __init__(self, chapter: Chapter, *, with_content: bool, is_child: bool) -> None:
        self.chapter, self.job = chapter, chapter.job
        self.with_content, self.is_child = with_content, is_child
        self.trunk: list[Node] = []
        self.stretch: dict[object, Node] = {}
        self.calls: dict[str, Node] = {}
        self.children: dict[str, list[Node]] = {}
        self.turning: Node | None = None
        self.degraded: set[int] = set()
        self.failed: tuple[int, Node | None] = (0, None)
        self.moved: Node | None = None
        self.reasons: set[tuple[str | None, str]] = set()

    def node(self, event: Recorded, kind: str, text: str, status: str = "running") -> Node:
        """A node of this event, not yet placed."""
        return Node(self.job.job_id, kind, text, event.at, status, event.at, seqs=[event.seq])

    def milestone(
        self, event: Recorded, kind: str, text: str, *, leaving: str | None = None, status: str = "note"
    ) -> Node:
        """A line of the trunk that begins a new stretch; what was under way is left as `leaving`."""
        for node in self.stretch.values():
            if leaving is not None and node.status == "running":
                node.status, node.outcome = leaving, UNFINISHED.get(leaving, node.outcome)
        self.stretch = {}
        made = self.node(event, kind, text, status)
        self.trunk.append(made)
        self.turning = made
        return made

    def place(self, node: Node, path: str | None, key: object = None) -> Node:
        """Put the node where its path says, and keep it under `key` for the events that follow."""
        self._inside(path or "", node).append(node)
        if key is not None:
            self.stretch[key] = node
        return node

    def note(self, node: Node | None, event: Recorded, text: str, status: str = "note", kind: str = "note") -> Node:
        """Something to be said about a node, or on its own where there is none."""
        made = self.node(event, kind, text, status)
        if node is None:
            return self.place(made, event.path)
        node.notes.append(made)
        node.ended_at = max(node.ended_at, event.at)
        return made

    def at(self, event: Recorded) -> Node | None:
        """The node at the event's position in this stretch."""
        return self.stretch.get((event.path, event.ordinal)) if event.path is not None else None

    def show(self, node: Node, what: str, content: bytes | list[bytes] | None) -> None:
        if self.with_content and content is not None:
            node.content.append(Shown(what, content_text(content)))

    def trace(self, node: Node, content: bytes | None) -> None:
        """Where a failure was raised."""
        if self.with_content and (where := trace_text(content)):
            node.content.append(Shown("raised at", where))

    def _inside(self, path: str, child: Node) -> list[Node]:
        if not path:
            return self.trunk
        cut = max(path.rfind("#"), path.rfind("/"))
        parent, number = path[:cut], int(path[cut + 1 :])
        if path[cut] == "#":
            step = self.stretch.get((parent, number))
            # A step of an earlier release or stretch may be missing here; its parts are then told one level up.
            return step.inside if step is not None else self._inside(parent, child)
        branch = self.stretch.get(path)
        if branch is None:
            branch = Node(self.job.job_id, "branch", f"branch {number + 1}", child.at, "note", child.at)
            self._inside(parent, branch).append(branch)
            self.stretch[path] = branch
        return branch.inside
