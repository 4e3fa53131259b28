"""What a job waits for, and the commands that a person can run."""

import shlex
from collections.abc import Mapping
from typing import Any

import msgspec

from overnight.ledger import JobRow, is_idle

from .text import (
    clean,
    moment_text,
    span_text,
    until_text,
)

MAX_PER_KIND = 3
MAX_ADVICE = 6


class Advice(msgspec.Struct):
    """One next action. `commands` are complete; empty if nothing has to be done."""

    text: str
    commands: tuple[str, ...] = ()


def wait_text(wait: dict[str, Any], now_us: int) -> str:
    """One wait of a parked job, as the object of "waits for …"."""
    if wait.get("expired_at") is not None:
        return f"{wait.get('for')} ({wait.get('review_id')}), which expired without a decision"
    match wait.get("for"):
        case "approval":
            return f"approval ({wait.get('review_id')})"
        case "quarantine" if _is_unknown_effect(wait):
            return f"a decision about an effect with unknown outcome ({wait.get('review_id')})"
        case "quarantine":
            return f"repair: {clean(wait.get('why') or 'the job is in quarantine')}"
        case "budget":
            return f"budget: {clean(wait.get('why') or wait.get('limit'))}"
        case "timer" | "backoff" as what:
            due = wait.get("due_at")
            if not isinstance(due, int):
                return what
            left = f", in {span_text(due - now_us)}" if due > now_us else ""
            return f"a timer: {until_text(due, now_us)}{left}"
        case "child":
            return f"child job {wait.get('child_job_id')}"
        case "divergence":
            return "a person: the job code no longer matches its recorded history"
        case other:
            name = f" {clean(wait['name'])}" if wait.get("name") else ""
            return f"{other}{name}"


def _is_unknown_effect(wait: dict[str, Any]) -> bool:
    """Whether a wait in quarantine is about the outcome of an effect, and not about the code of the job."""
    return bool(wait.get("review_id")) and wait.get("review") != "code"


def needs_person(wait: dict[str, Any]) -> bool:
    """Whether only a person can end this wait. Timers, child jobs and new budget periods end the others."""
    kind = wait.get("for")
    return kind in {"approval", "quarantine", "divergence"} or (kind == "budget" and wait.get("due_at") is None)


def waiting_list(waits: list[dict[str, Any]], now_us: int) -> list[str]:
    """Everything a job waits for; at most three waits per kind, and the number of further ones."""
    texts: list[str] = []
    for kind in dict.fromkeys(str(wait.get("for")) for wait in waits):
        alike = [wait for wait in waits if str(wait.get("for")) == kind]
        texts += [wait_text(wait, now_us) for wait in alike[:MAX_PER_KIND]]
        if len(alike) > MAX_PER_KIND:
            texts.append(f"{len(alike) - MAX_PER_KIND:,} more {kind} waits")
    return texts


def advise(job: JobRow, open_reviews: Mapping[str, str], now_us: int) -> list[Advice]:
    """The next actions; empty if the job needs none. `open_reviews` maps review id to kind."""
    if job.runtime == "foreign" and open_reviews:
        decisions = [_for_review(each, kind) for each, kind in open_reviews.items()]
        return (
            decisions
            if job.state == "running" and "loop" in open_reviews.values()
            else [*decisions, _for_external(job)]
        )
    if job.state == "parked":
        waits = job.waits
        advice = [_for_wait(job.job_id, wait, now_us) for wait in waits[:MAX_ADVICE]]
        if len(waits) > MAX_ADVICE:
            more = ("overnight reviews", "overnight jobs --children --state parked")
            advice.append(Advice(f"{len(waits) - MAX_ADVICE:,} further waits; list them with:", more))
        return advice
    if job.state == "failed":
        return [_for_failed(job)]
    if job.state == "queued":
        return [
            Advice(
                "The job is queued. Start a worker, or run the job here:",
                ("overnight up", _command("resume", job)),
            )
        ]
    if job.state == "running" and job.runtime == "python" and (job.lease_expires_at or 0) < now_us:
        return [
            Advice("Its worker is lost. A running worker takes the job over; without one:", (_command("resume", job),))
        ]
    if is_idle(job, now_us):
        return [
            Advice(
                "A further call continues the job. If its program has ended, end the job; otherwise it ends as failed after the"
                " time of limits.external_abandoned_hours:",
                (_command("cancel", job),),
            )
        ]
    return []


def _command(verb: str, job: JobRow) -> str:
    return f"overnight {verb} {job.job_id}"


def _for_failed(job: JobRow) -> Advice:
    if job.runtime == "foreign":
        return _for_external(job)
    return Advice(
        "Fix the cause, then retry. Committed steps and effects are kept; only the failed part re-runs:",
        (_command("resume", job),),
    )


def _for_external(job: JobRow) -> Advice:
    return Advice(
        f"Start its program again. Attempt {job.attempt + 1} replays the recorded answers at no cost and does not repeat"
        " committed effects."
    )


def _for_review(review_id: str, kind: str) -> Advice:
    if kind == "loop":
        return _for_loop(review_id)
    if kind == "quarantine":
        return _for_effect(review_id)
    return Advice("Read the review, which lists its answers:", (f"overnight reviews show {review_id}",))


def _for_effect(review_id: str) -> Advice:
    approve, reject = f"overnight reviews approve {review_id}", f"overnight reviews reject {review_id}"
    return Advice(
        "Check with the provider whether the effect was done, then record the outcome (a rejection fails it):",
        (f"{approve} --done --provider-id ID", f"{approve} --not-done", reject),
    )


def _for_loop(review_id: str) -> Advice:
    approve, reject = f"overnight reviews approve {review_id}", f"overnight reviews reject {review_id}"
    return Advice("Check the repeated call, then approve the job or stop it:", (approve, reject))


def _for_budget(resume: str, wait: dict[str, Any], now_us: int) -> Advice:
    limit = clean(wait.get("limit") or "the budget")
    if not wait.get("name"):
        return Advice(f"Raise {limit} in the brain's routing.yaml (`overnight check`), then:", (resume,))
    per = f" --per {wait['per']}" if wait.get("per") not in {None, "total"} else ""
    amount = next((option for part, option in _AMOUNTS.items() if part in limit), "--usd 1")
    top_up = f"overnight budget top-up {wait['scope']} {shlex.quote(str(wait['name']))}{per} {amount} --why TEXT"
    due = wait.get("due_at")
    waits = f"; or wait: it resumes at {moment_text(due)}" if isinstance(due, int) and due > now_us else ""
    bounds = wait.get("bounds", ())
    if bounds:
        named = ", ".join(f"{clean(each['call_id'], 60)} (at most ${each['bound_usd']:.4f})" for each in bounds)
        settle = tuple(
            f"overnight budget settle {shlex.quote(str(each['call_id']))} --usd COST --why TEXT" for each in bounds
        )
        return Advice(
            f"Calls of unknown cost count at their upper bound: {named}. Book their real cost from the provider's invoice, or"
            f" add to this budget; the job then resumes automatically{waits}:",
            (*settle, top_up),
        )
    return Advice(
        f"Add to this budget, and the job resumes automatically; or raise {limit} in the brain's routing.yaml"
        f" (`overnight check`) and resume the job{waits}:",
        (top_up, resume),
    )


_AMOUNTS = {
    "tool_calls": "--tool-calls 10",
    "calls": "--calls 10",
    "tokens": "--tokens 100000",
    "clock": "--seconds 3600",
}


def _for_wait(job_id: str, wait: dict[str, Any], now_us: int) -> Advice:
    review = shlex.quote(str(wait.get("review_id")))
    resume = f"overnight resume {job_id}"
    if wait.get("expired_at") is not None:
        return Advice(
            "Nobody decided in time, which is no rejection. To ask again:", (f"overnight reviews renew {review}",)
        )
    match wait.get("for"):
        case "approval" if wait.get("answers") == ["answer"]:
            return Advice("Answer:", (f"overnight reviews answer {review} --text TEXT",))
        case "approval":
            return Advice("Decide:", (f"overnight reviews approve {review}", f"overnight reviews reject {review}"))
        case "quarantine" if _is_unknown_effect(wait):
            return _for_effect(review)
        case "quarantine":
            return Advice(f"Fix the cause ({clean(wait.get('why') or 'see above')}), then:", (resume,))
        case "budget":
            return _for_budget(resume, wait, now_us)
        case "timer" | "backoff":
            return Advice(f"No action needed: the job resumes after {wait_text(wait, now_us)}, if a worker runs.")
        case "child":
            return Advice("The job waits for its child job:", (f"overnight explain {wait.get('child_job_id')}",))
        case "divergence":
            return Advice(
                "Restore the job code of the time when the job started, then:", (resume, f"overnight cancel {job_id}")
            )
        case _:
            return Advice(f"The job resumes when {wait_text(wait, now_us)} arrives.")
