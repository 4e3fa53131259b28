"""Builds timelines from events, without I/O."""

from collections.abc import Callable, Iterator

from overnight.domain import Recorded

from .advice import advise, waiting_list
from .boundaries import BOUNDARIES
from .cache_notes import CACHES
from .calls import CALLS
from .lifecycle_events import MILESTONES
from .limit_events import STOPS
from .lines import Line, Node, Timeline
from .loader import JobTree
from .text import clean, local_time, span_text
from .timeline import TimelineBuilder
from .tool_calls import TOOL_CALLS
from .totals import count

GAP_US = 5_000_000
Handler = Callable[[TimelineBuilder, Recorded], None]
HANDLERS: dict[str, Handler] = MILESTONES | BOUNDARIES | CALLS | TOOL_CALLS | CACHES | STOPS


def build_timeline(tree: JobTree, now_us: int, *, with_content: bool = False) -> Timeline:
    """The timeline of a job and its loaded child jobs, as of `now_us`."""
    header = count(tree, now_us)
    header.waiting = waiting_list(tree.job.waits, now_us)
    nodes = _nodes(tree, with_content=with_content, is_child=False)
    advice = advise(tree.job, _open_reviews(tree.events), now_us)
    return Timeline(header, list(_LineWriter().lines(nodes, 0)), advice)


def _nodes(tree: JobTree, *, with_content: bool, is_child: bool) -> list[Node]:
    builder = TimelineBuilder(tree, with_content=with_content, is_child=is_child)
    for event in tree.events:
        HANDLERS.get(event.facts.event, _other)(builder, event)
    for child_id, child in tree.children.items():
        if nodes := builder.children.get(child_id):
            for inside in _nodes(child, with_content=with_content, is_child=True):
                # If the parent was retried, each of its attempts shows what the child did from then on.
                max((node for node in nodes if node.at <= inside.at), key=_began, default=nodes[0]).inside.append(
                    inside
                )
    return builder.roots


def _open_reviews(events: list[Recorded]) -> dict[str, str]:
    """Undecided reviews by id with their kind, oldest first."""
    open_reviews: dict[str, str] = {}
    for event in events:
        detail = event.facts.detail or {}
        review_id = str(detail.get("review_id"))
        if event.facts.event == "review_requested":
            open_reviews[review_id] = str(detail.get("review"))
        elif event.facts.event in {"review_decided", "review_superseded"}:
            open_reviews.pop(review_id, None)
    return open_reviews


def _other(builder: TimelineBuilder, event: Recorded) -> None:
    """An event without a handler is shown by its name, so that nothing is silent."""
    name = f" {event.facts.name}" if event.facts.name else ""
    node = builder.note(None, event, f"{event.facts.event}{name}")
    node.why = str((event.facts.decision or {}).get("why", ""))


class _LineWriter:
    """Turns nodes into lines in reading order, with gaps between them. `reached` is the time up to which lines exist."""

    def __init__(self) -> None:
        self.reached = 0

    def lines(self, nodes: list[Node], depth: int) -> Iterator[Line]:
        for node in nodes:
            shown = [each for each in node.inside if not each.hidden]
            if node.hidden or (node.kind == "branch" and not shown):
                continue
            if node.kind == "branch" and len(shown) == 1:
                shown[0].branch = node.text
                yield from self.lines(shown, depth)
                continue
            yield from self._gap(node, depth)
            yield _line(node, depth)
            self.reached = max(self.reached, node.at)
            yield from self.lines(sorted([*node.notes, *shown], key=_began), depth + 1)
            self.reached = max(self.reached, node.ended_at)

    def _gap(self, node: Node, depth: int) -> Iterator[Line]:
        if self.reached and node.at - self.reached > GAP_US:
            text = f"… {span_text(node.at - self.reached)} later"
            day = local_time(node.at)
            if day.date() != local_time(self.reached).date():
                text += f", on {day:%Y-%m-%d}"
            yield Line(job_id=node.job_id, at=self.reached, depth=depth, kind="gap", status="note", text=text)


def _began(node: Node) -> tuple[int, int]:
    return node.at, node.seqs[0] if node.seqs else 0


def _line(node: Node, depth: int) -> Line:
    text = node.text + (f": {node.outcome}" if node.outcome else "")
    facts = [*node.facts, node.branch] if node.branch else node.facts
    return Line(
        job_id=node.job_id,
        at=node.at,
        depth=depth,
        kind=node.kind,
        status=node.status,
        text=clean(text),
        why=clean(node.why),
        facts=facts,
        seqs=node.seqs,
        content=node.content,
    )
