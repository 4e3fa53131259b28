"""How much a prompt asks for, from 0 to 1, by what can be seen of it without a model.

Four signs: its length, the names and numbers in it, its code blocks, and words that ask for several steps. Each is worth a
part of what the others leave open, so that one strong sign alone stays at or below 0.7 and two of them reach 0.8.
"""

import re

import msgspec

READ_CHARS = 20_000
"""From the end of the prompt, where the question stands; more of it is only counted."""

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
    """The complexity of a prompt, rounded to three places: 0 for an empty one, at most 1. The same text, the same score."""
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
