"""The payment provider of the demo: a file with one line per refund. Its answers to small refunds are lost."""

import json
import os
from pathlib import Path
from typing import Final

from overnight.files import open_file

LOSES_ANSWERS_BELOW_GBP: Final = 100.0


class AnswerLost(Exception):
    """The provider made the refund, and its answer did not arrive: the outcome is unknown to the caller."""


def pay_back(ledger: Path, order: str, gbp: float, key: str) -> str:
    """Make a refund. Returns its id. Like some real ones, this provider neither honours keys nor has a status query.

    Raises AnswerLost after the work.
    """
    refund_id = f"re_{order.removeprefix('TT-')}_{len(refunds_in(ledger)) + 1}"
    line = json.dumps({"id": refund_id, "order": order, "gbp": gbp, "key": key}) + "\n"
    descriptor = open_file(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
    if gbp < LOSES_ANSWERS_BELOW_GBP:
        raise AnswerLost("no answer from the payment provider")
    return refund_id


def refunds_in(ledger: Path) -> list[dict[str, str]]:
    """The refunds that were made, as a person sees them in the provider's own pages."""
    if not ledger.exists():
        return []
    return [json.loads(line) for line in ledger.read_text("utf-8").splitlines()]
