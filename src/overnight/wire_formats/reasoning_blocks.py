"""Remove reasoning blocks that a target rejects.

The signature of a reasoning block is valid for one model, and sometimes for one conversation. Only the target can verify it.
Where it rejects the signature, the request is sent again without reasoning blocks.
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
_REASONING = frozenset({"thinking", "redacted_thinking"})


def are_refused(status: int | None, message: str) -> bool:
    """Whether an error response rejects the signature of a reasoning block."""
    lowered = message.lower()
    return status == 400 and "signature" in lowered and "thinking" in lowered


def without_reasoning_blocks(request: Request) -> Request | None:
    """A chat or messages request without its reasoning blocks, which `left_out` names; None when it has none."""
    messages: Any = _decode(request.fields["messages"]) if "messages" in request.fields else None
    kept: list[Json] = []
    names: list[str] = []
    for at, message in enumerate(dicts_of(messages)):
        if message.pop("thinking_blocks", None):
            names.append(f"messages[{at}].thinking_blocks")
        content = message.get("content")
        blocks = dicts_of(content)
        thoughts = [n for n, block in enumerate(blocks) if text_of(block.get("type")) in _REASONING]
        names += [f"messages[{at}].content[{n}]" for n in thoughts]
        if thoughts:
            message["content"] = [block for n, block in enumerate(blocks) if n not in thoughts]
        if message.get("content") != []:
            kept.append(message)
    if not names:
        return None
    fields = {**request.fields, "messages": msgspec.Raw(_encode(kept))}
    if dict_of(_field(request, "thinking")).get("type") == "enabled":
        # In a tool loop, thinking with a budget requires that the turn began with a reasoning block.
        del fields["thinking"]
        names.append("thinking")
    return msgspec.structs.replace(request, fields=fields, left_out=tuple(names))


def _field(request: Request, name: str) -> Any:
    return _decode(request.fields[name]) if name in request.fields else None
