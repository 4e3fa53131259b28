"""Free texts in events: questions, notes and messages of exceptions.

They are content: the ledger keeps them beside the facts, where they can be erased, and only readers of content see them. What
stays in the facts are classes, codes, names and states. Reasons that operators give for top-ups and settlements stay too.
"""

import json
from typing import Any, cast

import msgspec

from .events import Event, Recorded

Path = tuple[str, ...]
ANY = "*"
BUDGET = "budget"
"""A wait whose reason is no free text: it names the budget and its amounts."""

_WAIT: tuple[Path, ...] = (("why",), ("boundary",), ("changed", ANY, ANY))
_PATHS: dict[str, tuple[Path, ...]] = {
    "review_requested": (("detail", "question"),),
    "review_decided": (("name",), ("decision", "note")),
    "tool_unknown": (("decision", "why"),),
    "parked": tuple(("detail", "waiting", ANY, *path) for path in _WAIT),
    "diverged": (("name",), ("decision", "why"), *(("detail", *path) for path in _WAIT)),
}
_APPROVAL: tuple[Path, ...] = (("name",),)
"""The boundary of an approval is named by its question."""


def split_texts(event: Event) -> tuple[Event, bytes | None]:
    """The event without its texts, and these as JSON by their places, such as `decision/note`. The event is not changed."""
    paths = _PATHS.get(event.event, ())
    if event.kind == "approval":
        paths += _APPROVAL
    error, found = event.error, dict[str, str]()
    has_message = error is not None and bool(error.message)
    if not paths and not has_message:
        return event, None
    facts = msgspec.structs.replace(event)
    if error is not None and has_message:
        found["error/message"] = error.message
        facts.error = msgspec.structs.replace(error, message="")
    for first, *rest in paths:
        value = getattr(facts, first)
        if not rest and isinstance(value, str):
            found[first], value = value, None
        setattr(facts, first, _without(value, tuple(rest), first, found))
    # With escapes, since texts may have lone surrogates.
    return facts, json.dumps(found).encode() if found else None


def restore_texts(event: Event, texts: bytes | None) -> None:
    """Put the texts of `split_texts` back into the event. Places that it does not have are left out."""
    if texts is None:
        return
    for place, text in cast(dict[str, str], json.loads(bytes(texts))).items():
        first, *rest = place.split("/")
        if first == "error":
            error = event.error
            event.error = msgspec.structs.replace(error, message=text) if error is not None else None
        elif not rest:
            setattr(event, first, text)
        else:
            _put(getattr(event, first), rest, text)


def without_texts(recorded: Recorded) -> Recorded:
    """The event for readers without access to content: no texts, and no fingerprint, which is a hash of arguments."""
    return msgspec.structs.replace(recorded, facts=split_texts(recorded.facts)[0], fingerprint=None)


def wait_without_texts(wait: dict[str, Any]) -> dict[str, Any]:
    """A wait of a parked job for readers without access to content."""
    for path in _WAIT:
        wait = _without(wait, path, "", {})
    return wait


def _without(value: Any, path: Path, place: str, found: dict[str, str]) -> Any:
    """A copy of a value without the texts at a path, which are added to `found`."""
    if not path:
        return value
    name, rest = path[0], path[1:]
    if isinstance(value, list) and name == ANY:
        each = enumerate(cast(list[Any], value))
        shortened: list[Any] = [_without(inner, rest, f"{place}/{index}", found) for index, inner in each]
        return shortened
    if not isinstance(value, dict):
        return cast(Any, value)
    entries = dict(cast(dict[str, Any], value))
    if name == "why" and entries.get("for") == BUDGET:
        return entries
    for key in list(entries) if name == ANY else [name]:
        if rest and key in entries:
            entries[key] = _without(entries[key], rest, f"{place}/{key}", found)
        elif isinstance(text := entries.get(key), str):
            found[f"{place}/{key}"] = text
            del entries[key]
    return entries


def _put(target: Any, path: list[str], text: str) -> None:
    for name in path[:-1]:
        target = _inside(target, name)
    if isinstance(target, dict):
        target[path[-1]] = text


def _inside(target: Any, name: str) -> Any:
    if isinstance(target, dict):
        return cast(dict[str, Any], target).get(name)
    if isinstance(target, list) and int(name) < len(cast(list[Any], target)):
        return cast(list[Any], target)[int(name)]
    return None
