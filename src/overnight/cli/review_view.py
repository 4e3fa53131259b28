"""Reviews as a list and as one card."""

import json
import shlex
from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec

from overnight.domain.globs import is_glob
from overnight.domain.json_text import decode_for_display
from overnight.reviews import ReviewRow, answers_of, given_answer, public_state
from overnight.settings import Settings
from overnight.story import clean, moment_text, span_text

from .lookup import for_tenant
from .output import console, styled

MAX_CARD_TEXT = 2000
MAX_COMMAND_ARGUMENTS = 300
_OPTIONS = {
    "edit": " --arguments JSON",
    "answer": " --text TEXT",
    "done": " --provider-id ID",
    "continue": " --usd USD",
}
_COMMANDS = frozenset({"approve", "edit", "reject", "answer", "done", "not_done", "continue"})
_SHOWN_APART = frozenset({"effect_key", "answers", "arguments", "why", "rule", "rule_name", "exception", "tool", "key"})


def show_reviews(reviews: Sequence[ReviewRow], now_us: int, settings: Settings) -> None:
    """Each review with the commands that decide it."""
    out = console()
    for review in reviews:
        out.print(_headline(review, now_us))
        for name, value in _detail(review).items():
            if name not in {"effect_key", "answers"}:
                out.print(f"  {clean(name, 40)}: {clean(_text(value))}", style="dim")
        # The code of such a job was corrected on this machine, where it can also run.
        here = [f"overnight resume {review.job_id}"] if review.kind in {"code", "divergence"} else []
        for command in [*(here if public_state(review) == "pending" else []), *commands_of(review)]:
            out.print("    " + for_tenant(command, review.tenant_id, settings), style="cyan", soft_wrap=True)
        out.print()


def _headline(review: ReviewRow, now_us: int) -> Any:
    requested = f" · requested {span_text(now_us - review.requested_at)} ago · {_state_text(review, now_us)}"
    note = f" “{clean(review.note)}”" if review.note else ""
    return styled(
        (clean(review.question), "bold"),
        (f"\n  {review.review_id}  ", ""),
        (review.kind, "magenta"),
        (requested + note, "dim"),
        (f"\n  {review.job_id}", ""),
    )


def _state_text(review: ReviewRow, now_us: int) -> str:
    state, given = public_state(review), given_answer(review)
    match state:
        case "pending" if review.expires_at is None:
            return state
        case "pending" if review.expires_at is not None and review.expires_at <= now_us:
            return f"expired {span_text(now_us - review.expires_at)} ago"
        case "pending":
            return f"{state}, expires in {span_text((review.expires_at or 0) - now_us)}"
        case "decided":
            verb = given.answer.replace("_", " ") if given is not None else review.state
            return f"decided: {verb} by {clean(review.decided_by or 'the job', 60)}"
        case "expired":
            return "expired without a decision; the job still waits: renew it"
        case _:
            return "superseded: its subject has changed, or its job has ended"


def show_card(review: ReviewRow, now_us: int, settings: Settings) -> None:
    """One review with all that a decision needs: what, why, arguments, the digest it is bound to, and what each answer does."""
    out, detail = console(), _detail(review)
    out.print(styled((clean(review.question, MAX_CARD_TEXT), "bold")), soft_wrap=True)
    out.print(
        styled((f"  {review.review_id}  ", ""), (review.kind, "magenta"), (f" · {_state_text(review, now_us)}", "dim"))
    )
    out.print()
    for label, value in _facts(review, detail):
        lines = _lines(value)
        for place, line in enumerate(lines[:50]):
            out.print(f"  {label if not place else '':<10}  {line}", soft_wrap=True)
        if len(lines) > 50:
            out.print(f"  {'':<10}  … {len(lines) - 50} more lines (--json shows all)")
    if review.note or given_answer(review) is not None:
        _show_decision(review)
    if public_state(review) == "expired":
        renew = for_tenant(f"overnight reviews renew {review.review_id}", review.tenant_id, settings)
        out.print(styled(("\n  Nobody decided in time, which is no rejection. To ask again:", "")))
        out.print(f"    {renew}", style="cyan", soft_wrap=True)
        return
    if public_state(review) != "pending":
        return
    out.print()
    commands = dict(zip(answers_of(review), commands_of(review), strict=True))
    width = max((len(verb) for verb in commands), default=0)
    for verb, does in answers_of(review).items():
        out.print(styled((f"  {verb:<{width}}  ", "bold"), does), soft_wrap=True)
        command = for_tenant(commands[verb], review.tenant_id, settings)
        out.print(f"  {'':<{width}}    {command}", style="cyan", soft_wrap=True)


def _show_decision(review: ReviewRow) -> None:
    given, out = given_answer(review), console()
    if given is None:
        return
    at = moment_text(review.decided_at) if review.decided_at else ""
    out.print(f"  {'answer':<10}  {given.answer} by {clean(review.decided_by or '', 60)} {at}".rstrip(), soft_wrap=True)
    carried = {
        "note": review.note,
        "text": given.text,
        "provider id": given.provider_id,
        "edited to": decode_for_display(bytes(given.arguments)) if bytes(given.arguments) else None,
        "result": decode_for_display(bytes(given.result)) if bytes(given.result) else None,
    }
    for label, value in carried.items():
        for place, line in enumerate(_lines(value) if value is not None else []):
            out.print(f"  {label if not place else '':<10}  {line}", soft_wrap=True)


def _facts(review: ReviewRow, detail: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """Labels and values of a card, in the order of reading."""
    deciders = msgspec.json.decode(review.deciders) if review.deciders else None
    key = detail.get("key") or review.effect_key or detail.get("effect_key")
    expiry = review.expires_at
    facts: list[tuple[str, Any]] = [
        ("tool", detail.get("tool")),
        ("why", detail.get("why")),
        ("rule", detail.get("rule") or detail.get("rule_name")),
        ("arguments", detail.get("arguments")),
        ("exception", detail.get("exception")),
        *((str(name), value) for name, value in detail.items() if name not in _SHOWN_APART),
        ("key", key),
        ("job", review.job_id),
        ("decided by", ", ".join(deciders) if deciders else None),
        ("expires", moment_text(expiry) if expiry is not None else None),
        ("digest", review.digest),
    ]
    return [(clean(label, 40), value) for label, value in facts if value is not None]


def _lines(value: Any) -> list[str]:
    """A value as lines: one per field of an object."""
    if isinstance(value, dict) and value:
        fields = cast("dict[str, Any]", value)
        return [f"{clean(name, 60)}: {clean(_text(inner), MAX_CARD_TEXT)}" for name, inner in fields.items()]
    return [clean(line, MAX_CARD_TEXT) for line in _text(value).splitlines()] or [""]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _detail(review: ReviewRow) -> dict[str, Any]:
    return decode_for_display(review.detail.encode())


def commands_of(review: ReviewRow) -> list[str]:
    """The command of each answer, in their order; of a review that is not pending, none, or its renewal."""
    if public_state(review) == "expired":
        return [f"overnight reviews renew {review.review_id}"]
    if public_state(review) != "pending":
        return []
    return [_command(review, verb) for verb in answers_of(review)]


def _command(review: ReviewRow, verb: str) -> str:
    deciders: list[str] = msgspec.json.decode(review.deciders) if review.deciders else []
    by = f" --by {deciders[0] if not is_glob(deciders[0]) else 'NAME'}" if deciders else ""
    if verb not in _COMMANDS:
        return f"overnight reviews decide {review.review_id} {verb}{by}"
    options = _OPTIONS.get(verb, "") + by
    # In ASCII, since an argument may hold characters that change how a terminal shows the command.
    if verb == "edit" and len(arguments := json.dumps(_detail(review).get("arguments"))) <= MAX_COMMAND_ARGUMENTS:
        options = f" --arguments {shlex.quote(arguments)}{by}"
    if verb == "continue" and (review.kind != "budget" or not _detail(review).get("name")):
        options = by
    return f"overnight reviews {verb.replace('_', '-')} {review.review_id}{options}"
