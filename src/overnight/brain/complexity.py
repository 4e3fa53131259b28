"""The complexity of a prompt, from 0 to 1, estimated without a model.

Four signals: length, names and numbers, code blocks, and words that request several steps. Each takes a share of what
the others leave, so that one strong signal alone stays at or below 0.7 and two reach 0.8.
"""

import re

import msgspec

READ_CHARS = 20_000
"""Characters at the end of the prompt that are analysed, since the question is there; the rest only counts by length."""

_LONG_WORDS = 600
_MANY_ENTITIES = 20
_MUCH_CODE = 2
_MANY_STEPS = 4
_PARTS = (0.7, 0.5, 0.6, 0.7)

_WORD_CHARS = 6
_ENTITY = re.compile(r"https?://|\b\w+@\w|\b\d[\d.,:/-]*|(?<=[a-z,;:] )[A-Z]\w+|\b[A-Z]{2,}\b")
_CODE = re.compile(r"^\s*(?:```|~~~)|^(?: {4}|\t)\S.*[;{}()=]\s*$", re.MULTILINE)
_STEP = re.compile(
    r"^\s*(?:\d{1,2}[.)]|step \d+)\s|\b(?:first|second|third|then|next|finally|afterwards|after that|step by step"
    r"|for each|compare|analy[sz]e|plan|prove|derive|refactor|trade-?offs?)\b",
    re.MULTILINE | re.IGNORECASE,
)


class Complexity(msgspec.Struct, frozen=True):
    """A tiered route moves up one tier when the score is above `threshold`."""

    threshold: float = 0.8


def score(text: str) -> float:
    """The complexity of a prompt, rounded to three places; 0 for an empty one. Deterministic."""
    read = text[-READ_CHARS:]
    signs = (
        len(text) / _WORD_CHARS / _LONG_WORDS,
        _count(_ENTITY, read, _MANY_ENTITIES) / _MANY_ENTITIES,
        _count(_CODE, read, 2 * _MUCH_CODE) / (2 * _MUCH_CODE),  # a fence opens and closes
        _count(_STEP, read, _MANY_STEPS) / _MANY_STEPS,
    )
    left = 1.0
    for sign, part in zip(signs, _PARTS, strict=True):
        left *= 1 - part * min(sign, 1.0)
    return round(1 - left, 3)


def _count(pattern: re.Pattern[str], text: str, most: int) -> int:
    found = 0
    for found, _ in enumerate(pattern.finditer(text), 1):
        if found >= most:
            break
    return found
