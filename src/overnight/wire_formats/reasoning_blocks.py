"""Thoughts that a target does not take back.

What signs a thought is of one model, and sometimes of one conversation. Whether it is this target's, only the target can tell:
where it says that it is not, the request goes again without them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .lenient_json import (
    Json,
    dict_of,
    dicts_of,
    text_of,
)
from .request import Request

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_THOUGHTS = frozenset({"thinking", "redacted_thinking"})


def are_refused(status: int | None, message: str) -> bool:
    said = message.lower()
    return status == 400 and "signature" in said and "thinking" in said


def leave_out(request: Request) -> bool:
    """Take the thoughts out of a chat or messages request, and name them in `left_out`. False when there are none."""
    messages: Any = _decode(request.fields["messages"]) if "messages" in request.fields else None
    kept: list[Json] = []
    names: list[str] = []
    for at, message in enumerate(dicts_of(messages)):
        if message.pop("thinking_blocks", None):
            names.append(f"messages[{at}].thinking_blocks")
        content = message.get("content")
        blocks = dicts_of(content)
        thoughts = [n for n, block in enumerate(blocks) if text_of(block.get("type")) in _THOUGHTS]
        names += [f"messages[{at}].content[{n}]" for n in thoughts]
        if thoughts:
            message["content"] = [block for n, block in enumerate(blocks) if n not in thoughts]
        if message.get("content") != []:
            kept.append(message)
    if not names:
        return False
    if dict_of(_field(request, "thinking")).get("type") == "enabled":
        # Amid tools, thinking within a budget wants to have begun with a thought.
        request.fields.pop("thinking")
        names.append("thinking")
    request.fields["messages"] = msgspec.Raw(_encode(kept))
    request.left_out = tuple(names)
    return True


def _field(request: Request, name: str) -> Any:
    return _decode(request.fields[name]) if name in request.fields else None
