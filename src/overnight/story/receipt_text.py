"""The text of a receipt: a line for each effect, question, missing call and claim. Pure."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec

from overnight.domain import FINISHED
from overnight.domain.json_text import decode_for_display
from overnight.reports import CheckedClaim, EffectEntry, Receipt, ReviewEntry, Verification, WaitsFor

from .text import actor_text, clean, clock_text, count_text, local_time, until_text

MAX_ARGUMENTS, MAX_VALUE = 60, 40
_WORDS = {
    "committed": "done",
    "failed": "failed",
    "rejected": "rejected",
    "refused": "refused",
    "expired": "expired",
    "released": "not done",
    "unknown": "unknown",
    "waiting": "waiting",
    "approved": "approved",
    "claimed": "in progress",
    "replayed": "replayed",
}
_MARKS = {"committed": "✓", "unknown": "?", "waiting": "‖", "approved": "‖", "claimed": "›"}
_VERDICT_MARKS = {"supported": "✓", "unsupported": "!", "pending": "?", "unchecked": "?"}


class ReceiptLine(msgspec.Struct, frozen=True):
    """`mark` is ✓ done, ✗ not done, ? unknown, ‖ waiting, › in progress, or ! a contradiction."""

    mark: str
    text: str


def receipt_head(receipt: Receipt) -> str:
    """The first line: the job, its state, and its effects by state."""
    # An external program's job is known by the id that the program gave.
    named = receipt.external_id if receipt.runtime == "foreign" and receipt.external_id else receipt.name
    return f"{receipt.job_id} {clean(named, 60)} {receipt.state}: {receipt_counts(receipt)}"


def receipt_counts(receipt: Receipt) -> str:
    """The numbers of effects by state, and of the reported ones apart from those that Overnight knows to be done."""
    return ", ".join(_counted(receipt)) or none_text(receipt)


def _counted(receipt: Receipt) -> list[str]:
    counts = dict(receipt.counts)
    reported = receipt.found_by.get("reported", 0)
    if "committed" in counts:
        counts["committed"] -= reported
    texts = [f"{counts[state]:,} {word}" for state, word in _WORDS.items() if counts.get(state)]
    if confirmed := receipt.found_by.get("confirmed"):
        texts[0] += f" ({confirmed:,} confirmed)"
    return [*texts, *([f"{reported:,} reported by the program"] if reported else [])]


def none_text(receipt: Receipt) -> str:
    """What is said of a job without any effect."""
    if receipt.runtime == "foreign":
        missing = len(receipt.unexecuted)
        if missing:
            tools = "tool" if missing == 1 else "tools"
            verb = "was" if missing == 1 else "were"
            return f"no effect passed through Overnight; {missing:,} {tools} asked for {verb} not seen executed"
        if receipt.tool_results:
            results = count_text(receipt.tool_results, "tool result")
            return f"no effect passed through Overnight; the program reported {results} to the model"
        return "no effect passed through Overnight"
    if receipt.state == "succeeded":
        return "Completed without any effect"
    return "ended without any effect" if receipt.state in FINISHED else "no effect so far"


def receipt_lines(receipt: Receipt, now_us: int, *, with_content: bool = True) -> Iterator[ReceiptLine]:
    """The lines below the head. `with_content`: with arguments, reasons, questions and statements."""
    for entry in receipt.effects:
        yield effect_line(entry, now_us, receipt.job_id, with_content=with_content)
        if entry.duplicates:
            ids = ", ".join(clean(each, 60) for each in entry.duplicates)
            card = f" ({entry.waits_for.review_id})" if entry.waits_for is not None else ""
            yield ReceiptLine("!", f"{clean(entry.tool, 60)} was reported done again: {ids}{card}")
    if receipt.more:
        yield ReceiptLine("·", f"{receipt.more:,} more effects: overnight audit effects --job {receipt.job_id}")
    for review in receipt.reviews:
        yield _review_line(review, now_us, with_content)
    for call in receipt.unexecuted:
        yield ReceiptLine("!", f"{clean(call.tool, 60)}  asked for by the model, not seen executed")
    for claim in receipt.claims:
        yield _claim_line(claim, with_content)
    if receipt.is_partial:
        yield ReceiptLine("·", "not all child jobs or model answers were read: they are too many")


def effect_line(entry: EffectEntry, now_us: int, job_id: str, *, with_content: bool = True) -> ReceiptLine:
    """One effect: the tool, its arguments, its state, and how it is known."""
    mark = _MARKS.get(entry.state, "✗")
    shown = argument_text(entry.arguments) if with_content else ""
    about = f"about {clean(entry.about, 60)}" if entry.about else ""
    name = " ".join(each for each in (clean(entry.tool, 60), about or shown) if each)
    child = f"child {entry.job_id}" if entry.job_id != job_id and not entry.replayed else ""
    return ReceiptLine(
        mark, "  ".join(each for each in (name, _state_text(entry, now_us, with_content), child) if each)
    )


def verification_lines(entries: Sequence[EffectEntry], found: Mapping[str, Verification]) -> Iterator[ReceiptLine]:
    """What the status checks of unknown effects say now, and the command that records it."""
    for entry in entries:
        each = found.get(entry.effect_id or "")
        if each is None:
            continue
        name, review = clean(entry.tool, 60), entry.waits_for
        match each.outcome:
            case "done":
                yield ReceiptLine("✓", f"{name}: the status check finds it done {clean(each.provider_id or '', 80)}")
                known = f" --provider-id {shlex.quote(each.provider_id)}" if each.provider_id else ""
                yield _recorded_by(f"overnight reviews done {review.review_id}{known}" if review is not None else "")
            case "not_done":
                early = "; it may still take effect" if each.is_early else ""
                yield ReceiptLine("✗", f"{name}: the status check finds it not done{early}")
                yield _recorded_by(f"overnight reviews not-done {review.review_id}" if review is not None else "")
            case "cannot_tell":
                yield ReceiptLine("?", f"{name}: the status check cannot tell")
            case _:
                yield ReceiptLine("?", f"{name}: cannot be verified here: {clean(each.why)}")


def _recorded_by(command: str) -> ReceiptLine:
    return ReceiptLine("·", f"to record it: {command}" if command else "its job records it when it runs again")


def _state_text(entry: EffectEntry, now_us: int, with_content: bool) -> str:
    match entry.state:
        case "committed":
            provider = clean(entry.provider_id, 80) if entry.provider_id else ""
            known = f"done by {entry.job_id}, replayed" if entry.replayed else _found_text(entry)
            return "  ".join(each for each in (provider, clock_text(entry.at), known) if each)
        case "rejected":
            return f"rejected by {actor_text(entry.decided_by)}" + _quoted(entry.reason, with_content)
        case "refused":
            return f"refused: {clean(entry.how, 120) or 'not allowed'}" + _quoted(entry.reason, with_content)
        case "unknown":
            return f"unknown since {until_text(entry.at, now_us)}{_asks(entry.waits_for)}"
        case "waiting":
            return f"waits for approval{_who(entry.waits_for, now_us)}"
        case "approved":
            by = f" by {actor_text(entry.decided_by)}" if entry.decided_by else ""
            return f"approved{by}; waits for its caller"
        case "claimed":
            return f"in progress since {until_text(entry.since, now_us)}"
        case "expired":
            return "not done: the approval expired, which is not a no"
        case "released":
            return f"not done: {clean(entry.how, 120)}" if entry.how else "not done"
        case _:
            cause = f" ({clean(entry.error_class, 60)})" if entry.error_class else ""
            return f"not done: failed{cause}" + _quoted(entry.reason, with_content)


def _found_text(entry: EffectEntry) -> str:
    if entry.found_by == "reported":
        return "reported by the program, not checked"
    if entry.found_by == "confirmed":
        return clean(entry.how, 80) or "confirmed"
    approved = f", approved by {actor_text(entry.decided_by)}" if entry.decided_by else ""
    return "executed" + approved + (", with edited arguments" if entry.edited else "")


def _quoted(text: str, with_content: bool) -> str:
    return f': "{clean(text, 120)}"' if text and with_content else ""


def _asks(waits: WaitsFor | None) -> str:
    if waits is None:
        return ""
    return f", asks {' or '.join(clean(each, 40) for each in waits.by) or 'a person'} ({waits.review_id})"


def _who(waits: WaitsFor | None, now_us: int) -> str:
    if waits is None:
        return ""
    by = f" by {' or '.join(clean(each, 40) for each in waits.by)}" if waits.by else ""
    return f"{by} ({waits.review_id}){_until(waits.expires_at, now_us)}"


def _until(expires_at: int | None, now_us: int) -> str:
    if not expires_at:
        return ""
    due = local_time(expires_at)
    is_far = due.date() != local_time(now_us).date()
    return f" until {due:%a %H:%M}" if is_far else f" until {due:%H:%M}"


def _review_line(review: ReviewEntry, now_us: int, with_content: bool) -> ReceiptLine:
    name = f"{clean(review.kind, 40)}{_quoted(review.question, with_content)}"
    if review.state == "decided":
        mark = "✗" if review.answer == "rejected" else "✓"
        return ReceiptLine(mark, f"{name}  {review.answer} by {actor_text(review.decided_by)} ({review.review_id})")
    if review.state != "pending":
        return ReceiptLine("·", f"{name}  {review.state} without a decision ({review.review_id})")
    by = f" by {' or '.join(clean(each, 40) for each in review.by)}" if review.by else ""
    until = _until(review.expires_at, now_us)
    return ReceiptLine("‖", f"{name}  waits for a decision{by} ({review.review_id}){until}")


def _claim_line(claim: CheckedClaim, with_content: bool) -> ReceiptLine:
    stated = f'"{clean(claim.text, 120)}"' if with_content and claim.text else f"about {clean(claim.tool, 60)}"
    reported = ", reported by the program" if claim.found_by == "reported" else ""
    said = {
        "supported": f"{clean(claim.tool, 60)} {claim.effect_id or ''}{reported}",
        "unsupported": "no such effect",
        "pending": f"{clean(claim.tool, 60)} {claim.effect_id or ''} is not settled",
        "unchecked": "the text is too long to be checked",
    }[claim.verdict]
    return ReceiptLine(_VERDICT_MARKS[claim.verdict], f"claim {stated}: {said}")


def argument_text(arguments: bytes | None) -> str:
    """The first plain values of the arguments, without texts that are too long to name something, such as that of a mail."""
    try:
        value: Any = decode_for_display(arguments or b"{}")
    except (msgspec.DecodeError, RecursionError):
        return ""
    values = cast(dict[str, Any], value).values() if isinstance(value, dict) else [value]
    plain = [_plain(each) for each in values if isinstance(each, (str, int, float))]
    return clean(" ".join(each for each in plain if 0 < len(each) <= MAX_VALUE), MAX_ARGUMENTS)


def _plain(value: str | float) -> str:
    return clean(value, MAX_VALUE + 1) if isinstance(value, str) else msgspec.json.encode(value).decode()
