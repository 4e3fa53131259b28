"""Texts of a review for people: bounded, and without characters that change how the rest is shown."""

from __future__ import annotations

import re

_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_SPACES = re.compile(r"\s+")


def plain(text: str) -> str:
    """The text without control characters, bidirectional overrides and lone surrogates; lines and tabs stay."""
    return _CONTROLS.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def one_line(text: str, most: int) -> str:
    """The text as one line of at most `most` characters, such as a subject."""
    return shortened(_SPACES.sub(" ", plain(text)).strip(), most)


def shortened(text: str, most: int, end: str = "…") -> str:
    """At most `most` characters; a text that is cut ends with `end`."""
    return text if len(text) <= most else text[: most - len(end)] + end
