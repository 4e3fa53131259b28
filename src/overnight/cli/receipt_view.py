"""Receipts on a terminal."""

from collections.abc import Sequence

from overnight.reports import EffectEntry, Receipt
from overnight.story import ReceiptLine, effect_line, receipt_head, receipt_lines

from .output import STATE_STYLES, console, styled

_STYLES = {"✓": "green", "✗": "red", "?": "magenta", "‖": "magenta", "›": "cyan", "!": "bold yellow", "·": "dim"}


def show_receipt(receipt: Receipt, now_us: int, *, with_content: bool) -> None:
    """Print the head of a receipt and its lines."""
    console().print(styled((receipt_head(receipt), STATE_STYLES.get(receipt.state, ""))), soft_wrap=True)
    for line in receipt_lines(receipt, now_us, with_content=with_content):
        show_line(line)


def show_line(line: ReceiptLine) -> None:
    console().print(styled((line.mark + " ", _STYLES.get(line.mark, "")), line.text), soft_wrap=True)


def show_effects(entries: Sequence[EffectEntry], now_us: int) -> None:
    """Print effects of any jobs, each with its job."""
    for entry in entries:
        line = effect_line(entry, now_us, entry.job_id)
        show_line(ReceiptLine(line.mark, f"{line.text}  {entry.job_id}"))
