"""The items of a Responses request in the order that chat and messages require: each output directly after its calls.

Responses allows any order. Chat and messages reject a call without a result, and a result without its call before it.
"""

from __future__ import annotations

from collections import deque

from .contract import Json, Losses

_CALLS = {"function_call": "function_call_output", "custom_tool_call": "custom_tool_call_output"}
_OUTPUTS = frozenset(_CALLS.values())
NO_OUTPUT = "(no output)"
"""The result of a call without one, such as an interrupted call."""
_LOOSE = "Output of a tool call that is not in this conversation: "

Placed = tuple[int, Json]


def ordered(items: list[Json], losses: Losses) -> list[Placed]:
    """The items with their places in the request. Changes are named in `losses`, moves are not."""
    outputs: dict[str, deque[Placed]] = {}
    for place, item in enumerate(items):
        if item.get("type") in _OUTPUTS:
            outputs.setdefault(_id_of(item), deque()).append((place, item))
    arranged: list[Placed] = []
    open_calls: dict[str, Placed] = {}  # the calls of one turn by id, until their outputs follow
    known = {_id_of(item) for item in items if item.get("type") in _CALLS}
    for place, item in enumerate(items):
        kind = item.get("type") or "message"
        if kind in _CALLS:
            if _id_of(item) in open_calls:
                _close(arranged, open_calls, outputs, losses)
            open_calls[_id_of(item)] = (place, item)
        elif kind in _OUTPUTS:
            if _id_of(item) not in open_calls:
                if _id_of(item) not in known:
                    _close(arranged, open_calls, outputs, losses)
                    arranged.append((place, _loose(item, place, losses)))
                continue  # it follows, or has followed, its call
            _close(arranged, open_calls, outputs, losses)
            continue
        elif kind == "message" and item.get("role") != "assistant":
            _close(arranged, open_calls, outputs, losses)
        arranged.append((place, item))
    _close(arranged, open_calls, outputs, losses)
    # What is left answers a call that had its output already.
    left = [each for waiting in outputs.values() for each in waiting if _id_of(each[1]) in known]
    return arranged + [(place, _loose(item, place, losses)) for place, item in sorted(left, key=lambda each: each[0])]


def _close(
    arranged: list[Placed], open_calls: dict[str, Placed], outputs: dict[str, deque[Placed]], losses: Losses
) -> None:
    """Append the outputs of the open calls."""
    for call_id, (place, call) in open_calls.items():
        waiting = outputs.get(call_id)
        if waiting:
            arranged.append(waiting.popleft())
            continue
        losses.append(f"input[{place}] (no output)")
        kind = _CALLS[call["type"]]
        arranged.append((place, {"type": kind, "call_id": call_id, "output": NO_OUTPUT}))
    open_calls.clear()


def _loose(item: Json, place: int, losses: Losses) -> Json:
    """A message of the user in place of an output without its call."""
    losses.append(f"input[{place}] (no call)")
    output = item.get("output")
    if isinstance(output, str):
        return {"role": "user", "content": f"{_LOOSE}{output}"}
    return {"role": "user", "content": [{"type": "input_text", "text": _LOOSE}, *(output or ())]}


def _id_of(item: Json) -> str:
    return str(item.get("call_id"))
