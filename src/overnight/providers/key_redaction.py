"""A provider's key is kept out of the answers of that provider, whole ones and streams.

Some providers, and routers in front of them, repeat what they were sent. An answer is recorded and passed on, so the key would
reach a client who must not have it, and the log.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from json import dumps
from typing import Any, cast

import msgspec

MASK = b"[key]"
SHORTEST_SECRET, SHORTEST_WORD = 8, 16
HEAD = 8
"""So many characters of a key may pass in a stream before its pieces are held: the beginnings of keys are no secret."""
MAX_WAITING, MIN_SIZE = 1024 * 1024, 256
"""Bytes of pieces without text that wait for one with text, and as how many the smallest counts."""
MAX_BACKSLASHES = 8
"""Before an escape: one in JSON, up to eight in JSON within strings of JSON, three strings deep."""
_NO_TEXT = frozenset(
    {"type", "role", "id", "name", "index", "finish_reason", "item_id", "signature", "thoughtSignature"}
)
_encode = msgspec.json.Encoder().encode


def secret_of(key: str) -> bytes:
    """The key as it is looked for in answers; none where it is a placeholder (`none`, `not-needed`), which answers may hold."""
    is_secret = len(key) >= SHORTEST_WORD or (len(key) >= SHORTEST_SECRET and re.search("[0-9]", key) is not None)
    return key.encode() if is_secret else b""


def without(secret: bytes, said: bytes) -> bytes:
    """`said` with the secret replaced, as it stands or as JSON may write it: with escapes, and within strings that hold JSON."""
    if not secret:
        return said
    if secret in said:
        said = said.replace(secret, MASK)
    slashes = b"/" in secret and b"\\/" in said and secret.partition(b"/")[0] in said
    if slashes or (b"\\u00" in said and re.search(_any_escape_of(secret), said)):
        said = re.sub(b"".join(map(_written, secret.decode())), MASK, said)
    return said


def _any_escape_of(secret: bytes) -> bytes:
    return rb"u00(?i:%b)" % b"|".join(b"%02x" % character for character in sorted(set(secret)))


def _written(character: str) -> bytes:
    """A pattern of all ways in which JSON may write a character."""
    escaped = rb"\\{1,%d}(?:/|u00(?i:%02x))" if character == "/" else rb"\\{1,%d}u00(?i:%02x)"
    return b"(?:%b|%b)" % (re.escape(character).encode(), escaped % (MAX_BACKSLASHES, ord(character)))


class _HeldPiece:
    """A piece that waits: its text, what may be shown of it, and pieces without text that came after it."""

    __slots__ = ("later", "shown", "text", "waiting")

    def __init__(self, text: str, shown: list[bytes]) -> None:
        self.text, self.shown = text, shown
        self.later: list[bytes] = []
        self.waiting = 0
        """Bytes of `later`."""


class KeyGuard:
    """Pieces of one stream, in which a key may be spread over many. Where one begins, pieces wait until it is clear that it is
    none; where it is one, its characters are taken out."""

    __slots__ = ("_before", "_found", "_head", "_held", "_joined", "_keys", "_searched", "_secret")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret.decode()
        self._head = self._secret[:HEAD]
        self._before = ""
        """The end of the text that has passed."""
        self._held: list[_HeldPiece] = []
        self._joined = ""
        """`_before` and the text that is held; keys in it begin at `_keys`, and none but these before `_searched`."""
        self._keys: list[int] = []
        self._searched = 0
        self._found = False

    def take(self, piece: dict[str, Any], shown: list[bytes]) -> list[bytes]:
        """What may be shown by now, in order; `shown` is what this piece comes to.

        Raises ValueError where too much would have to be held.
        """
        if not self._secret:
            return shown
        if self._found:
            shown = self.cleaned(shown)
        text = _text_of(piece)
        if not self._held:
            joined = self._before + text
            if self._head not in joined:
                self._before = joined[1 - HEAD :]
                return shown
            self._joined, self._keys, self._searched = joined, [], 0
        elif not text:
            self._wait(shown)
            return []
        else:
            self._joined += text
        self._held.append(_HeldPiece(text, shown))
        return self._released()

    def cleaned(self, shown: list[bytes]) -> list[bytes]:
        """Pieces that may repeat the text of earlier ones, without a key that was spread over those."""
        return [without(self._secret.encode(), each) for each in shown] if self._found else shown

    def rest(self) -> list[bytes]:
        """What is still held when the stream is over."""
        return self._released(is_over=True) if self._held else []

    def _wait(self, shown: list[bytes]) -> None:
        last = self._held[-1]
        last.later += shown
        last.waiting += MIN_SIZE + sum(map(len, shown))
        if sum(each.waiting for each in self._held) > MAX_WAITING:
            raise ValueError("too many pieces without text while the beginning of a key is held")

    def _search(self) -> int:
        """Find the keys in the text that is new; return where a key may begin that is not whole yet."""
        joined, secret = self._joined, self._secret
        while (start := joined.find(secret, self._searched)) >= 0:
            self._keys.append(start)
            self._searched = start + len(secret)
        self._searched = at = max(self._searched, len(joined) - len(secret) + 1)
        while (at := joined.find(self._head, at)) >= 0:
            if secret.startswith(joined[at:]):
                return at
            at += 1
        return len(joined)

    def _released(self, *, is_over: bool = False) -> list[bytes]:
        unclear = self._search()
        keys = self._keys
        self._found = self._found or bool(keys)
        if is_over:
            unclear = len(self._joined)
        starts = list(accumulate((len(each.text) for each in self._held), initial=len(self._before)))
        hold = self._piece_at(starts, unclear)
        for start in reversed(keys):
            # A key that ends in a piece which has to wait is taken out together with that piece.
            if start < starts[hold] < start + len(self._secret):
                hold = self._piece_at(starts, start)
        out: list[bytes] = []
        for each, at in zip(self._held[:hold], starts, strict=False):
            out += self._masked(each.text, each.shown, at, keys)
            out += each.later
        del self._held[:hold]
        at = starts[hold]
        self._cut(max(0, at - HEAD + 1), at)
        return out

    def _cut(self, start: int, at: int) -> None:
        """The text before `at` has passed; its end from `start` on is kept."""
        self._before, self._joined = self._joined[start:at], self._joined[start:]
        self._keys = [key - start for key in self._keys if key + len(self._secret) > at]
        self._searched = max(0, self._searched - start)

    def _piece_at(self, starts: list[int], at: int) -> int:
        """The number of the held piece that holds the character `at`; how many there are, where that is still to come."""
        return len(self._held) if at >= starts[-1] else max(bisect_right(starts, at) - 1, 0)

    def _masked(self, text: str, shown: list[bytes], at: int, keys: list[int]) -> list[bytes]:
        """A piece's text, which begins at `at`, stands in what is shown as a string of JSON."""
        kept = ""
        done = at
        for start in keys:
            end = start + len(self._secret)
            if end <= done or start >= at + len(text):
                continue
            kept += text[done - at : max(start, done) - at]
            if end <= at + len(text):
                kept += MASK.decode()
            done = min(end, at + len(text))
        kept += text[done - at :]
        return shown if kept == text else [each for piece in shown if (each := _replaced(piece, text, kept))]


def _replaced(shown: bytes, text: str, kept: str) -> bytes:
    """Replace a string of JSON as any provider may write it; nothing is shown of a piece in which it is not found."""
    plain = _encode(text)
    for written in (plain, plain.replace(b"/", b"\\/"), dumps(text).encode(), dumps(text).replace("/", "\\/").encode()):
        if written in shown:
            return shown.replace(written, _encode(kept))
    return b""


def _text_of(piece: dict[str, Any]) -> str:
    """What a piece adds to the text. Most bring one string, which is found without a search."""
    delta: Any = piece.get("delta")
    if delta is None and (choices := piece.get("choices")):
        delta = choices[0].get("delta") if len(choices) == 1 else choices
    elif delta is None and (candidates := piece.get("candidates")):
        delta = [cast("dict[str, Any]", each.get("content") or {}).get("parts") for each in candidates]
    if isinstance(delta, str):
        return delta
    if isinstance(delta, dict):
        fields = cast("dict[str, Any]", delta)
        text = fields.get("content") or fields.get("text")
        if len(fields) <= 2 and isinstance(text, str):
            return text
    return "".join(_texts(cast("object", delta)))


def _texts(value: Any) -> Iterator[str]:
    """The strings of a delta that are text."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in cast("list[Any]", value):
            yield from _texts(each)
    elif isinstance(value, dict):
        for name, each in cast("dict[str, Any]", value).items():
            if each.__class__ is str:
                if name not in _NO_TEXT:
                    yield each
            elif each is not None and name not in _NO_TEXT:
                yield from _texts(each)
