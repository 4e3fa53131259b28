"""Pass Responses requests to a target of the same format.

The provider stores nothing. The answer and its items get the gateway's ids instead of the provider's. Each item
contains its encrypted reasoning.
"""

from __future__ import annotations

from typing import Any, cast

from overnight.pricing.usage import Cost, Usage

from .contract import (
    AnswerContext,
    Json,
    Losses,
    StreamTranslator,
)
from .responses_answer import OWN_REASONING, usage_json
from .responses_stream import FINAL_EVENTS, with_cost

_KEPT_HERE = ("previous_response_id", "background", "conversation")
# The provider would look up the id of a response that it did not store.
_WITHOUT_ID = frozenset({
    "message",
    "reasoning",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
    "web_search_call",
})  # fmt: skip

_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "web_search_call": "ws",
}


def request(body: Json, losses: Losses) -> Json:
    """The body for the target."""
    sent: Json = {name: value for name, value in body.items() if name not in _KEPT_HERE}
    sent["store"] = False
    if isinstance(body["input"], list):
        sent["input"] = kept_items(cast("list[Json]", body["input"]), losses)
    return sent


def kept_items(items: list[Json], losses: Losses) -> list[Json]:
    """The items for a target that stored none of them. Packed reasoning of other formats is left out."""
    sent: list[Json] = []
    for place, item in enumerate(items):
        kind = item.get("type") or "message"
        if kind == "reasoning":
            sealed: Any = item.get("encrypted_content")
            if not sealed or sealed.startswith(OWN_REASONING):
                losses.append(f"input[{place}] (reasoning)")
                continue
        sent.append({name: value for name, value in item.items() if name != "id"} if kind in _WITHOUT_ID else item)
    return sent


def answer(response: Json, context: AnswerContext) -> Json:
    """The provider's answer with the gateway's ids."""
    items: list[Json] = response.get("output") or []
    return {
        **_with_own_id(response, context),
        "output": [_item_with_own_id(item, at, context) for at, item in enumerate(items)],
    }


def _with_own_id(response: Json, context: AnswerContext) -> Json:
    body = context.body
    return {
        **response,
        "id": context.answer_id,
        "previous_response_id": body.get("previous_response_id"),
        "store": body.get("store") is not False,
        # The request record contains them once; each answer would repeat them.
        "instructions": None,
        "tools": [],
    }


def _item_with_own_id(item: Json, index: int, context: AnswerContext) -> Json:
    kind = item.get("type") or "message"
    if kind not in _WITHOUT_ID:
        return item
    prefix = _PREFIXES.get(kind) or str(item.get("id")).partition("_")[0]
    return {**item, "id": f"{prefix}_{context.answer_id.partition('_')[2]}_{index}"}


class _StreamTranslator:
    __slots__ = ("_context", "_ids", "_last")

    def __init__(self, context: AnswerContext) -> None:
        self._context = context
        self._ids: dict[int, Any] = {}
        self._last: Json | None = None

    def take(self, event: Json) -> list[Json]:
        if event["type"] in FINAL_EVENTS:
            self._last = event
            return []
        ours = event
        if "response" in event:
            ours = {**event, "response": _with_own_id(event["response"], self._context)}
        index: Any = event.get("output_index")
        if isinstance(index, int):
            item: Any = event.get("item")
            if isinstance(item, dict):
                mine = _item_with_own_id(cast("Json", item), index, self._context)
                self._ids[index] = mine.get("id")
                ours = {**ours, "item": mine}
            if "item_id" in event and index in self._ids:
                ours = {**ours, "item_id": self._ids[index]}
        return [ours]

    def arranged(self, answer: Json) -> Json:
        return answer

    def end(self, cost_usd: Cost | None, usage: Usage) -> list[Json]:
        if self._last is None:
            return []
        whole = answer(self._last["response"], self._context)
        if not whole.get("usage"):
            whole["usage"] = usage_json(usage)
        return [{**self._last, "response": with_cost(whole, cost_usd)}]


def stream_translator(context: AnswerContext) -> StreamTranslator:
    return _StreamTranslator(context)
