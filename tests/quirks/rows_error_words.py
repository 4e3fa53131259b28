"""Refusals in the words of providers: tried again, sent to the next target, or passed on, as their class says.

The bodies are the rows of `tests/providers/provider_errors.yaml`, which names their sources.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from overnight.providers.error_classes import CLASSES
from quirk_rows import TOKENS, Gets, Quirk, body

_FILE = Path(__file__).parents[1] / "providers" / "provider_errors.yaml"
_SEEN: list[dict[str, Any]] = YAML(typ="safe").load(_FILE)
_SPARE = Gets(text="from the spare", finish="stop", usage=TOKENS)


def _row(at: int, seen: dict[str, Any]) -> Quirk:
    rule, name = CLASSES[seen["class"]], seen["class"]
    waits_long = "retryDelay" in str(seen["body"])
    attempts = ("chat",) * (2 if rule.retryable and not waits_long else 1)
    refusal = body(seen["body"], status=seen["status"])
    return Quirk(
        name=f"error-words-{at}-{name}",
        source=str(_FILE.relative_to(_FILE.parents[2])),
        gets=_SPARE if rule.fallback else Gets(status=seen["status"], error=""),
        stream=[refusal],
        whole=[refusal],
        clients=("chat",),
        asked=(*attempts, "spare") if rule.fallback else attempts,
        failures=(name,) * len(attempts),
        splits=False,
    )


ROWS = [_row(at, seen) for at, seen in enumerate(_SEEN) if seen["status"] >= 400]
