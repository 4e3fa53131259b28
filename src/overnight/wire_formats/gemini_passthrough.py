"""Pass Gemini requests to a target of the same format.

The conversation may hold signatures that another provider's model made here. Gemini would reject them, so they are removed.
"""

from __future__ import annotations

from typing import Any

import msgspec

from overnight.pricing.usage import Cost, Usage

from .contract import Losses, Prepared
from .dialects import Dialect
from .gemini import CAP_FIELD, dispatched, encode, usage_of
from .gemini_models import traits_of
from .gemini_over_chat_answer import gemini_usage
from .gemini_signatures import OWN_MARK, SKIPPED
from .gemini_stream import Assembly, with_cost
from .lenient_json import Json, dict_of, dicts_of, text_of
from .request import Request
from .transports import ContextFactory, Passthrough, Reader, with_reserve_stack

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_MARK = OWN_MARK.encode()


class GeminiPassthrough(Passthrough):
    def prepare(self, request: Request, model: msgspec.Raw, tokens: int, dialect: Dialect) -> Prepared:  # noqa: ARG002
        losses = Losses(request.left_out)
        fields: Json = {**request.fields, "model": model, CAP_FIELD: msgspec.Raw(b"%d" % tokens)}
        contents = request.fields["contents"]
        if _MARK in bytes(contents):
            signs = traits_of(text_of(_decode(model))).signed_calls
            fields["contents"] = with_reserve_stack(lambda: _without_own(_decode(contents), losses, signs=signs))
        path, body = with_reserve_stack(lambda: dispatched(fields))
        return Prepared(path, body, self.upstream_format.headers, tuple(losses))

    def reader(self, request: Request, make_context: ContextFactory) -> Reader:  # noqa: ARG002
        return _Reader()


def _without_own(contents: Any, losses: Losses, *, signs: bool) -> list[Json]:
    """The contents without the signatures and thoughts of other models."""
    kept: list[Json] = []
    for at, content in enumerate(dicts_of(contents)):
        parts: list[Json] = []
        for n, part in enumerate(dicts_of(content.get("parts"))):
            if not text_of(part.get("thoughtSignature")).startswith(OWN_MARK):
                parts.append(part)
                continue
            place = f"contents[{at}].parts[{n}]"
            losses.append(place if part.get("thought") else f"{place}.thoughtSignature")
            bare = {name: value for name, value in part.items() if name != "thoughtSignature"}
            if part.get("thought") or bare == {"text": ""}:
                continue
            parts.append(bare)
        calls = [part for part in parts if "functionCall" in part]
        if signs and calls and not any(text_of(part.get("thoughtSignature")) for part in calls):
            calls[0]["thoughtSignature"] = SKIPPED
        if parts:
            kept.append({**content, "parts": parts})
    return kept


class _Reader:
    """Passes events through, and withholds those from the first finish reason on until the cost is known."""

    __slots__ = ("_last", "assembly")

    def __init__(self) -> None:
        self.assembly = Assembly()
        self._last: list[Json] = []

    def take(self, event: Json, payload: bytes) -> tuple[list[bytes], bool]:
        is_terminal = self.assembly.take(event)
        if self._last or self.assembly.is_complete:
            self._last.append(event)
            return [], is_terminal
        return [b"data: %b\r\n\r\n" % payload], is_terminal

    def recorded(self) -> bytes:
        return self.assembly.completion()

    def usage(self) -> Usage | None:
        return usage_of({"usageMetadata": self.assembly.usage})

    def end(self, cost_usd: Cost, usage: Usage) -> list[bytes]:
        last = self._last
        if last:
            if self.usage() is None:
                last[-1] = {**last[-1], "usageMetadata": {**gemini_usage(usage), **dict_of(self.assembly.usage)}}
            last[-1] = with_cost(last[-1], cost_usd)
        return [encode(event) for event in last]
