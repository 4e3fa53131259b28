"""Events to story. Pure."""

from collections.abc import Callable, Iterator

from overnight.domain import Recorded

from .advice import advise, waiting_list
from .boundaries import BOUNDARIES
from .cache_notes import CACHES
from .calls import CALLS
from .lifecycle_events import MILESTONES
from .limit_events import STOPS
from .lines import Line, Node, Story
from .loader import Chapter
from .text import clean, local_time, span_text
from .timeline import Tale
from .totals import count

GAP_US = 5_000_000
Handler = Callable[[Tale, Recorded], None]
HANDLERS: dict[str, Handler] = MILESTONES | BOUNDARIES | CALLS | CACHES | STOPS


def tell(chapter: Chapter, now_us: int, *, with_content: bool = False) -> Story:
    """The story of a job and the child jobs gathered with it, as of `now_us`."""
    header = count(chapter, now_us)
    header.waiting = waiting_list(chapter.job.waits, now_us)
    nodes = _nodes(chapter, with_content=with_content, is_child=False)
    return Story(header, list(_Flow().lines(nodes, 0)), advise(chapter.job, _open_reviews(chapter.events), now_us))


def _nodes(chapter: Chapter, *, with_content: bool, is_child: bool) -> list[Node]:
    tale = Tale(chapter, with_content=with_content, is_child=is_child)
    for event in chapter.events:
        HANDLERS.get(event.facts.event, _other)(tale, event)
    for child_id, child in chapter.children.items():
        if nodes := tale.children.get(child_id):
            for inside in _nodes(child, with_content=with_content, is_child=True):
                # Where the parent was tried again, each of its attempts tells what the child did from then on.
                max((node for node in nodes if node.at <= inside.at), key=_began, default=nodes[0]).inside.append(
                    inside
                )
    return tale.trunk


def _open_reviews(events: list[Recorded]) -> dict[str, str]:
    """Asked and not decided yet, oldest first, and of which kind."""
    asked: dict[str, str] = {}
    for event in events:
        detail = event.facts.detail or {}
        review_id = str(detail.get("review_id"))
        if event.facts.event == "review_requested":
            asked[review_id] = str(detail.get("review"))
        elif event.facts.event == "review_decided":
            asked.pop(review_id, None)
    return asked


def _other(tale: Tale, event: Recorded) -> None:
    """An event that has no words of its own yet is named, so that nothing is silent."""
    name = f" {event.facts.name}" if event.facts.name else ""
    node = tale.note(None, event, f"{event.facts.event}{name}")
    node.why = str((event.facts.decision or {}).get("why", ""))


class _Flow:
    """Nodes to lines in reading order, with the gaps between them. `reached` is the moment up to which time is told."""

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
            yield Line(node.job_id, self.reached, depth, "gap", "note", text)


def _began(node: Node) -> tuple[int, int]:
    return node.at, node.seqs[0] if node.seqs else 0


def _line(node: Node, depth: int) -> Line:
    text = node.text + (f": {node.outcome}" if node.outcome else "")
    facts = [*node.facts, node.branch] if node.branch else node.facts
    return Line(
        node.job_id,
        node.at,
        depth,
        node.kind,
        node.status,
        clean(text),
        clean(node.why),
        facts,
        node.seqs,
        node.content,
    )
