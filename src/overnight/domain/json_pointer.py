"""JSON Pointers (RFC 6901) into decoded JSON."""

import re
from typing import Any, Final, cast

import msgspec

POINTER = r"(/([^~/\x00-\x1f]|~[01])*){1,32}"
"""The form of a pointer, without the empty one, which is the whole value."""
_FORM = re.compile(POINTER)
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")


class Missing:
    """The type of `MISSING`."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()


class Pointer(msgspec.Struct, frozen=True):
    """A pointer as text, and its decoded parts."""

    text: str
    parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.text and _FORM.fullmatch(self.text) is None:
            raise ValueError(f"not a JSON pointer such as /usd: {self.text[:60]!r}")
        parts = tuple(each.replace("~1", "/").replace("~0", "~") for each in self.text.split("/")[1:])
        msgspec.structs.force_setattr(self, "parts", parts)

    def find(self, value: Any) -> Any:
        """The value at this place, or `MISSING`. An array index has no sign and no leading zero."""
        for part in self.parts:
            if isinstance(value, dict):
                entries = cast("dict[str, Any]", value)
                if part not in entries:
                    return MISSING
                value = entries[part]
            elif isinstance(value, list | tuple):
                items = cast("list[Any]", value)
                if _INDEX.fullmatch(part) is None or int(part) >= len(items):
                    return MISSING
                value = items[int(part)]
            else:
                return MISSING
        return value

    def __str__(self) -> str:
        return self.text


def pointer_to(parts: list[str | int]) -> str:
    """The pointer to a path of names and indexes."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)
