"""The mailbox of the demo: one night of mail of a small shop, with the expected result for each mail."""

from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from ruamel.yaml import YAML

from .maildir import create_maildir, deliver

Category = Literal[
    "order",
    "refund",
    "invoice",
    "complaint",
    "wholesale",
    "application",
    "newsletter",
    "auto_reply",
    "bounce",
    "spam",
    "phishing",
    "injection",
    "other",
]
_FIRST_DELIVERY: Final = int(datetime(2026, 11, 20, 22, 0, tzinfo=UTC).timestamp())


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The expected result for one mail: its category, and whether a reply must be sent."""

    category: Category
    answer: bool


def demo_mails() -> dict[str, bytes]:
    """The raw bytes of every message, by Maildir key, in order of delivery."""
    folder = files("overnight.demo") / "mail"
    return {_key(name): (folder / f"{name}.eml").read_bytes() for name in _expected()}


def demo_expected() -> dict[str, Expected]:
    """The expected results by Maildir key. The keys do not reveal the case."""
    return {_key(name): expected for name, expected in _expected().items()}


def make_demo_maildir(target: Path) -> int:
    """Write the corpus to a Maildir and return the number of mails.

    Some are unread (`new/`), some are read (`cur/`). Existing mails in any folder stay unchanged, so a second call does
    nothing.
    """
    create_maildir(target)
    present = {place.name.partition(":")[0] for sub in ("new", "cur") for place in target.glob(f"**/{sub}/*")}
    missing = {key: data for key, data in demo_mails().items() if key not in present}
    for key, data in missing.items():
        deliver(target, data, unique=key)
        if int(key.partition(".")[0]) // 60 % 4 == 0:
            (target / "new" / key).rename(target / "cur" / f"{key}:2,S")
    return len(missing)


@cache
def _expected() -> dict[str, Expected]:
    text = (files("overnight.demo") / "expected.yaml").read_text("utf-8")
    yaml: Any = YAML(typ="safe", pure=True)
    return msgspec.convert(yaml.load(text), dict[str, Expected])


def _key(name: str) -> str:
    number = int(name.partition("-")[0])
    return f"{_FIRST_DELIVERY + 60 * number}.M{number:03d}P1.shop"
