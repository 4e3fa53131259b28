"""The form of a key template: places of arguments between literal text."""

import re

import msgspec

from .json_pointer import Pointer

MAX_TEMPLATE = 500
_PLACE = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,127}")
_SEPARATOR = re.compile(r'[^A-Za-z0-9_.@~+%"-]')
"""What a value never contains once it is written into a key."""


class KeyTemplate(msgspec.Struct, frozen=True):
    """Literals and places in turn: one literal more than there are places."""

    literals: tuple[str, ...]
    pointers: tuple[Pointer, ...]


def parse_key_template(text: str) -> KeyTemplate:
    """Read a template such as `{payment}:{usd}` or `refund {/customer/id}`.

    Raises ValueError with the reason: a place that is neither a name nor a pointer, a template without places, and two places
    that no separator keeps apart, so that different arguments could give one key.
    """
    if len(text) > MAX_TEMPLATE or not text.isprintable():
        raise ValueError(f"a key template is one line of at most {MAX_TEMPLATE} characters")
    parts = _PLACE.split(text)
    literals, names = tuple(parts[::2]), parts[1::2]
    if any("{" in each or "}" in each for each in literals):
        raise ValueError("a brace that is not closed")
    if not names:
        raise ValueError("it names no argument, so all calls would be one; name one such as {id}")
    for literal in literals[1:-1]:
        if _SEPARATOR.search(literal) is None:
            raise ValueError("two arguments need a separator between them, such as a colon: {a}:{b}")
    pointers: list[Pointer] = []
    for name in names:
        if not name.startswith("/") and _NAME.fullmatch(name) is None:
            raise ValueError(
                f"{{{name[:60]}}} is neither the name of an argument nor a pointer such as {{/customer/id}}"
            )
        pointers.append(Pointer(name if name.startswith("/") else f"/{name}"))
    return KeyTemplate(literals, tuple(pointers))
