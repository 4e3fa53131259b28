"""Results and arguments as JSON, and the fingerprint of a request."""

import hashlib
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any, cast

import msgspec

from overnight.domain import BadInput

LARGEST_RESULT = 4 * 1024 * 1024
_MAY_HIDE_A_NUMBER = (b"null", b"nan", b"inf")
"""What NaN and the infinities become in JSON: null as values, these words as keys and as decimals."""


def _name_of(value: object) -> Any:
    return f"<{type(value).__qualname__}>"


_fingerprint_encoder = msgspec.json.Encoder(enc_hook=_name_of, order="deterministic")
_strict_encoder = msgspec.json.Encoder()


def fingerprint(*parts: Any) -> str:
    """32 hex digits over the parts as JSON; what has no JSON form counts by its type's name alone."""
    return hashlib.sha256(_fingerprint_encoder.encode(parts)).hexdigest()[:32]


def encode(value: Any, place: str, *, largest: int | None = LARGEST_RESULT) -> bytes:
    """The value as JSON. Raises BadInput naming `place` when it has no JSON form, is larger than `largest` bytes, or holds NaN
    or an infinity: JSON has no such numbers, so a replay would give another value than was committed."""
    try:
        body = _strict_encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadInput(
            f"{place}: {error}. Results are kept as JSON: return dicts, lists, text, numbers, dataclasses or msgspec.Struct"
        ) from None
    if largest is not None and len(body) > largest:
        raise BadInput(f"{place}: {len(body):,} bytes of JSON; the most is {largest:,}. Keep large data in a file")
    if any(word in body.lower() for word in _MAY_HIDE_A_NUMBER):
        found = _not_finite(msgspec.to_builtins(value, builtin_types=(Decimal,)), "value")
        if found:
            raise BadInput(f"{place}: {found}. JSON has neither NaN nor infinities: use None, or text")
    return body


def _not_finite(value: Any, where: str) -> str:
    """Where a number that is not finite stands in it, in words; empty when all are finite."""
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
    """The JSON back as the function's annotated return type, where msgspec knows that type.

    Code is given this and never the object that was returned, so that it sees the same value live and in a replay: `0` of a
    `-> float` is 0.0 in both.
    """
    decoder = _decoder(function) if function is not None else _plain
    try:
        return decoder.decode(body or b"null")
    except (msgspec.ValidationError, TypeError, NotImplementedError):
        return _plain.decode(body or b"null")


_plain: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_decoders: dict[Callable[..., Any], msgspec.json.Decoder[Any]] = {}


def _decoder(function: Callable[..., Any]) -> msgspec.json.Decoder[Any]:
    """Of the function's annotated return type; a plain one where there is none that msgspec takes."""
    found = _decoders.get(function)
    if found is None:
        from typing import get_type_hints

        try:
            found = msgspec.json.Decoder(get_type_hints(function).get("return", Any))
        except Exception:  # annotations are any code at all
            found = _plain
        _decoders[function] = found
    return found
