"""What a job waits for, in words, and what a person can do about it: the exact command."""

import shlex
from collections.abc import Mapping
from typing import Any

import msgspec

from overnight.ledger import JobRow

from .text import (
    clean,
    moment_text,
    span_text,
    until_text,
)

MOST_ALIKE = 3
MOST_ADVICE = 6


class Advice(msgspec.Struct):
    """One thing to do, or to know. `commands` are ready to be pasted; none where nothing has to be done."""

    text: str
    commands: tuple[str, ...] = ()


def waiting_words(wait: dict[str, Any], now_us: int) -> str:
    """One reason a job is parked for, as the end of "waits for …"."""
    match wait.get("for"):
        case "approval":
            return f"a person's approval ({wait.get('review_id')})"
        case "quarantine" if wait.get("review_id"):
            return f"a person to say what became of an effect ({wait.get('review_id')})"
        case "quarantine":
            return f"a person: {clean(wait.get('why') or 'it was put into quarantine')}"
        case "budget":
            return f"budget: {clean(wait.get('why') or wait.get('limit'))}"
        case "timer" | "backoff" as what:
            due = wait.get("due_at")
            if not isinstance(due, int):
                return what
            left = f", in {span_text(due - now_us)}" if due > now_us else ""
            return f"the clock: {until_text(due, now_us)}{left}"
        case "child":
            return f"child job {wait.get('child_job_id')}"
        case "divergence":
            return "a person: its code no longer asks what its history answers"
        case other:
            name = f" {clean(wait['name'])}" if wait.get("name") else ""
            return f"{other}{name}"


def needs_person(wait: dict[str, Any]) -> bool:
    """Whether only a person can end this wait: time, a child job or the next day's budget ends the others."""
    kind = wait.get("for")
    return kind in {"approval", "quarantine", "divergence"} or (kind == "budget" and wait.get("due_at") is None)


def waiting_list(waits: list[dict[str, Any]], now_us: int) -> list[str]:
    """All that a job waits for; of many of one kind the first few, and how many more."""
    words: list[str] = []
    for kind in dict.fromkeys(str(wait.get("for")) for wait in waits):
        alike = [wait for wait in waits if str(wait.get("for")) == kind]
        words += [waiting_words(wait, now_us) for wait in alike[:MOST_ALIKE]]
        if len(alike) > MOST_ALIKE:
            words.append(f"{len(alike) - MOST_ALIKE:,} more of the kind {kind}")
    return words


def advise(job: JobRow, open_reviews: Mapping[str, str], now_us: int) -> list[Advice]:
    """What to do next; empty when the job needs nobody. `open_reviews` is id to kind."""
    if job.runtime == "foreign" and open_reviews:
        asked = [_for_loop(each) if kind == "loop" else _for_effect(each) for each, kind in open_reviews.items()]
        return asked if job.state == "running" and "loop" in open_reviews.values() else [*asked, _for_foreign(job)]
    if job.state == "parked":
        waits = job.waits
        advice = [_for_wait(job.job_id, wait, now_us) for wait in waits[:MOST_ADVICE]]
        if len(waits) > MOST_ADVICE:
            more = ("overnight reviews", "overnight jobs --children --state parked")
            advice.append(Advice(f"It waits for {len(waits) - MOST_ADVICE:,} things more:", more))
        return advice
    if job.state == "failed":
        return [_for_failed(job)]
    if job.state == "queued":
        return [Advice("It waits for a worker. Start one, or work it here:", ("overnight up", _command("resume", job)))]
    if job.state == "running" and job.runtime == "python" and (job.lease_expires_at or 0) < now_us:
        return [
            Advice(
                "Its worker is gone. A running worker takes it over by itself; without one:", (_command("resume", job),)
            )
        ]
    return []


def _command(verb: str, job: JobRow) -> str:
    return f"overnight {verb} {job.job_id}"


def _for_failed(job: JobRow) -> Advice:
    if job.runtime == "foreign":
        return _for_foreign(job)
    return Advice(
        "Once the cause is gone, try again. Committed steps and effects stand; only what failed is asked afresh:",
        (_command("resume", job),),
    )


def _for_foreign(job: JobRow) -> Advice:
    return Advice(
        f"Start its program again; as attempt {job.attempt + 1} its recorded answers are given back unpaid, and what was"
        " committed is not done again."
    )


def _for_effect(review_id: str) -> Advice:
    approve, reject = f"overnight reviews approve {review_id}", f"overnight reviews reject {review_id}"
    return Advice(
        "Look with the provider whether it was done, then say so (a rejection gives it up):",
        (f"{approve} --done --provider-id ID", f"{approve} --not-done", reject),
    )


def _for_loop(review_id: str) -> Advice:
    approve, reject = f"overnight reviews approve {review_id}", f"overnight reviews reject {review_id}"
    return Advice("Look what it asks again and again; then let it go on, or stop it:", (approve, reject))


def _for_budget(resume: str, wait: dict[str, Any], now_us: int) -> Advice:
    limit = clean(wait.get("limit") or "the budget")
    if not wait.get("name"):
        return Advice(f"Raise {limit} in the brain's routing.yaml (`overnight check`), then:", (resume,))
    per = f" --per {wait['per']}" if wait.get("per") not in {None, "total"} else ""
    amount = next((option for part, option in _AMOUNTS.items() if part in limit), "--usd 1")
    top_up = f"overnight budget top-up {wait['scope']} {shlex.quote(str(wait['name']))}{per} {amount} --why TEXT"
    due = wait.get("due_at")
    waits = f"; or wait, it goes on at {moment_text(due)}" if isinstance(due, int) and due > now_us else ""
    bounds = wait.get("bounds", ())
    if bounds:
        named = ", ".join(f"{clean(each['call_id'], 60)} (at most ${each['bound_usd']:.4f})" for each in bounds)
        settle = tuple(
            f"overnight budget settle {shlex.quote(str(each['call_id']))} --usd COST --why TEXT" for each in bounds
        )
        return Advice(
            f"Calls of unknown cost count against it at their bound: {named}. Book what they cost, as the provider's invoice"
            f" says, or add to this budget; it goes on by itself{waits}:",
            (*settle, top_up),
        )
    return Advice(
        f"Add to this budget, and it goes on by itself; or raise {limit} in the brain's routing.yaml (`overnight check`)"
        f" and resume it{waits}:",
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
    match wait.get("for"):
        case "approval":
            return Advice("Decide:", (f"overnight reviews approve {review}", f"overnight reviews reject {review}"))
        case "quarantine" if wait.get("review_id"):
            return _for_effect(review)
        case "quarantine":
            return Advice(f"Repair the cause ({clean(wait.get('why') or 'see above')}), then:", (resume,))
        case "budget":
            return _for_budget(resume, wait, now_us)
        case "timer" | "backoff":
            return Advice(f"Nothing: it goes on by itself ({waiting_words(wait, now_us)}), as long as a worker runs.")
        case "child":
            return Advice("It waits for its child job:", (f"overnight explain {wait.get('child_job_id')}",))
        case "divergence":
            return Advice(
                "Put the code back as it was when the job began, then:", (resume, f"overnight cancel {job_id}")
            )
        case _:
            return Advice(f"It goes on once {waiting_words(wait, now_us)} arrives.")
