"""Read and write JSON that is not quite JSON: with NaN, Infinity, halves of surrogate pairs, or a byte order mark.

Model servers write it, and so do steps of job code. The strict decoder is tried first, so usual text costs nothing more.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, cast

import msgspec

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_HALF = re.compile("[\ud800-\udfff]")


def decode_json(data: bytes) -> Any:
    """The value, with halves of surrogate pairs as they stand.

    Raises:
        msgspec.DecodeError, RecursionError: it is no JSON even so.
    """
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _decode_leniently(data, error)


def _decode_leniently(data: bytes, error: Exception) -> Any:
    try:
        return json.loads(data.removeprefix(BYTE_ORDER_MARK).decode())
    except ValueError:
        raise msgspec.DecodeError(str(error)) from None


def encode_json(value: Any, *, exact: bool = False) -> bytes:
    """JSON without loss: a half of a surrogate pair is written as an escape, and two halves in a row are one character.

    Args:
        exact: write NaN and Infinity as such, which only `decode_json` reads; otherwise they become null.
    """
    if not exact:
        try:
            return _encode(value)
        except UnicodeEncodeError:
            pass
    return json.dumps(value, separators=(",", ":"), default=_plain).encode()


def _plain(value: Any) -> Any:
    return decode_json(bytes(value)) if isinstance(value, msgspec.Raw) else msgspec.to_builtins(value)


def decode_for_display(data: bytes) -> Any:
    """The value with U+FFFD in place of halves, so that any encoder can write it. Raises as `decode_json`."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _whole_characters(_decode_leniently(data, error))


def _whole_characters(value: Any) -> Any:
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, list):
        return [_whole_characters(each) for each in cast("list[Any]", value)]
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value)
        return {whole_characters(name): _whole_characters(each) for name, each in entries.items()}
    return value


def whole_characters(text: str) -> str:
    """The text with halves joined to characters, and U+FFFD in place of single ones."""
    if _HALF.search(text) is None:
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def joined_halves(text: str) -> str:
    """The text with two halves in a row as one character. A single half stays."""
    if _HALF.search(text) is None:
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _name_of(value: object) -> Any:
    return f"<{type(value).__qualname__}>"


_fingerprint_encoder = msgspec.json.Encoder(enc_hook=_name_of, order="deterministic")


def fingerprint(*parts: Any) -> str:
    """32 hex digits of a hash of the parts as JSON. A value without a JSON form counts by the name of its type."""
    try:
        body = _fingerprint_encoder.encode(parts)
    except UnicodeEncodeError:
        body = encode_json(msgspec.to_builtins(parts, enc_hook=_name_of, order="deterministic"))
    return hashlib.sha256(body).hexdigest()[:32]
