"""Translate Anthropic messages requests to chat.

`output_config.format` becomes `response_format`; a thinking budget or effort becomes `reasoning_effort`. The target's
reasoning is returned as thinking blocks that are signed with its model name. Only the same model gets them back, as
`reasoning_content`.
"""

from __future__ import annotations

from typing import Any

from .chat_over_messages_thinking import effort_of
from .contract import Losses
from .identifiers import CHAT_NAME, fit_name
from .lenient_json import (
    Json,
    dict_of,
    dicts_of,
    text_of,
)
from .messages_over_chat_answer import StreamTranslator, answer
from .messages_over_chat_turns import Conversation
from .messages_schemas import is_strict
from .tool_schemas import parameters_schema, without_repeated
from .validation import check, texts_of

__all__ = ["StreamTranslator", "answer", "request"]

MAX_STOP_SEQUENCES = 4
_HANDLED = frozenset({
    "model", "messages", "system", "stream", "max_tokens", "stop_sequences", "temperature", "top_p", "tools", "tool_choice",
    "thinking", "output_config", "output_format", "metadata", "service_tier",
})  # fmt: skip
_TOOL = frozenset({"type", "name", "description", "input_schema", "strict", "cache_control"})
_SHAPES: dict[str, tuple[type, ...]] = {
    "stop_sequences": (list,),
    "tool_choice": (dict,),
    "thinking": (dict,),
    "output_config": (dict,),
    "output_format": (dict,),
}
_CONFIG: dict[str, tuple[type, ...]] = {"effort": (str,), "format": (dict,)}
_THINKING: dict[str, tuple[type, ...]] = {"type": (str,), "budget_tokens": (int,)}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# Model name prefixes. The first group rejects `reasoning_effort`, the next accepts tools only without reasoning,
# and the last rejects sampling options while it reasons.
NO_EFFORT = ("gpt-3", "gpt-4", "chatgpt-4")
NO_EFFORT_WITH_TOOLS = ("gpt-5.4", "gpt-5.5", "gpt-5.6", "gpt-5.7", "gpt-5.8", "gpt-5.9", "gpt-6")
THINKERS = ("o1", "o3", "o4", "gpt-5", "gpt-6")


def request(body: Json, losses: Losses) -> Json:
    """Translate a request body. `model` is the target's model name. Raises InvalidBody."""
    check(body, _SHAPES)
    check(dict_of(body.get("output_config")), _CONFIG, "output_config.")
    check(dict_of(body.get("thinking")), _THINKING, "thinking.")
    model = text_of(body.get("model"))
    losses += [name for name, value in body.items() if name not in _HANDLED and value not in (None, [], {})]
    # Claude behind a chat provider accepts cache markers; other models reject unknown fields.
    conversation = Conversation(model, losses, markers="claude" in model.lower())
    conversation.begin(body.get("system"))
    messages = dicts_of(body.get("messages"))
    for at, message in enumerate(messages):
        conversation.add(message, f"messages[{at}]")
    conversation.end("messages")
    if messages and messages[-1].get("role") == "assistant":
        # Anthropic would continue this turn; chat treats it as a complete answer.
        losses.append(f"messages[{len(messages) - 1}].role")
    out: Json = {"model": model, "messages": conversation.messages}
    if body.get("max_tokens"):
        out["max_tokens"] = body["max_tokens"]
    if body.get("stream"):
        out["stream"] = True
    _set_tools(body, out, losses, markers=conversation.markers)
    _set_format(body, out, losses)
    _set_effort(body, out, losses)
    _set_sampling(body, out, losses)
    losses += [f"metadata.{name}" for name in dict_of(body.get("metadata"))]
    if body.get("service_tier") not in (None, "auto"):
        losses.append("service_tier")
    return out


def _set_tools(body: Json, out: Json, losses: Losses, *, markers: bool) -> None:
    tools: list[Json] = []
    places: list[str] = []
    for at, tool in enumerate(dicts_of(body.get("tools"))):
        place = f"tools[{at}]"
        if tool.get("type") not in (None, "custom"):
            losses.append(place)
            continue
        losses += [
            f"{place}.{name}" for name, value in tool.items() if name not in _TOOL and value not in (None, False, [])
        ]
        name = text_of(tool.get("name"))
        fits = fit_name(name, CHAT_NAME)
        if fits != name:
            losses.append(f"{place}.name")
        schema = parameters_schema(tool.get("input_schema"), f"{place}.input_schema", losses)
        function: Json = {"name": fits, "parameters": schema}
        if text_of(tool.get("description")):
            function["description"] = tool["description"]
        if tool.get("strict") and is_strict(tool.get("input_schema")):
            function["strict"] = True
        elif tool.get("strict"):
            losses.append(f"{place}.strict")
        made: Json = {"type": "function", "function": function}
        if marker := dict_of(tool.get("cache_control")):
            if markers:
                made["cache_control"] = marker
            else:
                losses.append(f"{place}.cache_control")
        tools.append(made)
        places.append(place)
    if tools:
        out["tools"] = without_repeated(tools, [tool["function"]["name"] for tool in tools], losses, places)
    _set_choice(dict_of(body.get("tool_choice")), out, losses)


def _set_choice(choice: Json, out: Json, losses: Losses) -> None:
    tools: list[Json] = out.get("tools") or []
    kind = text_of(choice.get("type"))
    name = fit_name(text_of(choice.get("name")), CHAT_NAME)
    if kind == "tool" and any(tool["function"]["name"] == name for tool in tools):
        out["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif kind in _CHOICES and tools:
        out["tool_choice"] = _CHOICES[kind]
    elif choice and kind not in ("auto", "none"):
        losses.append("tool_choice")
    if choice.get("disable_parallel_tool_use") and tools:
        out["parallel_tool_calls"] = False


def _set_format(body: Json, out: Json, losses: Losses) -> None:
    config = dict_of(dict_of(body.get("output_config")).get("format"))
    asked = config or dict_of(body.get("output_format"))
    schema = dict_of(asked.get("schema"))
    if asked and (asked.get("type") != "json_schema" or not schema):
        losses.append("output_config.format" if config else "output_format")
    elif schema:
        described = {"name": "answer", "schema": schema, "strict": is_strict(schema)}
        out["response_format"] = {"type": "json_schema", "json_schema": described}


def _set_effort(body: Json, out: Json, losses: Losses) -> None:
    config = dict_of(body.get("output_config"))
    losses += [f"output_config.{name}" for name in config if name not in ("effort", "format")]
    thinking = dict_of(body.get("thinking"))
    kind, budget = thinking.get("type"), thinking.get("budget_tokens")
    place = "output_config.effort" if config.get("effort") else "thinking"
    effort = text_of(config.get("effort"))
    if kind not in (None, "disabled", "enabled", "adaptive"):
        losses.append("thinking")
    elif not effort and kind in ("enabled", "adaptive"):
        effort = effort_of(budget) if isinstance(budget, int) else "high"
    model = out["model"].lower().rpartition("/")[2]
    if "tools" in out and model.startswith(NO_EFFORT_WITH_TOOLS):
        out["reasoning_effort"] = "none"
        if effort:
            losses.append(place)
    elif kind == "disabled" or (effort and model.startswith(NO_EFFORT)):
        losses.append(place)
    elif effort:
        out["reasoning_effort"] = "xhigh" if effort == "max" else effort


def _set_sampling(body: Json, out: Json, losses: Losses) -> None:
    stops = texts_of(body.get("stop_sequences"), "stop_sequences")
    losses += [f"stop_sequences[{at}]" for at in range(MAX_STOP_SEQUENCES, len(stops))]
    if stops:
        out["stop"] = stops[:MAX_STOP_SEQUENCES]
    thinks = out["model"].lower().rpartition("/")[2].startswith(THINKERS) and out.get("reasoning_effort") != "none"
    for name in ("temperature", "top_p"):
        value: Any = body.get(name)
        if value is None or value == 1:
            continue
        if thinks or isinstance(value, bool) or not isinstance(value, int | float):
            losses.append(name)
        else:
            out[name] = value
