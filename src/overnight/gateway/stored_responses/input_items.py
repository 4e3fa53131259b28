"""Lists of the input items of a response."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}


def listed(items: list[Json], response_id: str, *, newest_first: bool, after: str | None, most: int) -> Json:
    """A page of items, each with an id; `after` is the last id of the previous page."""
    shaped = [_shaped(item, response_id, place) for place, item in enumerate(items)]
    if newest_first:
        shaped.reverse()
    ids = [item["id"] for item in shaped]
    start = ids.index(after) + 1 if after in ids else 0
    page = shaped[start : start + most]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": start + most < len(shaped),
    }


def _shaped(item: Json, response_id: str, place: int) -> Json:
    """An item in its full form, with the fields that short forms omit."""
    kind = item.get("type") or "message"
    key = response_id.partition("_")[2]
    shaped: Json = {"id": f"{_PREFIXES.get(kind, 'item')}_{key}_in{place}", "status": "completed", **item, "type": kind}
    if kind == "reasoning":
        shaped.setdefault("summary", [])
    if kind == "message" and isinstance(item.get("content"), str):
        if item.get("role") == "assistant":
            shaped["content"] = [{"type": "output_text", "text": item["content"], "annotations": []}]
        else:
            shaped["content"] = [{"type": "input_text", "text": item["content"]}]
    return shaped
