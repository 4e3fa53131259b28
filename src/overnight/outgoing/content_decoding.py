"""Decode the content encodings of bodies (gzip, deflate, br, zstd), bounded in decoded size and in ratio.

Each decoder returns small pieces, so a compression bomb is detected before it fills the memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

MAX_RATIO = 200
"""Maximum ratio of decoded to encoded bytes. Text and JSON compress up to about 50:1."""
FREE_BYTES = 1024 * 1024
"""Decoded size up to which the ratio is not limited."""
MAX_MEMBERS = 1000
"""Maximum number of gzip members or zstd frames in a body. Empty ones are not limited by size and ratio."""
_MAX_CODINGS = 3
_PIECE = 64 * 1024
_INFLATE_SLICE = 4096
"""zlib copies its unconsumed input after each piece and at the end of a member; this limits one such copy."""
_MAX_ZSTD_WINDOW = 8 * 1024 * 1024  # RFC 9659
_TEXT_STARTS = frozenset({b"{", b"[", b'"', b":", b"d", b"e", b"i", b"r"})
"""The first bytes of JSON and of the fields of an event stream."""
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# Some servers send a character set or a transfer encoding here; the body is then not encoded.
_PLAIN = frozenset({
    "", "identity", "none", "utf-8", "utf8", "ascii", "us-ascii", "iso-8859-1", "binary", "7bit", "8bit", "chunked",
})  # fmt: skip


class InvalidEncoding(Exception):
    """The content encoding is unsupported, or the bytes do not conform to it."""


class TooMuchDecoded(Exception):
    """The decoded body exceeds the size limit or the ratio limit."""


class RatioExceeded(TooMuchDecoded):
    """The decoded body is too large for its encoded size."""


class BodyTruncated(Exception):
    """The encoded body ended before its end mark."""


class _Coding(Protocol):
    """The decoder of one content coding."""

    def feed(self, data: bytes) -> Iterable[bytes]:
        """Decode the next bytes; yields pieces lazily."""
        ...

    @property
    def is_finished(self) -> bool:
        """Whether the bytes so far form a complete body."""
        ...


class _Gzip:
    """Gzip members, up to MAX_MEMBERS. A body that is not gzip is not changed: some proxies decode it and keep the header."""

    def __init__(self, *, strict: bool) -> None:
        self._inflate = zlib.decompressobj(31)
        self._start = b""
        self._is_member, self._members, self._is_plain = False, 0, False
        self._strict = strict

    def feed(self, data: bytes) -> Iterator[bytes]:
        data, self._start = self._start + data, b""
        view, at = memoryview(data), 0
        while at < len(data) and not self._is_plain:
            if not self._is_member:
                head = data[at : at + len(_GZIP_MAGIC)]
                if len(head) < len(_GZIP_MAGIC) and _GZIP_MAGIC.startswith(head):
                    self._start = head
                    return
                if head != _GZIP_MAGIC:
                    self._is_plain = _is_plain(self._members, strict=self._strict)
                    break
                _check_members(self._members)
                self._inflate, self._is_member = zlib.decompressobj(31), True
            at += yield from _inflated(self._inflate, view[at:])
            if self._inflate.eof:
                self._is_member, self._members = False, self._members + 1
        if data and self._is_plain:  # after a member, other bytes are padding
            yield data

    @property
    def is_finished(self) -> bool:
        return not self._is_member and not self._start


class _Deflate:
    """The zlib format of RFC 9110, or the raw deflate data that many servers send under this name."""

    def __init__(self, *, strict: bool) -> None:  # noqa: ARG002 - data without a header is raw deflate data
        self._inflate: Any = None
        self._start = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._inflate is None:
            self._start += data
            if len(self._start) < 2:
                return
            first, second = self._start[:2]
            has_header = first & 0x0F == 8 and (first << 8 | second) % 31 == 0
            self._inflate = zlib.decompressobj(15 if has_header else -15)
            data, self._start = self._start, b""
        if not self._inflate.eof:
            yield from _inflated(self._inflate, memoryview(data))

    @property
    def is_finished(self) -> bool:
        return self._inflate.eof if self._inflate is not None else not self._start


def _inflated(inflate: Any, data: memoryview) -> Generator[bytes, None, int]:
    """Yield the decoded pieces. Returns the number of consumed bytes: all, or those up to the end of the stream."""
    try:
        for at in range(0, len(data), _INFLATE_SLICE):
            part = data[at : at + _INFLATE_SLICE]
            piece = inflate.decompress(part, _PIECE)
            while piece:
                yield piece
                if inflate.eof:  # the unconsumed tail is in the unused data too
                    break
                piece = inflate.decompress(inflate.unconsumed_tail, _PIECE)
            if inflate.eof:
                return at + len(part) - len(inflate.unused_data)
    except zlib.error as error:
        raise InvalidEncoding(str(error)) from None
    return len(data)


def _is_plain(members: int, *, strict: bool) -> bool:
    """Whether bytes without magic bytes, after `members` members, are an unencoded body. Raises InvalidEncoding."""
    if strict and not members:
        raise InvalidEncoding("the body lacks the first bytes of this encoding")
    return members == 0


def _check_members(count: int) -> None:
    """Check the number of members before the next one. Raises TooMuchDecoded."""
    if count >= MAX_MEMBERS:
        raise InvalidEncoding(f"the encoded body has more than {MAX_MEMBERS} members or frames")


class _Brotli:
    def __init__(self, *, strict: bool) -> None:  # noqa: ARG002 - the format has no mark
        self._brotli: Any = import_module("brotli")
        self._decompressor: Any = self._brotli.Decompressor()
        self._fed = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._fed = True
        try:
            piece = self._decompressor.process(data, output_buffer_limit=_PIECE)
            while piece or not self._decompressor.can_accept_more_data():
                yield piece
                piece = self._decompressor.process(b"", output_buffer_limit=_PIECE)
        except self._brotli.error as error:
            raise InvalidEncoding(str(error)) from None

    @property
    def is_finished(self) -> bool:
        return not self._fed or bool(self._decompressor.is_finished())


class _Zstd:
    """Zstd frames, up to MAX_MEMBERS. A body that is not zstd is not changed, as with gzip."""

    _SLICE = 256
    """The library does not limit its output. A block of 128 KiB needs at least 4 bytes, so this limits one step to 8 MiB."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._zstandard: Any = import_module("zstandard")
        self._decompressor: Any = self._zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW)
        self._frame: Any = None
        self._start = b""
        self._frames, self._is_plain = 0, False

    def feed(self, data: bytes) -> Iterator[bytes]:
        data, self._start = self._start + data, b""
        view, at = memoryview(data), 0
        while at < len(data) and not self._is_plain:
            if self._frame is None:
                head = data[at : at + len(_ZSTD_MAGIC)]
                if len(head) < len(_ZSTD_MAGIC):
                    self._start = head
                    return
                if not self._is_frame(head):
                    self._is_plain = _is_plain(self._frames, strict=self._strict)
                    break
                _check_members(self._frames)
                self._frame = self._decompressor.decompressobj()
            at += yield from self._decompressed(self._frame, view[at:])
        if data and self._is_plain:
            yield data

    @staticmethod
    def _is_frame(head: bytes) -> bool:
        return head == _ZSTD_MAGIC or (head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F)

    def _decompressed(self, frame: Any, data: memoryview) -> Generator[bytes, None, int]:
        """Yield the decoded pieces. Returns the number of consumed bytes: all, or those up to the end of the frame."""
        try:
            for at in range(0, len(data), self._SLICE):
                part = data[at : at + self._SLICE]
                if piece := frame.decompress(part):
                    yield piece
                if frame.eof:
                    self._frame, self._frames = None, self._frames + 1
                    return at + len(part) - len(frame.unused_data)
        except self._zstandard.ZstdError as error:
            raise InvalidEncoding(str(error)) from None
        return len(data)

    @property
    def is_finished(self) -> bool:
        return self._frame is None and not self._start


class _Unknown:
    """A body whose encoding has a name that is no known coding: passed on if it begins as JSON or an event stream does."""

    def __init__(self, name: str) -> None:
        self._name, self._is_plain = name[:40], False

    def feed(self, data: bytes) -> Iterator[bytes]:
        if not self._is_plain and data.strip():
            if data.lstrip()[:1] not in _TEXT_STARTS:
                raise _unknown(self._name)
            self._is_plain = True
        if data:
            yield data

    @property
    def is_finished(self) -> bool:
        return True


def _unknown(name: str) -> InvalidEncoding:
    return InvalidEncoding(f"the content encoding {name[:40]!r} is not supported (gzip, deflate, br and zstd are)")


class _CodingType(Protocol):
    def __call__(self, *, strict: bool) -> _Coding: ...


_CODINGS: Mapping[str, _CodingType] = {
    "gzip": _Gzip,
    "x-gzip": _Gzip,
    "deflate": _Deflate,
    "br": _Brotli,
    "zstd": _Zstd,
}
ACCEPTED = "gzip, deflate, br, zstd"
"""The codings, as an `accept-encoding` header names them."""


class ContentDecoder:
    """Decodes one body. `codings` are in the order of their application; `max_bytes` limits the decoded size. With `strict`, a
    body without the magic bytes of its coding is an error."""

    def __init__(self, codings: Sequence[str], max_bytes: int, *, strict: bool = False) -> None:
        self._codings = [
            _CODINGS[name](strict=strict) if name in _CODINGS else _Unknown(name) for name in reversed(codings)
        ]
        self._max_bytes = max_bytes
        self._encoded = 0
        self._made = [0] * len(codings)
        self._discards = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decode the next bytes. Raises InvalidEncoding, TooMuchDecoded."""
        if not self._discards:
            self._encoded += len(data)
            yield from self._through(0, data)

    def _through(self, stage: int, data: bytes) -> Iterator[bytes]:
        for piece in self._codings[stage].feed(data):
            self._made[stage] += len(piece)
            self._check(self._made[stage])
            if stage + 1 < len(self._codings):
                yield from self._through(stage + 1, piece)
            else:
                yield piece

    def _check(self, made: int) -> None:
        if made > self._max_bytes:
            raise TooMuchDecoded("the decoded body exceeds the limit max_body_bytes")
        if made > FREE_BYTES and made > MAX_RATIO * self._encoded:
            raise RatioExceeded(f"the decoded body is more than {MAX_RATIO} times as large as the encoded body")

    def finish(self) -> None:
        """Check the end of the body. Raises BodyTruncated."""
        if not self._discards and self._encoded and not all(each.is_finished for each in self._codings):
            raise BodyTruncated("the encoded body is incomplete")

    def discard(self) -> None:
        """Ignore the rest of the body."""
        self._discards = True


def content_decoder(header: bytes, max_bytes: int, *, strict: bool = False) -> ContentDecoder | None:
    """The decoder for a `content-encoding` header; None for an unencoded body. Raises InvalidEncoding for too many codings, and
    with `strict` for an unknown one."""
    names = [
        name for name in (part.strip().lower() for part in header.decode("latin-1").split(",")) if name not in _PLAIN
    ]
    if not names:
        return None
    unknown = next((name for name in names if name not in _CODINGS), None) if strict else None
    if unknown is not None or len(names) > _MAX_CODINGS:
        raise _unknown(unknown or ", ".join(names))
    return ContentDecoder(names, max_bytes, strict=strict)
