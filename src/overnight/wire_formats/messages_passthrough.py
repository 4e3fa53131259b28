"""Pass messages requests to a target of the same format. The body changes only where this target would reject it.

These parts change: a thinking budget above a lowered output limit; unsigned reasoning blocks from chat models; and,
if the client named a different model, thinking and sampling options that this model rejects.
"""

from __future__ import annotations

from typing import Any

import msgspec

from overnight.domain.json_text import BYTE_ORDER_MARK, decode_json, encode_json
from overnight.pricing.usage import (
    Cost,
    Usage,
    cost_fields,
    estimated_usage,
)

from .chat_over_messages_thinking import (
    MESSAGES_SAMPLING,
    MIN_THINKING_BUDGET,
    set_sampling,
    set_thinking,
)
from .chat_over_messages_turns import UNSIGNED_PREFIX
from .contract import Losses, Prepared
from .dialects import Dialect
from .lenient_json import (
    Json,
    dict_of,
    dicts_of,
    text_of,
)
from .messages_models import traits_of
from .messages_over_chat_answer import messages_usage
from .messages_repair import MessagesRepair
from .messages_stream import Assembly, corrected_whole, encode
from .request import Request
from .tool_schemas import acceptable_tools
from .transports import (
    ContextFactory,
    Passthrough,
    Reader,
    Received,
    headers_for,
    with_reserve_stack,
)

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_UNSIGNED_MARK = b'"' + UNSIGNED_PREFIX.encode()
_ADAPTED_FIELDS = ("thinking", "output_config", *MESSAGES_SAMPLING)
_LAST = frozenset({"message_delta", "message_stop"})


class MessagesPassthrough(Passthrough):
    def prepare(self, request: Request, model: msgspec.Raw, tokens: int, dialect: Dialect) -> Prepared:  # noqa: ARG002
        losses = Losses(request.left_out)
        fields = {**request.fields, "model": model, "max_tokens": msgspec.Raw(b"%d" % tokens)}
        if not fields.keys().isdisjoint(_ADAPTED_FIELDS) or _UNSIGNED_MARK in bytes(fields["messages"]):
            with_reserve_stack(lambda: _adapt(fields, request.model, tokens, losses))
        if request.tools:
            digest = request.tools_sha256
            fields["tools"] = with_reserve_stack(lambda: acceptable_tools(fields["tools"], digest, "messages", losses))
        return Prepared(
            self.upstream_format.path, _encode(fields), headers_for(self.upstream_format, request), tuple(losses)
        )

    def received(self, body: bytes, make_context: ContextFactory) -> Received | None:  # noqa: ARG002
        answer: Any = decode_json(body)
        if not isinstance(answer, dict):
            return None
        message = corrected_whole(dict_of(answer))
        if not self.upstream_format.is_answer(message):
            return None
        usage = self.upstream_format.usage_of(message)
        body = body.removeprefix(BYTE_ORDER_MARK) if message is answer else encode_json(message)
        return Received(body, usage, 0 if usage else len(body))

    def reader(self, request: Request, make_context: ContextFactory) -> Reader:  # noqa: ARG002
        return _Reader(request.prompt_bytes)


class _Reader:
    """Passes events through and withholds the last ones until the cost is known. If the provider reports no usage, an
    estimate replaces it, because clients add up the usage of the first and last event and fail without it.
    """

    __slots__ = ("_last", "_prompt_bytes", "_repair", "assembly")

    def __init__(self, prompt_bytes: int) -> None:
        self.assembly = Assembly()
        self._repair = MessagesRepair()
        self._last: list[Json] = []
        self._prompt_bytes = prompt_bytes

    def take(self, event: Json, payload: bytes) -> tuple[list[bytes], bool]:
        repaired = self._repair.take(event)
        if repaired is None:
            return self._take(event, payload)
        chunks: list[bytes] = []
        is_terminal = False
        for each in repaired:
            added, ends = self._take(each, payload if each is event else encode_json(each))
            chunks += added
            is_terminal |= ends
        return chunks, is_terminal

    def _take(self, event: Json, payload: bytes) -> tuple[list[bytes], bool]:
        is_terminal = self.assembly.take(event)
        kind = event["type"]
        if kind in _LAST:
            self._last.append(event)
            return [], is_terminal
        if kind == "message_start" and not self.assembly.usage:
            usage = messages_usage(estimated_usage(self._prompt_bytes, 0))
            return [encode({**event, "message": {**event["message"], "usage": usage}})], is_terminal
        return [b"event: %b\ndata: %b\n\n" % (kind.encode(), payload)], is_terminal

    def recorded(self) -> bytes:
        return self.assembly.completion()

    def usage(self) -> Usage | None:
        return self.assembly.reported_usage()

    def end(self, cost_usd: Cost, usage: Usage) -> list[bytes]:
        known = self.assembly.usage or {}
        estimate = {} if self.usage() else messages_usage(usage)
        missing = {name: count for name, count in estimate.items() if known.get(name) is None}
        for event in self._last:
            if event["type"] == "message_delta":
                event["usage"] = {**dict_of(event.get("usage")), **missing, **cost_fields(cost_usd)}
        if not any(event["type"] == "message_stop" for event in self._last):
            self._last.append({"type": "message_stop"})
        return [encode(event) for event in self._last]


def _adapt(fields: dict[str, msgspec.Raw], asked_for: str, tokens: int, losses: Losses) -> None:
    if _UNSIGNED_MARK in bytes(fields["messages"]):
        fields["messages"] = _remove_unsigned(_decode(fields["messages"]), losses)
    if not fields.keys().isdisjoint(_ADAPTED_FIELDS):
        target = text_of(_decode(fields["model"]))
        if asked_for == target:
            _limit_thinking_budget(fields, tokens, losses)
        else:
            _adapt_options(fields, target, tokens, losses)


def _remove_unsigned(messages: Any, losses: Losses) -> msgspec.Raw:
    """Remove reasoning blocks without a valid signature."""
    kept: list[Json] = []
    for at, message in enumerate(dicts_of(messages)):
        content = message.get("content")
        if isinstance(content, list):
            blocks = dicts_of(content)
            signed = [each for each in blocks if not text_of(each.get("signature")).startswith(UNSIGNED_PREFIX)]
            if len(signed) < len(blocks):
                losses += [f"messages[{at}].content[{n}]" for n, each in enumerate(blocks) if each not in signed]
                if not signed:
                    continue
                message["content"] = signed
        kept.append(message)
    return msgspec.Raw(_encode(kept))


def _limit_thinking_budget(fields: dict[str, msgspec.Raw], tokens: int, losses: Losses) -> None:
    """Reduce the thinking budget below the output limit, which includes thinking and may be lower than the client's."""
    thinking = dict_of(_decode(fields["thinking"])) if "thinking" in fields else {}
    budget = thinking.get("budget_tokens")
    if not isinstance(budget, int) or budget < tokens:
        return
    losses.append("thinking.budget_tokens")
    least = tokens <= MIN_THINKING_BUDGET
    fitting: Json = (
        {"type": "disabled"} if least else {**thinking, "budget_tokens": max(tokens // 2, MIN_THINKING_BUDGET)}
    )
    fields["thinking"] = msgspec.Raw(_encode(fitting))


def _adapt_options(fields: dict[str, msgspec.Raw], model: str, tokens: int, losses: Losses) -> None:
    body: Json = {
        name: _decode(fields[name]) for name in (*_ADAPTED_FIELDS, "tool_choice", "messages") if name in fields
    }
    out: Json = {
        "max_tokens": tokens,
        "messages": dicts_of(body.get("messages")),
        "tool_choice": body.get("tool_choice"),
    }
    traits = traits_of(model)
    set_thinking(body, out, traits, losses)
    set_sampling(body, out, traits, losses)
    for name in _ADAPTED_FIELDS:
        fields.pop(name, None)
        if name in out:
            fields[name] = msgspec.Raw(_encode(out[name]))
