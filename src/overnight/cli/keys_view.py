"""Keys as text."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from overnight.keys import KeyRow, public_key
from overnight.story import moment_text

from .output import print_json, print_rows, say

_ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def show_secret(row: KeyRow, secret: str, now: int, *, json: bool) -> None:

    shown = public_key(row, now)
    if json:
        print_json({"key": secret, **shown})
        return
    say(secret)
    until = f", until {value_text(shown['expires_at'])}" if shown["expires_at"] else ""
    previous = shown["previous_expires_at"]
    old = f"; the old secret is valid until {value_text(previous)}" if previous else ""
    say(
        f"{row.name} of {row.tenant_id}: scopes {', '.join(shown['scopes'])}{until}{old}. This secret is not shown again",
        err=True,
    )


def show_keys(shown: Sequence[dict[str, Any]]) -> None:
    heads = ("name", "tenant_id", "state", "scopes", "starts_with", "last_used_at", "expires_at", "key_id")
    show_rows(heads, shown, "No keys. Create one with `overnight keys create NAME`.")


def show_rows(heads: Sequence[str], shown: Sequence[dict[str, Any]], empty: str) -> None:

    if not shown:
        say(empty)
        return

    print_rows(heads, [[(value_text(each[head]), "") for head in heads] for each in shown], frozenset())


def value_text(value: Any, between: str = " ") -> str:
    """A public value as text: lists on one line, times in the zone of this command."""

    if isinstance(value, (list, tuple)):
        return between.join(value)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, str) and _ISO.fullmatch(value):
        return moment_text(round(datetime.fromisoformat(value).timestamp() * 1_000_000))
    return str(value or "")
