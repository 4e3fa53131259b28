"""Keys as people read them."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .output import say

if TYPE_CHECKING:
    from overnight.keys import KeyRow

_ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def show_secret(row: "KeyRow", secret: str, now: int, *, json: bool) -> None:
    from overnight.keys import public_key

    shown = public_key(row, now)
    if json:
        from .output import print_json

        print_json({"key": secret, **shown})
        return
    say(secret)
    until = f", until {value_text(shown['expires_at'])}" if shown["expires_at"] else ""
    previous = shown["previous_expires_at"]
    old = f"; the old secret works until {value_text(previous)}" if previous else ""
    say(
        f"{row.name} of {row.tenant_id} may {', '.join(shown['scopes'])}{until}{old}. This secret is not shown again",
        err=True,
    )


def show_keys(shown: Sequence[dict[str, Any]]) -> None:
    heads = ("name", "tenant_id", "state", "scopes", "starts_with", "last_used_at", "expires_at", "key_id")
    show_rows(heads, shown, "no keys; `overnight keys create NAME` makes one")


def show_rows(heads: Sequence[str], shown: Sequence[dict[str, Any]], nothing: str) -> None:
    from .output import print_rows

    if not shown:
        say(nothing)
        return

    print_rows(heads, [[(value_text(each[head]), "") for head in heads] for each in shown], frozenset())


def value_text(value: Any, between: str = " ") -> str:
    """A public value for eyes: lists in one line, times in the zone of this command."""
    from overnight.story import moment_text

    if isinstance(value, (list, tuple)):
        return between.join(value)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, str) and _ISO.fullmatch(value):
        return moment_text(round(datetime.fromisoformat(value).timestamp() * 1_000_000))
    return str(value or "")
