"""Results and arguments as JSON, and the fingerprint of a request."""

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from overnight.domain import BadInput

LARGEST_RESULT = 4 * 1024 * 1024
_SIMPLE = (str, int, float, bool, type(None))


def _name_of(value: object) -> Any:
    return f"<{type(value).__qualname__}>"


_fingerprint_encoder = msgspec.json.Encoder(enc_hook=_name_of, order="deterministic")
_strict_encoder = msgspec.json.Encoder()


def fingerprint(*parts: Any) -> str:
    """32 hex digits over the parts as JSON; what has no JSON form counts by its type's name alone."""
    return hashlib.sha256(_fingerprint_encoder.encode(parts)).hexdigest()[:32]


def encode(value: Any, place: str) -> bytes:
    """The value as JSON. Raises BadInput naming `place` when it has no JSON form or is too large."""
    try:
        body = _strict_encoder.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(
            f"{place}: {error}. Results are kept as JSON: return dicts, lists, text, numbers, dataclasses or msgspec.Struct"
        ) from None
    if len(body) > LARGEST_RESULT:
        raise BadInput(
            f"{place}: {len(body):,} bytes of JSON; the most is {LARGEST_RESULT:,}. Keep large data in a file"
        )
    return body


def decode(body: bytes | None, function: Callable[..., Any] | None = None) -> Any:
    """The JSON back as the function's annotated return type, where msgspec knows that type."""
    hint = _return_hint(function) if function is not None else Any
    try:
        return msgspec.json.decode(body or b"null", type=hint)
    except (msgspec.ValidationError, TypeError, NotImplementedError):
        return msgspec.json.decode(body or b"null")


_hints: dict[Callable[..., Any], Any] = {}


def _return_hint(function: Callable[..., Any]) -> Any:
    if function not in _hints:
        from typing import get_type_hints

        try:
            _hints[function] = get_type_hints(function).get("return", Any)
        except (NameError, TypeError):
            _hints[function] = Any
    return _hints[function]


def through_json(value: Any, body: bytes, function: Callable[..., Any]) -> Any:
    """What a replay would give for this value, so that live and replayed code see the same."""
    return value if type(value) in _SIMPLE else decode(body, function)
