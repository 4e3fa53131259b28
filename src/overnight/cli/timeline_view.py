"""A timeline on a terminal."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from overnight.story import (
    Header,
    Line,
    Timeline,
    clean,
    clock_text,
    cost_text,
    count_text,
    local_time,
    moment_text,
    span_text,
)

from .output import STATE_STYLES, console, styled

if TYPE_CHECKING:
    from rich.text import Text

MARKS = {
    "done": ("✓", "green"),
    "failed": ("✗", "red"),
    "unknown": ("?", "magenta"),
    "waiting": ("‖", "magenta"),
    "running": ("›", "cyan"),
    "lost": ("✗", "dim"),
    "stopped": ("–", "dim"),
    "replayed": ("↻", "blue"),
    "degraded": ("!", "yellow"),
    "note": ("·", "dim"),
}
KIND_MARKS = {
    "start": ("▶", "cyan"),
    "resume": ("▶", "cyan"),
    "attempt": ("▶", "cyan"),
    "crash": ("✗", "bold red"),
    "fallback": ("↪", "yellow"),
    "branch": ("┬", "dim"),
}
KIND_STYLES = {
    "crash": "bold red",
    "end": "bold",
    "resume": "bold",
    "start": "bold",
    "park": "magenta",
    "branch": "dim",
}
MARGIN = 10


def show_timeline(timeline: Timeline, receipt: "Sequence[Text]" = ()) -> None:
    """Print the header, the lines of the receipt, those of the timeline, and the next actions."""
    out = console()
    for text in _header(timeline.header):
        out.print(text)
    out.print()
    for text in receipt:
        out.print(text, soft_wrap=True)
    if receipt:
        out.print()
    days = _Days(timeline.header.created_at)
    for line in timeline.lines:
        if day := days.change(line):
            out.print(styled((" " * MARGIN + day, "dim italic")))
        for text in _line(line, out.width):
            out.print(text, soft_wrap=True)
    if timeline.advice:
        out.print()
        out.print(styled(("Next", "bold")))
        for advice in timeline.advice:
            out.print(styled(("  " + advice.text, "")))
            for command in advice.commands:
                out.print(styled(("    " + command, "bold cyan")), soft_wrap=True)


class _Days:
    """Tracks the day and the zone, which are shown wherever they change."""

    def __init__(self, began_at: int) -> None:
        self.shown = self._day(began_at)

    def change(self, line: Line) -> str:
        """The day and the zone to show before the line; "" if they are unchanged."""
        if line.kind == "gap":
            if (day := line.text.rpartition(", on ")[2]) != line.text:
                self.shown = day + self.shown[len(day) :]
            return ""
        day, before = self._day(line.at), self.shown
        self.shown = day
        return day if day != before else ""

    @staticmethod
    def _day(at_us: int) -> str:
        return local_time(at_us).strftime("%Y-%m-%d %Z")


def _header(header: Header) -> Iterator["Text"]:
    yield styled((clean(header.name, 80), "bold"), ("  " + header.job_id, "dim"))
    facts = [moment_text(header.created_at), f"took {span_text(header.span_us)}"]
    if header.finished_at is None:
        facts[1] = f"{span_text(header.span_us)} so far"
    if header.parked_us:
        facts[1] += f" (parked {span_text(header.parked_us)} of it)"
    facts.append(f"cost {cost_text(header.cost_microusd)}")
    if header.bound_microusd:
        facts.append(f"unknown cost: at most {cost_text(header.bound_microusd)}")
    yield styled((header.state, "bold " + STATE_STYLES.get(header.state, "")), ("   " + " · ".join(facts), ""))
    if header.error:
        yield styled((header.error, "red"))
    if header.idle:
        yield styled((header.idle, "yellow"))
    for wait in header.waiting:
        yield styled(("waits for " + wait, "magenta"))
    yield _counts(header)
    if header.models:
        models = sorted(header.models.items(), key=lambda item: -item[1])
        texts = [_model_text(name, cost, header.model_bounds.get(name, 0)) for name, cost in models]
        yield styled(("models: " + ", ".join(texts), "dim"))
    about = [("tenant", header.tenant_id if header.tenant_id != "default" else None), ("agent", header.agent_id)]
    about += [("external id", header.external_id), ("child of", header.parent_job_id)]
    known = [f"{label} {clean(value, 100)}" for label, value in about if value]
    if known:
        yield styled((" · ".join(known), "dim"))


def _model_text(name: str, cost: int, bound: int) -> str:
    unknown = f" (unknown: at most {cost_text(bound)})" if bound else ""
    return f"{clean(name, 60)} {cost_text(cost)}{unknown}"


def _counts(header: Header) -> "Text":
    counts = [
        (header.model_calls, "model call", ""),
        *([(header.paid_calls, "paid", "paid")] if header.paid_calls != header.model_calls else []),
        (header.tool_calls, "tool call", ""),
        (header.steps, "step", ""),
        (header.retries, "retry", "retries"),
        (header.fallbacks, "fallback", ""),
        (header.human_decisions, "human decision", ""),
        (header.crashes, "crash survived", "crashes survived"),
    ]
    extra = [
        (header.replayed_calls, "replayed response", ""),
        (header.cached_calls, "cached response", ""),
        (header.child_jobs, "child job", ""),
    ]
    counts += [each for each in extra if each[0]]
    pieces: list[tuple[str, str]] = []
    for number, what, many in counts:
        pieces += [(" · ", "dim")] if pieces else []
        pieces.append((count_text(number, what, many), "" if number else "dim"))
    return styled(*pieces)


def _line(line: Line, width: int) -> Iterator["Text"]:

    indent = "  " * line.depth
    if line.kind == "gap":
        yield styled((" " * MARGIN + indent + line.text, "dim italic"))
        return
    mark, mark_style = KIND_MARKS.get(line.kind) or MARKS.get(line.status, MARKS["note"])
    body = styled(
        (line.text, KIND_STYLES.get(line.kind, "dim" if line.status in {"lost", "stopped"} else "")),
        (f"  {' · '.join(line.facts)}" if line.facts else "", "dim"),
        (f"  ({line.why})" if line.why else "", "dim italic"),
    )
    lead = f"{clock_text(line.at)}  {indent}"
    room = max(20, width - len(lead) - 3)
    first = True
    for part in body.wrap(console(), room):
        part.rstrip()
        head = styled((lead, "dim"), (mark + " ", mark_style)) if first else styled(" " * (len(lead) + 2))
        yield head + part
        first = False
    for shown in line.content:
        for part in styled((f"{shown.what}: ", "dim"), (shown.text, "")).wrap(console(), room):
            part.rstrip()
            yield styled(" " * (len(lead) + 4)) + part
