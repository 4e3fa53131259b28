"""The trunk of the story: started, crashed, taken over, parked, decided, ended."""

from typing import Any

import msgspec

from overnight.domain import ErrorFacts, Recorded
from overnight.ledger import JobRow

from .advice import waiting_list
from .lines import Shown
from .text import (
    clean,
    count_text,
    span_text,
    trace_text,
    who,
)
from .timeline import Tale

LONG_IN_LINE_US = 1_000_000


def error_words(error: ErrorFacts | None) -> str:
    """What went wrong: its class or code, and the message."""
    if error is None:
        return "no reason given"
    kind = (
        f"{error.error_class} ({error.code})" if error.code and error.code != error.error_class else error.error_class
    )
    return clean(error.message if error.message.startswith(error.error_class) else f"{kind}: {error.message}")


def row_error(job: JobRow) -> str:
    """The error a finished job ended with; empty without one."""
    return error_words(msgspec.json.decode(job.error, type=ErrorFacts)) if job.error else ""


def reason(event: Recorded) -> str:
    return str((event.facts.decision or {}).get("why", ""))


def _created(tale: Tale, event: Recorded) -> None:
    outside = tale.job.runtime == "foreign"
    text = "begun by a program of its own" if outside else "put in line"
    node = tale.milestone(event, "start", text + (f" by {who(event.facts.actor)}" if event.facts.actor else ""))
    tale.show(node, "input", tale.job.input)
    node.hidden = tale.is_child and not node.content
    if tale.job.unattributed:
        node.why = "the call named no job, so it got one of its own"


def _started(tale: Tale, event: Recorded) -> None:
    first = tale.turning
    if event.facts.decision is not None:
        tale.milestone(event, "start", f"opened again: {reason(event)}")
    elif first is None or first.kind != "start":
        tale.milestone(event, "start", f"started by {who(event.facts.actor)}")
    else:
        waited = event.at - first.at
        first.text, first.ended_at = f"started by {who(event.facts.actor)}", event.at
        first.seqs.append(event.seq)
        if waited > LONG_IN_LINE_US:
            first.why, first.hidden = f"after {span_text(waited)} in line", False


def _worker_lost(tale: Tale, event: Recorded) -> None:
    number = (event.facts.detail or {}).get("recoveries", 1)
    node = tale.milestone(event, "crash", f"{who(event.facts.actor)} lost", leaving="lost", status="failed")
    node.outcome = "it died, or gave no sign of life until its lease ran out"
    node.facts.append(f"crash {number}")


def _resumed(tale: Tale, event: Recorded) -> None:
    crashed = event.facts.decision is not None
    verb = "resumed after the crash" if crashed else "resumed"
    was_told = tale.turning is not None and tale.turning.kind == "park" and tale.turning.hidden
    tale.milestone(event, "resume", f"{verb} by {who(event.facts.actor)}").hidden = was_told and not crashed


def _replay_ended(tale: Tale, event: Recorded) -> None:
    given = count_text((event.facts.detail or {}).get("answers", 0), "recorded answer")
    outcome = f"{given} replayed, nothing of it paid or done again"
    if tale.turning is not None and tale.turning.kind == "resume":
        tale.turning.outcome = outcome
        tale.turning.seqs.append(event.seq)
    else:
        tale.note(None, event, outcome, "replayed")


def _parked(tale: Tale, event: Recorded) -> None:
    waits: list[dict[str, Any]] = (event.facts.detail or {}).get("waiting", [])
    words = "; ".join(waiting_list(waits, event.at)) or reason(event)
    node = tale.milestone(
        event, "park", f"parked, holding no thread: waits for {words}", leaving="waiting", status="waiting"
    )
    # A child's own lines stand where the parent waits for it, so they say it already.
    node.hidden = bool(waits) and all(
        wait.get("for") == "child" and wait.get("child_job_id") in tale.chapter.children for wait in waits
    )


def _scheduled(tale: Tale, event: Recorded) -> None:
    if event.facts.actor is None:
        tale.milestone(event, "park", f"put back in line: {reason(event)}", leaving="stopped")
    elif tale.turning is not None and tale.turning.kind == "attempt":
        tale.turning.seqs.append(event.seq)
    else:
        tale.milestone(event, "decision", f"{who(event.facts.actor)} put it back in line")


def _attempt_started(tale: Tale, event: Recorded) -> None:
    mode = (event.facts.detail or {}).get("mode")
    if mode == "quarantine":
        return  # the park that follows tells why
    by = f" by {who(event.facts.actor)}" if event.facts.actor else ""
    if tale.job.runtime == "foreign":
        if (
            mode == "recover"
            and tale.turning is not None
            and tale.turning.kind != "end"
            and "asked" not in tale.stretch
        ):
            crash = tale.milestone(event, "crash", "its program was lost", leaving="lost", status="failed")
            crash.outcome = "it came back without having ended"
        text = (
            f"attempt {event.facts.attempt} announced{by}: fences the one before; its recorded answers are given back"
        )
        tale.milestone(event, "attempt", text, leaving="lost")
    else:
        by = " with its parent" if event.facts.actor == tale.job.parent_job_id else by
        tale.milestone(event, "attempt", f"attempt {event.facts.attempt}{by}: tries again what failed", leaving="lost")


def _answers_dropped(tale: Tale, event: Recorded) -> None:
    detail = event.facts.detail or {}
    seqs: list[int] = detail.get("seqs", [])
    words = f"asks afresh what {count_text(len(seqs), 'recorded answer')} said; the others stand"
    retried = tale.stretch.get("retried") if "loose" not in detail else None
    if "since" in detail and "position" not in detail:
        text = f"what was recorded from event {detail['since']} on is given back only where the code asks for it again"
        tale.note(None, event, text)
    elif not seqs:
        return
    elif retried is not None:
        retried.why, retried.seqs = words, [*retried.seqs, event.seq]
    elif tale.turning is not None:
        tale.turning.why = words
        tale.turning.seqs.append(event.seq)


def _cancel_requested(tale: Tale, event: Recorded) -> None:
    tale.note(None, event, f"{who(event.facts.actor)} asked for it to stop", kind="decision")


def _completed(tale: Tale, event: Recorded) -> None:
    node = tale.milestone(event, "end", "succeeded", leaving="stopped", status="done")
    node.why = reason(event)
    tale.show(node, "result", event.content)
    node.hidden = tale.is_child and not node.content


def _failed(tale: Tale, event: Recorded) -> None:
    node = tale.milestone(event, "end", "failed", leaving="stopped", status="failed")
    node.outcome, node.why = error_words(event.facts.error), reason(event)
    if (where := trace_text(event.content)) and not tale.is_child:
        node.content.append(Shown("raised at", where))  # it holds no values, so nobody has to ask for it


def _cancelled(tale: Tale, event: Recorded) -> None:
    by = f" by {who(event.facts.actor)}" if event.facts.actor else ""
    tale.milestone(event, "end", f"cancelled{by}", leaving="stopped", status="failed")


def _diverged(tale: Tale, event: Recorded) -> None:
    detail = event.facts.detail or {}
    changed: dict[str, Any] = detail.get("changed") or {}
    if not changed:
        unused = detail.get("unconsumed")
        text = "asks for something else than an earlier attempt did, and goes on live"
        node = tale.note(None, event, text, "unknown")
        node.why = f"{count_text(unused, 'recorded answer')} left unused" if isinstance(unused, int) else ""
        return
    words = (
        clean(detail["why"], 200)
        if detail.get("why")
        else ", ".join(
            f"{what} was {_value(each, 'recorded')}, now {_value(each, 'asked')}" for what, each in changed.items()
        )
    )
    place: dict[str, Any] = detail.get("position") or {}
    where = f"boundary {place.get('ordinal')}" + (f" of {place['path']}" if place.get("path") else "")
    tale.note(
        None, event, f"diverged at {where}: the code no longer asks what its history answers", "failed"
    ).why = words


def _value(change: Any, side: str) -> str:
    return clean(change.get(side), 80) if isinstance(change, dict) else clean(change, 80)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]


def _signal_received(tale: Tale, event: Recorded) -> None:
    node = tale.note(tale.at(event), event, f"signal {event.facts.name or ''} from {who(event.facts.actor)}", "done")
    tale.show(node, "signal", event.content)


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
