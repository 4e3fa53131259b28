"""Growing JSON text, such as the arguments of a tool call: whether it is complete, at a cost linear in its length."""

from __future__ import annotations

import re

_STRUCTURE = re.compile(r'["{}\[\]]').search
_STRING_END = re.compile(r'["\\]').search


class GrowingText(list[str]):
    """Growing text, joined once at the end."""

    __slots__ = ()


class GrowingJson(GrowingText):
    """Fragments of one JSON value. Each character is looked at once."""

    __slots__ = ("_depth", "_escaped", "_in_string", "_scanned", "start")

    def __init__(self) -> None:
        super().__init__()
        self.start = ""
        """The first character that is no space; empty before it."""
        self._scanned = self._depth = 0
        self._in_string = self._escaped = False

    def ends_with(self, piece: str) -> bool:
        """Whether `piece`, the last fragment, completes the value. Only then is the text searched."""
        if not self.start:
            self.start = piece.lstrip()[:1]
        if self.start in ("{", "["):
            return piece.rstrip()[-1:] in ("}", "]") and self.is_complete()
        return bool(self.start)  # a number or a word may end at any character

    def is_complete(self) -> bool:
        """Whether all brackets are closed. Text that is no object or list may end anywhere."""
        for at in range(self._scanned, len(self)):
            if not self.start:
                self.start = self[at].lstrip()[:1]
            self._scan(self[at])
        self._scanned = len(self)
        return self.start not in ("{", "[") or (self._depth <= 0 and not self._in_string)

    def _scan(self, text: str) -> None:
        at = 0
        if self._escaped and text:
            at, self._escaped = 1, False
        while (found := (_STRING_END if self._in_string else _STRUCTURE)(text, at)) is not None:
            at = found.end()
            match found[0]:
                case '"':
                    self._in_string = not self._in_string
                case "\\":
                    self._escaped = at == len(text)
                    at += 1
                case "{" | "[":
                    self._depth += 1
                case _:
                    self._depth -= 1
