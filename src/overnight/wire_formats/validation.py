"""Validate request bodies before a translation, so that an invalid field is rejected before a billed request.

A target of the client's own format would report the error itself; a translation could hide it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, cast

from .contract import InvalidBody
from .lenient_json import Json

_TYPE_NAMES: dict[type, str] = {dict: "an object", list: "a list", str: "a string", int: "an integer"}


def reject(place: str, wanted: str) -> NoReturn:
    raise InvalidBody(f"{place}: must be {wanted}", place)


def check(body: Json, shapes: Mapping[str, tuple[type, ...]], place: str = "") -> None:
    """Check the types of fields. A field may also be null or missing. Raises InvalidBody."""
    for name, kinds in shapes.items():
        value = body.get(name)
        if value is not None and not isinstance(value, kinds):
            reject(f"{place}{name}", " or ".join(_TYPE_NAMES[kind] for kind in kinds))


def role_of(message: Json, roles: tuple[str, ...], place: str) -> str:
    role = message.get("role")
    if not isinstance(role, str) or role not in roles:
        reject(f"{place}.role", f"one of {', '.join(roles)}")
    return role


def blocks_of(content: Any, place: str, *, may_lack: bool = False) -> list[Json]:
    """Content as a list of blocks; a string becomes a text block. Raises InvalidBody for other types."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if content is None and may_lack:
        return []
    if not isinstance(content, list):
        reject(place, "a string or a list of blocks")
    blocks = [{"type": "text", "text": each} if isinstance(each, str) else each for each in cast("list[Any]", content)]
    return objects_of(blocks, place)


def objects_of(value: Any, place: str) -> list[Json]:
    """A list of objects; None becomes an empty list. Raises InvalidBody."""
    if value is None:
        return []
    if not isinstance(value, list):
        reject(place, "a list of objects")
    for at, each in enumerate(cast("list[Any]", value)):
        if not isinstance(each, dict):
            reject(f"{place}[{at}]", "an object")
    return cast("list[Json]", value)


def texts_of(value: Any, place: str) -> list[str]:
    """A list of strings; None becomes an empty list. Raises InvalidBody."""
    if value is None:
        return []
    if not isinstance(value, list):
        reject(place, "a list of strings")
    for at, each in enumerate(cast("list[Any]", value)):
        if not isinstance(each, str):
            reject(f"{place}[{at}]", "a string")
    return cast("list[str]", value)


def text_field(block: Json, name: str, place: str) -> str:
    """A string field of a block; empty if null or missing. Raises InvalidBody."""
    value = block.get(name)
    if value is not None and not isinstance(value, str):
        reject(f"{place}.{name}", "a string")
    return value or ""


def unsupported_content(place: str) -> InvalidBody:
    return InvalidBody(
        f"{place}: contains no content that the target's API supports; send text, or the data itself", place
    )
