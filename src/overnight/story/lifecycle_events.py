"""Timeline lines of the job itself: started, crashed, resumed, parked, finished."""

from typing import Any

import msgspec

from overnight.domain import ErrorFacts, Recorded
from overnight.ledger import JobRow

from .advice import waiting_list
from .lines import Shown
from .text import (
    actor_text,
    clean,
    count_text,
    span_text,
    trace_text,
)
from .timeline import TimelineBuilder

LONG_QUEUE_US = 1_000_000


def error_text(error: ErrorFacts | None) -> str:
    """The class or code of an error, and its message."""
    if error is None:
        return "no reason given"
    kind = (
        f"{error.error_class} ({error.code})" if error.code and error.code != error.error_class else error.error_class
    )
    return clean(error.message if error.message.startswith(error.error_class) else f"{kind}: {error.message}")


def row_error(job: JobRow) -> str:
    """The error of a failed job; "" without one."""
    return error_text(msgspec.json.decode(job.error, type=ErrorFacts)) if job.error else ""


def reason(event: Recorded) -> str:
    return str((event.facts.decision or {}).get("why", ""))


def _created(builder: TimelineBuilder, event: Recorded) -> None:
    external = builder.job.runtime == "foreign"
    text = "started by an external program" if external else "queued"
    by = actor_text(event.facts.actor) if event.facts.actor else ""
    if by:
        text += f" ({by})" if external else f" by {by}"
    node = builder.milestone(event, "start", text)
    builder.add_content(node, "input", builder.job.input)
    node.hidden = builder.is_child and not node.content
    if builder.job.unattributed:
        node.why = "the call named no job, so a new job was created"


def _started(builder: TimelineBuilder, event: Recorded) -> None:
    first = builder.last_milestone
    if event.facts.decision is not None:
        builder.milestone(event, "start", f"reopened: {reason(event)}")
    elif first is None or first.kind != "start":
        builder.milestone(event, "start", f"started by {actor_text(event.facts.actor)}")
    else:
        waited = event.at - first.at
        first.text, first.ended_at = f"started by {actor_text(event.facts.actor)}", event.at
        first.seqs.append(event.seq)
        if waited > LONG_QUEUE_US:
            first.why, first.hidden = f"after {span_text(waited)} in the queue", False


def _worker_lost(builder: TimelineBuilder, event: Recorded) -> None:
    number = (event.facts.detail or {}).get("recoveries", 1)
    node = builder.milestone(event, "crash", f"{actor_text(event.facts.actor)} lost", leaving="lost", status="failed")
    node.outcome = "its process ended, or its lease expired"
    node.facts.append(f"crash {number}")


def _resumed(builder: TimelineBuilder, event: Recorded) -> None:
    crashed = event.facts.decision is not None
    verb = "resumed after the crash" if crashed else "resumed"
    is_shown = (
        builder.last_milestone is not None and builder.last_milestone.kind == "park" and builder.last_milestone.hidden
    )
    builder.milestone(event, "resume", f"{verb} by {actor_text(event.facts.actor)}").hidden = is_shown and not crashed


def _replay_ended(builder: TimelineBuilder, event: Recorded) -> None:
    replayed = count_text((event.facts.detail or {}).get("answers", 0), "recorded answer")
    outcome = f"replayed {replayed} at no cost"
    if builder.last_milestone is not None and builder.last_milestone.kind == "resume":
        builder.last_milestone.outcome = outcome
        builder.last_milestone.seqs.append(event.seq)
    else:
        builder.note(None, event, outcome, "replayed")


def _parked(builder: TimelineBuilder, event: Recorded) -> None:
    waits: list[dict[str, Any]] = (event.facts.detail or {}).get("waiting", [])
    waits_text = "; ".join(waiting_list(waits, event.at)) or reason(event)
    node = builder.milestone(event, "park", f"parked: waits for {waits_text}", leaving="waiting", status="waiting")
    # The lines of the child job stand where the parent waits for it.
    node.hidden = bool(waits) and all(
        wait.get("for") == "child" and wait.get("child_job_id") in builder.tree.children for wait in waits
    )


def _scheduled(builder: TimelineBuilder, event: Recorded) -> None:
    if event.facts.actor is None:
        builder.milestone(event, "park", f"queued again: {reason(event)}", leaving="stopped")
    elif builder.last_milestone is not None and builder.last_milestone.kind == "attempt":
        builder.last_milestone.seqs.append(event.seq)
    else:
        builder.milestone(event, "decision", f"{actor_text(event.facts.actor)} queued it again")


def _attempt_started(builder: TimelineBuilder, event: Recorded) -> None:
    mode = (event.facts.detail or {}).get("mode")
    if mode == "quarantine":
        return  # the park that follows shows the reason
    by = f" by {actor_text(event.facts.actor)}" if event.facts.actor else ""
    if builder.job.runtime == "foreign":
        if (
            mode == "recover"
            and builder.last_milestone is not None
            and builder.last_milestone.kind != "end"
            and "asked" not in builder.segment
        ):
            crash = builder.milestone(event, "crash", "external program lost", leaving="lost", status="failed")
            crash.outcome = "reconnected without having finished"
        text = f"attempt {event.facts.attempt} announced{by}: the previous attempt is blocked; recorded answers are replayed"
        builder.milestone(event, "attempt", text, leaving="lost")
    else:
        by = " with its parent" if event.facts.actor == builder.job.parent_job_id else by
        builder.milestone(
            event, "attempt", f"attempt {event.facts.attempt}{by}: retries the failed part", leaving="lost"
        )


def _answers_dropped(builder: TimelineBuilder, event: Recorded) -> None:
    detail = event.facts.detail or {}
    seqs: list[int] = detail.get("seqs", [])
    text = f"re-runs {count_text(len(seqs), 'recorded answer')}; the others are kept"
    retried = builder.segment.get("retried") if "loose" not in detail else None
    if "since" in detail and "position" not in detail:
        note = f"answers from event {detail['since']} on are replayed only where the code requests them again"
        builder.note(None, event, note)
    elif not seqs:
        return
    elif retried is not None:
        retried.why, retried.seqs = text, [*retried.seqs, event.seq]
    elif builder.last_milestone is not None:
        builder.last_milestone.why = text
        builder.last_milestone.seqs.append(event.seq)


def _cancel_requested(builder: TimelineBuilder, event: Recorded) -> None:
    builder.note(None, event, f"{actor_text(event.facts.actor)} requested cancellation", kind="decision")


def _completed(builder: TimelineBuilder, event: Recorded) -> None:
    node = builder.milestone(event, "end", "succeeded", leaving="stopped", status="done")
    node.why = reason(event)
    builder.add_content(node, "result", event.content)
    node.hidden = builder.is_child and not node.content


def _failed(builder: TimelineBuilder, event: Recorded) -> None:
    node = builder.milestone(event, "end", "failed", leaving="stopped", status="failed")
    node.outcome, node.why = error_text(event.facts.error), reason(event)
    if (where := trace_text(event.content)) and not builder.is_child:
        node.content.append(Shown("raised at", where))  # it holds no values, so it is always shown


def _cancelled(builder: TimelineBuilder, event: Recorded) -> None:
    by = f" by {actor_text(event.facts.actor)}" if event.facts.actor else ""
    builder.milestone(event, "end", f"cancelled{by}", leaving="stopped", status="failed")


def _diverged(builder: TimelineBuilder, event: Recorded) -> None:
    detail = event.facts.detail or {}
    changed: dict[str, Any] = detail.get("changed") or {}
    if not changed:
        unused = detail.get("unconsumed")
        text = "differs from the recorded attempt, so new calls are made from here on"
        node = builder.note(None, event, text, "unknown")
        node.why = f"{count_text(unused, 'recorded answer')} left unused" if isinstance(unused, int) else ""
        return
    differences = ", ".join(
        f"{name}: recorded {_value(each, 'recorded')}, now {_value(each, 'asked')}" for name, each in changed.items()
    )
    place: dict[str, Any] = detail.get("position") or {}
    where = f"boundary {place.get('ordinal')}" + (f" of {place['path']}" if place.get("path") else "")
    node = builder.note(None, event, f"diverged at {where}: the job code no longer matches its history", "failed")
    node.why = clean(detail["why"], 200) if detail.get("why") else differences


def _value(change: Any, side: str) -> str:
    return clean(change.get(side), 80) if isinstance(change, dict) else clean(change, 80)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]


def _signal_received(builder: TimelineBuilder, event: Recorded) -> None:
    node = builder.note(
        builder.node_at(event), event, f"signal {event.facts.name or ''} from {actor_text(event.facts.actor)}", "done"
    )
    builder.add_content(node, "signal", event.content)


MILESTONES = {
    "created": _created,
    "started": _started,
    "worker_lost": _worker_lost,
    "resumed": _resumed,
    "replay_ended": _replay_ended,
    "parked": _parked,
    "scheduled": _scheduled,
    "attempt_started": _attempt_started,
    "answers_dropped": _answers_dropped,
    "cancel_requested": _cancel_requested,
    "completed": _completed,
    "failed": _failed,
    "cancelled": _cancelled,
    "diverged": _diverged,
    "signal_received": _signal_received,
}
