"""Recorded answers in any client format, read and compared. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import msgspec

from overnight.wire_formats import CODECS, ReadAnswer

Json = dict[str, Any]
AGREES_FROM = 0.8
"""The minimum share of common words, from 0 to 1, of two answers that agree."""

MAX_WORDS = 20_000

_decode = msgspec.json.Decoder().decode


def read_answer(form: str, body: bytes) -> ReadAnswer | None:
    """The complete answer in a body of this client format; None for a truncated, refused or filtered one, or another body."""
    try:
        answer: Any = _decode(body)
        return CODECS[form].read_answer(cast("Json", answer)) if isinstance(answer, dict) else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError):
        return None


class Difference(msgspec.Struct, frozen=True):
    """How two answers differ. `overlap`: shared words (with their counts) of all words, from 0 to 1."""

    same: bool
    overlap: float

    @property
    def agrees(self) -> bool:
        return self.same or self.overlap >= AGREES_FROM


def compare(one: ReadAnswer, other: ReadAnswer) -> Difference:
    """Compare two answers, without case and spacing. An answer that calls tools agrees only with the same text and no tools."""
    if one.tools or other.tools:
        return Difference(False, 0.0)
    words, others = _words(one), _words(other)
    if words == others:
        return Difference(True, 1.0)
    counts, theirs = Counter(words), Counter(others)
    union = sum((counts | theirs).values())
    return Difference(False, round(sum((counts & theirs).values()) / union, 3))


def _words(answer: ReadAnswer) -> list[str]:
    return answer.text.casefold().split(None, MAX_WORDS)[:MAX_WORDS]
