"""Templates of idempotency keys, such as `{payment}:{usd}`: one pass, no expressions, and no two sets of values give one key.

A value is written so that it never contains a separator of the template: text that begins with a letter as it is, with `%XX` for
every character but letters, digits and `_ - . @ ~ +`; other text and other values as JSON, escaped in the same way.
"""

import hashlib
import json
import re
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import msgspec

from overnight.domain.json_pointer import MISSING, Pointer
from overnight.domain.key_templates import KeyTemplate, parse_key_template
from overnight.domain.value_tests import is_number

MAX_VALUE = 200
_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_.@~+-]*")
_WORDS = frozenset({"true", "false", "null"})
_SAFE = '"@~+'
_WHOLE = 1 << 53


class TemplateMismatch(ValueError):
    """The arguments give no key. The message never repeats a value."""


_parse = lru_cache(maxsize=1024)(parse_key_template)


def render_key(template: str, arguments: Any) -> str:
    """The idempotency key of a call. Raises TemplateMismatch if an argument is missing or has no JSON form."""
    parsed: KeyTemplate = _parse(template)
    texts = [parsed.literals[0]]
    for pointer, literal in zip(parsed.pointers, parsed.literals[1:], strict=True):
        texts += [_value_text(pointer, pointer.find(arguments)), literal]
    return "".join(texts)


def _value_text(pointer: Pointer, value: Any) -> str:
    if value is MISSING or value is None:
        raise TemplateMismatch(f"the idempotency key needs the argument {pointer}")
    if isinstance(value, str) and _BARE.fullmatch(value) and value not in _WORDS and len(value) <= MAX_VALUE:
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < _WHOLE:
        value = int(value)  # 40.0 and 40 are one number
    if isinstance(value, str) and value[:1].isalpha() and value not in _WORDS:
        text = value
    elif isinstance(value, int | float) and not isinstance(value, bool) and not is_number(value):
        raise TemplateMismatch(
            f"the argument {pointer} is not a finite number, and cannot be part of an idempotency key"
        )
    else:
        text = _json(pointer, value)
    quoted = quote(text.encode("utf-8", "surrogatepass"), safe=_SAFE)
    # No value is written with %s, so a digest is never equal to one.
    return quoted if len(quoted) <= MAX_VALUE else f"%sha256%{hashlib.sha256(quoted.encode()).hexdigest()}"


def _json(pointer: Pointer, value: Any) -> str:
    try:
        return json.dumps(
            value,
            sort_keys=True,
            ensure_ascii=False,
            allow_nan=False,
            separators=(",", ":"),
            default=msgspec.to_builtins,
        )
    except (TypeError, ValueError, RecursionError):
        message = f"the argument {pointer} has no JSON form, and cannot be part of an idempotency key"
        raise TemplateMismatch(message) from None
