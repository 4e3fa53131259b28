"""Translate the thinking and sampling options of chat to Anthropic's."""

from __future__ import annotations

from typing import Any, NamedTuple

from .contract import Losses
from .lenient_json import (
    Json,
    dict_of,
    dicts_of,
    text_of,
)
from .messages_models import Traits

MIN_THINKING_BUDGET = 1_024
BUDGETS = {"minimal": 1_024, "low": 1_024, "medium": 4_096, "high": 16_384, "xhigh": 32_768, "max": 65_536}
_EFFORTS = (None, "", "none", *BUDGETS)
MESSAGES_SAMPLING = ("temperature", "top_p", "top_k")
_LEVELS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


class ThinkingRequest(NamedTuple):
    """The requested thinking. `name` is the client's field; effort `none` disables thinking; `budget` is in tokens."""

    name: str
    effort: str
    budget: int | None = None


def effort_of(budget: int) -> str:
    """The lowest effort level with at least this budget."""
    levels = ("low", "medium", "high", "xhigh")
    return next((level for level in levels if budget <= BUDGETS[level]), "max")


def set_thinking(body: Json, out: Json, traits: Traits, losses: Losses) -> None:
    body = _with_known_efforts(body, losses)
    config = dict(dict_of(body.get("output_config")))
    for name, takes in (("effort", traits.adaptive), ("format", traits.schemas)):
        if not takes and config.pop(name, None) is not None:
            losses.append(f"output_config.{name}")
    if config:
        out["output_config"] = {**config, **dict_of(out.get("output_config"))}
    wish = _thinking_request(body)
    if wish is None:
        if native := dict_of(body.get("thinking")):
            out["thinking"] = native
        return
    if wish.effort == "none":
        if traits.always_thinks:
            losses.append(wish.name)
        else:
            out["thinking"] = {"type": "disabled"}
        return
    # A forced tool call excludes thinking.
    if dict_of(out.get("tool_choice")).get("type") in ("any", "tool"):
        losses.append(wish.name)
        return
    if traits.adaptive:
        asked = dict_of(body.get("thinking"))
        out["thinking"] = {"type": "adaptive", **({"display": asked["display"]} if asked.get("display") else {})}
        level = wish.effort if wish.effort in traits.efforts else _LEVELS.get(wish.effort, "high")
        out["output_config"] = {"effort": level, **dict_of(out.get("output_config"))}
        return
    cap = int(out["max_tokens"])
    budget = wish.budget or min(BUDGETS.get(wish.effort, BUDGETS["medium"]), cap // 2)
    if budget >= cap:
        losses.append(f"{wish.name} (budget)")
        budget = cap // 2
    budget = max(budget, MIN_THINKING_BUDGET)
    if budget >= cap or _is_amid_tools(out["messages"]):
        losses.append(wish.name)
        return
    out["thinking"] = {"type": "enabled", "budget_tokens": budget}


def _with_known_efforts(body: Json, losses: Losses) -> Json:
    """Remove unknown effort levels, which have no defined budget."""
    reasoning = dict_of(body.get("reasoning"))
    if body.get("reasoning_effort") not in _EFFORTS:
        losses.append("reasoning_effort")
        body = {**body, "reasoning_effort": None}
    if reasoning.get("effort") not in _EFFORTS:
        losses.append("reasoning.effort")
        body = {**body, "reasoning": {name: value for name, value in reasoning.items() if name != "effort"}}
    return body


def _thinking_request(body: Json) -> ThinkingRequest | None:
    native = dict_of(body.get("thinking"))
    if native.get("type") == "disabled":
        return ThinkingRequest("thinking", "none")
    if native.get("type") in ("enabled", "adaptive"):
        budget = native.get("budget_tokens")
        if isinstance(budget, int) and budget > 0:
            return ThinkingRequest("thinking", effort_of(budget), budget)
        return ThinkingRequest("thinking", text_of(body.get("reasoning_effort")) or "high")
    effort = text_of(body.get("reasoning_effort"))
    if effort:
        return ThinkingRequest("reasoning_effort", effort)
    reasoning = dict_of(body.get("reasoning"))
    if not reasoning:
        return None
    if reasoning.get("enabled") is False:
        return ThinkingRequest("reasoning", "none")
    budget = reasoning.get("max_tokens")
    if isinstance(budget, int) and budget > 0:
        return ThinkingRequest("reasoning", effort_of(budget), budget)
    return ThinkingRequest("reasoning", text_of(reasoning.get("effort")) or "medium")


def _is_amid_tools(turns: list[Json]) -> bool:
    """Whether the last assistant turn called tools without thinking. Models with a thinking budget then reject
    thinking."""
    answers = [dicts_of(turn.get("content")) for turn in turns if turn.get("role") == "assistant"]
    waits = any(block.get("type") == "tool_result" for block in dicts_of(turns[-1].get("content")))
    if not waits or not answers or not answers[-1]:
        return False
    return not text_of(answers[-1][0].get("type")).endswith("thinking")


def set_sampling(body: Json, out: Json, traits: Traits, losses: Losses) -> None:
    """Translate sampling options. Temperatures above 1 become 1, the maximum. Default values are omitted."""
    thinks = dict_of(out.get("thinking")).get("type") in ("enabled", "adaptive")
    for name in MESSAGES_SAMPLING:
        value: Any = body.get(name)
        if value is None or (name != "top_k" and value == 1):
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if (
            not is_number
            or not traits.sampling
            or thinks
            or (name == "top_p" and traits.one_of_both and "temperature" in out)
        ):
            losses.append(name)
        elif name == "temperature" and value > 1:
            losses.append(name)
            out[name] = 1.0
        else:
            out[name] = value
