"""The JSON encoding of results and arguments, and the fingerprint of a request."""

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any, cast, get_type_hints

import msgspec

from overnight.domain import BadInput
from overnight.domain.json_text import decode_json, encode_json, fingerprint

__all__ = ["MAX_RESULT_BYTES", "decode", "encode", "fingerprint"]

MAX_RESULT_BYTES = 4 * 1024 * 1024
_MAY_HIDE_A_NUMBER = (b"null", b"nan", b"inf")
"""NaN and the infinities as JSON: null as values, these words as keys and as decimals."""


_strict_encoder = msgspec.json.Encoder()


def encode(value: Any, place: str, *, largest: int | None = MAX_RESULT_BYTES) -> bytes:
    """Encode a value as JSON. `place` names it in errors.

    Raises BadInput if it has no JSON form, is larger than `largest` bytes (default 4 MiB; None is no limit), or contains
    NaN or an infinity: JSON has no such numbers, so a replay would return another value than was committed.
    """
    try:
        body = _encoded(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadInput(
            f"{place}: {error}. Results are kept as JSON: return dicts, lists, text, numbers, dataclasses or msgspec.Struct"
        ) from None
    if largest is not None and len(body) > largest:
        raise BadInput(f"{place}: {len(body):,} bytes of JSON; the maximum is {largest:,}. Store large data in a file")
    if any(word in body.lower() for word in _MAY_HIDE_A_NUMBER):
        found = _not_finite(msgspec.to_builtins(value, builtin_types=(Decimal,)), "value")
        if found:
            raise BadInput(f"{place}: {found}. JSON has neither NaN nor infinities: use None, or text")
    return body


def _encoded(value: Any) -> bytes:
    try:
        return _strict_encoder.encode(value)
    except UnicodeEncodeError:  # halves of surrogate pairs, as models and web pages write them
        return encode_json(value)


def _not_finite(value: Any, where: str) -> str:
    """A description of a number in the value that is not finite; empty if there is none."""
    if isinstance(value, float | Decimal):
        finite = value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)
        return "" if finite else f"{where} is {value}"
    found = ""
    if isinstance(value, dict):
        for key, inner in cast("dict[Any, Any]", value).items():
            found = found or _not_finite(key, f"a key of {where}") or _not_finite(inner, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(cast("list[Any]", value)):
            found = found or _not_finite(inner, f"{where}[{index}]")
    return found


def decode(body: bytes | None, function: Callable[..., Any] | None = None) -> Any:
    """Decode JSON as the function's annotated return type, where msgspec knows that type.

    Code receives this and never the returned object itself, so that it sees the same value live and in a replay: `0` of a
    `-> float` is 0.0 in both.
    """
    decoder = _decoder(function) if function is not None else _plain
    try:
        return decoder.decode(body or b"null")
    except (msgspec.ValidationError, TypeError, NotImplementedError):
        return decode_json(body or b"null")
    except msgspec.DecodeError:
        value = decode_json(body or b"null")
        try:
            return msgspec.convert(value, decoder.type)
        except (msgspec.ValidationError, TypeError, NotImplementedError):
            return value


_plain: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_decoders: dict[Callable[..., Any], msgspec.json.Decoder[Any]] = {}


def _decoder(function: Callable[..., Any]) -> msgspec.json.Decoder[Any]:
    """The decoder of the function's annotated return type; a plain one if msgspec does not know that type."""
    found = _decoders.get(function)
    if found is None:
        try:
            found = msgspec.json.Decoder(get_type_hints(function).get("return", Any))
        except Exception:  # annotations may be any code
            found = _plain
        _decoders[function] = found
    return found
