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
_NO_TEXT = frozenset({"type", "role", "id", "name", "index", "finish_reason", "item_id", "signature"})
_encode = msgspec.json.Encoder().encode


def secret_of(key: str) -> bytes:
    """The key as it is looked for in answers; none where it is a placeholder (`none`, `not-needed`), which answers may hold."""
    is_secret = len(key) >= SHORTEST_WORD or (len(key) >= SHORTEST_SECRET and re.search("[0-9]", key) is not None)
    return key.encode() if is_secret else b""


def without(secret: bytes, said: bytes) -> bytes:
    """`said` with the secret replaced, as it stands or as JSON may write it."""
    if not secret:
        return said
    if secret in said:
        said = said.replace(secret, MASK)
    if b"/" in secret and (escaped := secret.replace(b"/", b"\\/")) in said:
        said = said.replace(escaped, MASK)
    return said


class KeyGuard:
    """Pieces of one stream, in which a key may be spread over many. Where one begins, pieces wait until it is clear that it is
    none; where it is one, its characters are taken out."""

    __slots__ = ("_before", "_found", "_head", "_held", "_secret")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret.decode()
        self._head = self._secret[:HEAD]
        self._before = ""
        """The end of the text that has passed."""
        self._held: list[tuple[str, list[bytes]]] = []
        self._found = False

    def take(self, piece: dict[str, Any], shown: list[bytes]) -> list[bytes]:
        """What may be shown by now, in order; `shown` is what this piece comes to."""
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
        self._held.append((text, shown))
        return self._released()

    def cleaned(self, shown: list[bytes]) -> list[bytes]:
        """Pieces that may repeat the text of earlier ones, without a key that was spread over those."""
        return [without(self._secret.encode(), each) for each in shown] if self._found else shown

    def rest(self) -> list[bytes]:
        """What is still held when the stream is over."""
        return self._released(is_over=True)

    def _released(self, *, is_over: bool = False) -> list[bytes]:
        joined = self._before + "".join(text for text, _ in self._held)
        keys = [found.start() for found in re.finditer(re.escape(self._secret), joined)]
        end = keys[-1] + len(self._secret) if keys else 0
        self._found = self._found or bool(keys)
        starts = (found.start() for found in re.finditer(f"(?={re.escape(self._head)})", joined))
        unclear = next((at for at in starts if at >= end and self._secret.startswith(joined[at:])), len(joined))
        if is_over:
            unclear = len(joined)
        starts_of_pieces = list(accumulate((len(text) for text, _ in self._held), initial=len(self._before)))
        hold = self._piece_at(starts_of_pieces, unclear)
        for start in reversed(keys):
            # A key that ends in a piece which has to wait is taken out together with that piece.
            if start < starts_of_pieces[hold] < start + len(self._secret):
                hold = self._piece_at(starts_of_pieces, start)
        out: list[bytes] = []
        for (text, shown), at in zip(self._held[:hold], starts_of_pieces, strict=False):
            out += self._masked(text, shown, at, keys)
        del self._held[:hold]
        at = starts_of_pieces[hold]
        self._before = joined[max(0, at - HEAD + 1) : at]
        return out

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
