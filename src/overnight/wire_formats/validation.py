"""What a translation must be able to read: anything else is refused by its place, before anybody is asked and paid.

A target of the client's own format would complain itself; one that gets a translation would never hear of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, cast

from .contract import InvalidBody
from .lenient_json import Json

_CALLED: dict[type, str] = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


def refuse(place: str, wanted: str) -> NoReturn:
    raise InvalidBody(f"{place}: must be {wanted}", place)


def check(body: Json, shapes: Mapping[str, tuple[type, ...]], place: str = "") -> None:
    """`shapes`: which types a field may have, beside being null or missing. Raises InvalidBody."""
    for name, kinds in shapes.items():
        value = body.get(name)
        if value is not None and not isinstance(value, kinds):
            refuse(f"{place}{name}", " or ".join(_CALLED[kind] for kind in kinds))


def role_of(message: Json, roles: tuple[str, ...], place: str) -> str:
    role = message.get("role")
    if not isinstance(role, str) or role not in roles:
        refuse(f"{place}.role", f"one of {', '.join(roles)}")
    return role


def blocks_of(content: Any, place: str, *, may_lack: bool = False) -> list[Json]:
    """Content as a list of blocks; a text in it is a block of text. Raises InvalidBody for what is neither."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if content is None and may_lack:
        return []
    if not isinstance(content, list):
        refuse(place, "a text or a list of blocks")
    blocks = [{"type": "text", "text": each} if isinstance(each, str) else each for each in cast("list[Any]", content)]
    return objects_of(blocks, place)


def objects_of(value: Any, place: str) -> list[Json]:
    """None is no objects. Raises InvalidBody."""
    if value is None:
        return []
    if not isinstance(value, list):
        refuse(place, "a list of objects")
    for at, each in enumerate(cast("list[Any]", value)):
        if not isinstance(each, dict):
            refuse(f"{place}[{at}]", "an object")
    return cast("list[Json]", value)


def texts_of(value: Any, place: str) -> list[str]:
    """None is no texts. Raises InvalidBody."""
    if value is None:
        return []
    if not isinstance(value, list):
        refuse(place, "a list of texts")
    for at, each in enumerate(cast("list[Any]", value)):
        if not isinstance(each, str):
            refuse(f"{place}[{at}]", "a text")
    return cast("list[str]", value)


def said_in(block: Json, name: str, place: str) -> str:
    """The text in a field of a block; none of one that is null or missing. Raises InvalidBody."""
    said = block.get(name)
    if said is not None and not isinstance(said, str):
        refuse(f"{place}.{name}", "a text")
    return said or ""


def nothing_left(place: str) -> InvalidBody:
    return InvalidBody(
        f"{place}: holds nothing that this model's API can be given; send text, or the data itself", place
    )
