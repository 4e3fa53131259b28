"""Receipts on a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from overnight.reports import AuditedEffect, EffectEntry, Receipt
from overnight.story import ReceiptLine, clean, effect_line, moment_text, receipt_counts, receipt_head, receipt_lines

from .output import STATE_STYLES, console, styled

if TYPE_CHECKING:
    from rich.text import Text

_STYLES = {"✓": "green", "✗": "red", "?": "magenta", "‖": "magenta", "›": "cyan", "!": "bold yellow", "·": "dim"}


MAX_DONE, MAX_SHOWN = 10, 40


def summary_lines(receipt: Receipt, now_us: int, *, with_content: bool) -> list["Text"]:
    """The first section of a timeline: the numbers, everything that is not done, and the first effects that are."""
    lines = list(receipt_lines(receipt, now_us, with_content=with_content))
    done = [line for line in lines if line.mark == "✓"]
    kept = [line for line in lines if line.mark != "✓" or line in done[:MAX_DONE]][:MAX_SHOWN]
    shown = [styled(("Receipt  ", "bold"), receipt_counts(receipt)), *(_styled(line, "  ") for line in kept)]
    if len(kept) < len(lines):
        more = f"  {len(lines) - len(kept):,} more lines: overnight receipt {receipt.job_id}"
        shown.append(styled((more, "dim")))
    return shown


def show_receipt(receipt: Receipt, now_us: int, *, with_content: bool) -> None:
    """Print the head of a receipt and its lines."""
    console().print(styled((receipt_head(receipt), STATE_STYLES.get(receipt.state, ""))), soft_wrap=True)
    for line in receipt_lines(receipt, now_us, with_content=with_content):
        show_line(line)


def show_line(line: ReceiptLine) -> None:
    console().print(_styled(line), soft_wrap=True)


def _styled(line: ReceiptLine, indent: str = "") -> "Text":
    return styled((f"{indent}{line.mark} ", _STYLES.get(line.mark, "")), line.text)


def show_effects(entries: Sequence[EffectEntry], now_us: int) -> None:
    """Print effects of any jobs, each with its job."""
    for entry in entries:
        line = effect_line(entry, now_us, entry.job_id)
        show_line(ReceiptLine(line.mark, f"{line.text}  {entry.job_id}"))


def show_audited(effect: AuditedEffect, now_us: int) -> None:
    """Print an effect of an audit, with its time, its job and the people who decided."""
    line = effect_line(effect.entry, now_us, effect.entry.job_id, with_content=False)
    people = f"  decided by {', '.join(clean(each, 40) for each in effect.people)}" if effect.people else ""
    show_line(ReceiptLine(line.mark, f"{moment_text(effect.entry.since)}  {line.text}  {effect.entry.job_id}{people}"))
