"""The tool calls of a streamed chat choice: which fragment belongs to which call, and fragments as clients expect them.

Clients assemble fragments by their index, and concatenate the strings of each. So a fragment is corrected where a server
numbers calls differently, repeats a name or an id, or sends arguments that are no string.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .growing_json import GrowingJson, GrowingText

Json = dict[str, Any]
_encode = msgspec.json.Encoder().encode


class ToolCalls:
    """The tool calls of a choice in the order of their start.

    Some servers give all calls the same index, or none. Then a new call starts with a new id, or with a name after complete
    arguments.

    Attributes:
        calls_in_order: the calls; the texts of each are still in fragments.
        characters: the number of characters received.
        is_rewritten: whether a fragment was corrected since this was last cleared.
    """

    __slots__ = ("_ids", "_latest", "_prefix", "_used_ids", "calls_in_order", "characters", "is_rewritten")

    def __init__(self, prefix: str) -> None:
        self.calls_in_order: list[Json] = []
        self.characters = 0
        self.is_rewritten = False
        self._prefix = prefix  # of the ids of calls that have none
        self._ids: dict[tuple[Any, str], int] = {}
        self._used_ids: set[str] = set()
        self._latest: dict[Any, int] = {}

    def take(self, parts: list[Json]) -> bool:
        """Add fragments, and correct them in place. Returns whether a call is complete."""
        is_terminal = has_empty = False
        for position, part in enumerate(parts):
            before = len(self.calls_in_order)
            place = self._place(part, position)
            if part.get("index") != place:
                part["index"] = place
                self.is_rewritten = True
            # A new call ends the one before it.
            is_terminal |= 0 < before == place
            is_terminal |= self._merge(self.calls_in_order[place], part, place)
            has_empty |= len(part) == 1
        if has_empty:  # nothing is left but the index
            parts[:] = [part for part in parts if len(part) > 1]
            self.is_rewritten = True
        return is_terminal

    def are_complete(self) -> bool:
        """Whether each call has a name and complete arguments."""
        for call in self.calls_in_order:
            function: Json = call.get("function") or {}
            arguments = function.get("arguments")
            if not function.get("name") or (isinstance(arguments, GrowingJson) and not arguments.is_complete()):
                return False
        return True

    def are_named(self) -> bool:
        """Whether each call has a name, or is none of a function."""
        return all("function" not in call or call["function"].get("name") for call in self.calls_in_order)

    # ── one fragment ────────────────────────────────────────────────────────────────────────────────────────────────

    def _place(self, part: Json, position: int) -> int:
        """The position of the call that a fragment belongs to. A fragment that starts a call gets a new position."""
        index = part.get("index")
        given: Any = position if index is None else index
        call_id: str | None = part.get("id")
        place = self._ids.get((given, call_id)) if call_id else None
        if place is None:
            place = self._latest.get(given)
            if place is None or _begins_another(self.calls_in_order[place], part):
                place = len(self.calls_in_order)
                self.calls_in_order.append({})
            if call_id:
                self._ids[given, call_id] = place
        self._latest[given] = place
        return place

    def _merge(self, call: Json, part: Json, place: int) -> bool:
        """Add a fragment to its call. Returns whether its arguments are complete."""
        self._identify(call, part, place)
        fragment: Any = part.get("function")
        if fragment is None and "function" in part:
            del part["function"]
            self.is_rewritten = True
        if "type" in part and part["type"] is None:
            del part["type"]
            self.is_rewritten = True
        for key, value in part.items():
            if key not in ("function", "index", "id") and (value or key not in call):
                call[key] = value
        return fragment is not None and self.merge_function(call, fragment)

    def _identify(self, call: Json, part: Json, place: int) -> None:
        """Give the call its id, from its first fragment. Later ones must not repeat it, since clients would join them."""
        given: Any = part.get("id")
        if "id" in call:
            if given:
                del part["id"]
                self.is_rewritten = True
            return
        if not given or given in self._used_ids:
            given = part["id"] = f"{self._prefix}{place}"
            self.is_rewritten = True
        self._used_ids.add(given)
        call["id"] = given

    def merge_function(self, call: Json, fragment: Json) -> bool:
        """Add a fragment of a function. Returns whether its arguments are complete."""
        function: Json = call.setdefault("function", {})
        name: Any = fragment.get("name")
        if name and (told := self._take_name(function, name)) != name:
            fragment["name"] = told
            self.is_rewritten = True
        piece: Any = fragment.get("arguments")
        if piece is not None and not isinstance(piece, str):
            if isinstance(piece, int | float):
                raise TypeError("the arguments of a call are a number")
            piece = fragment["arguments"] = _encode(piece).decode()
            self.is_rewritten = True
        for key, value in fragment.items():
            if key not in ("name", "arguments") and (value or key not in function):
                function[key] = value
        if piece is None:
            return False
        arguments = function.get("arguments")
        if arguments is None:
            arguments = function["arguments"] = GrowingJson()
        arguments.append(piece)
        self.characters += len(piece)
        return bool(piece) and arguments.ends_with(piece)

    def _take_name(self, function: Json, name: str) -> str:
        """Add a name, or a fragment of one. Returns what it adds to the name, which clients concatenate."""
        held: str = function.get("name") or ""
        arguments: Any = function.get("arguments")
        if held and (name == held or (arguments is not None and arguments.start)):
            return ""  # repeated
        added = name[len(held) :] if name.startswith(held) else name  # some send the name so far
        function["name"] = held + added
        return added


def _begins_another(call: Json, part: Json) -> bool:
    """Whether a fragment with the index of this call starts the next call."""
    fragment: Json = part.get("function") or {}
    name = fragment.get("name")
    if not name:
        return False
    held: Json = call.get("function") or {}
    arguments: Any = held.get("arguments")
    is_complete = arguments is None or arguments.is_complete()
    if part.get("id") and call.get("id"):
        # Some servers generate a new id for every fragment of one call.
        return name != held.get("name") or is_complete
    return bool(fragment.get("arguments") and arguments is not None and arguments.start) and is_complete


def plain_calls(calls: ToolCalls) -> list[Json]:
    """The calls with their texts joined."""
    return [{"type": "function", **_plain(call)} for call in calls.calls_in_order]


def _plain(value: Any) -> Any:
    if isinstance(value, GrowingText):
        return "".join(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return value
