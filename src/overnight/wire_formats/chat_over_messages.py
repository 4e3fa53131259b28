"""Translate chat requests to Anthropic messages.

A JSON Schema for the answer becomes `output_config.format` if the model supports it, else a forced tool whose input
is the answer, else an instruction. Reasoning effort becomes `output_config.effort` with adaptive thinking, or a
thinking budget for older models. Reasoning is returned as `reasoning_content` and, signed, as `thinking_blocks`. A
client that sends these back preserves the model's reasoning.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .chat_over_messages_answer import ANSWER_TOOL, StreamTranslator, answer
from .chat_over_messages_thinking import MESSAGES_SAMPLING, set_sampling, set_thinking
from .chat_over_messages_turns import Conversation
from .contract import Losses
from .identifiers import MESSAGES_NAME, fit_name
from .lenient_json import (
    Json,
    dict_of,
    dicts_of,
    text_of,
)
from .messages_models import Traits, traits_of
from .messages_schemas import closed_schema
from .tool_schemas import parameters_schema, without_repeated
from .validation import check, objects_of, texts_of

__all__ = ["ANSWER_TOOL", "StreamTranslator", "answer", "request"]

DEFAULT_MAX_TOKENS = 8_192
MAX_CACHE_MARKERS = 4
MAX_STRICT_TOOLS = 20
MAX_USER_CHARACTERS = 256
_encode = msgspec.json.Encoder().encode
# Anthropic's fields, which clients send together with chat fields.
_NATIVE = ("cache_control", "container", "context_management", "inference_geo", "mcp_servers", "speed")
_HANDLED = frozenset({
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "stop", "user", "tools", "functions",
    "tool_choice", "function_call", "parallel_tool_calls", "response_format", "reasoning_effort", "reasoning", "thinking",
    "output_config", "service_tier", "metadata", *_NATIVE, *MESSAGES_SAMPLING,
})  # fmt: skip
# Values that equal the default behaviour.
_NEUTRAL: Json = {
    "n": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "store": False,
    "modalities": ["text"],
    "verbosity": "medium",
}
_SHAPES: dict[str, tuple[type, ...]] = {
    "stop": (str, list),
    "user": (str,),
    "functions": (list,),
    "tool_choice": (str, dict),
    "function_call": (str, dict),
    "response_format": (dict,),
    "reasoning_effort": (str,),
    "reasoning": (dict,),
    "thinking": (dict,),
    "output_config": (dict,),
}
_IN_WORDS = "Answer with one JSON object and nothing else."


def request(body: Json, losses: Losses) -> Json:
    """Translate a request body.

    `model` is the target's model name. `max_tokens` or `max_completion_tokens` is the output limit. Raises
    InvalidBody.
    """
    check(body, _SHAPES)
    model = text_of(body.get("model"))
    traits = traits_of(model)
    losses += [
        name
        for name, value in body.items()
        if name not in _HANDLED and value is not None and value != _NEUTRAL.get(name)
    ]
    conversation = Conversation(model, traits, losses)
    for at, message in enumerate(dicts_of(body.get("messages"))):
        conversation.add(message, f"messages[{at}]")
    conversation.end("messages")
    cap = body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_MAX_TOKENS
    out: Json = {"model": model, "max_tokens": cap, "messages": conversation.turns}
    out |= {name: body[name] for name in _NATIVE if body.get(name) is not None}
    if body.get("stream"):
        out["stream"] = True
    _set_stops(body, out, losses)
    _set_user(body, out, losses)
    _set_tools(body, out, conversation, traits, losses)
    _set_format(body, out, conversation, traits, losses)
    set_thinking(body, out, traits, losses)
    set_sampling(body, out, traits, losses)
    if conversation.system:
        out["system"] = conversation.system
    _limit_markers(out, losses)
    return out


def _set_stops(body: Json, out: Json, losses: Losses) -> None:
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else texts_of(stop, "stop")
    kept = [each for each in stops if each.strip()]
    losses += [f"stop[{at}]" for at, each in enumerate(stops) if each not in kept]
    if kept:
        out["stop_sequences"] = kept


def _set_user(body: Json, out: Json, losses: Losses) -> None:
    user = text_of(body.get("user")) or text_of(dict_of(body.get("metadata")).get("user_id"))
    # Anthropic rejects user ids that look like an email address or phone number.
    if user and len(user) <= MAX_USER_CHARACTERS and "@" not in user:
        out["metadata"] = {"user_id": user}
    elif user:
        losses.append("user")
    losses += [f"metadata.{name}" for name in dict_of(body.get("metadata")) if name != "user_id"]
    tier = body.get("service_tier")
    if tier == "default":
        out["service_tier"] = "standard_only"
    elif tier not in (None, "auto"):
        losses.append("service_tier")


# ── tools ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _set_tools(body: Json, out: Json, conversation: Conversation, traits: Traits, losses: Losses) -> None:
    given = dicts_of(body.get("tools"))
    strict = (
        traits.schemas and sum(bool(dict_of(tool.get("function")).get("strict")) for tool in given) <= MAX_STRICT_TOOLS
    )
    tools = [
        made
        for at, tool in enumerate(given)
        if (made := _tool(tool, f"tools[{at}]", losses, strict=strict)) is not None
    ]
    for at, function in enumerate(objects_of(body.get("functions"), "functions")):
        tools.append(_function(function, f"functions[{at}]", losses, strict=False))
    asked = body.get("function_call") if body.get("tool_choice") is None else body["tool_choice"]
    if tools:
        places = [f"tools[{at}]" for at in range(len(tools))]
        out["tools"] = without_repeated(tools, [text_of(tool.get("name")) for tool in tools], losses, places)
        _set_choice(asked, body, out, losses)
    elif asked not in (None, "auto", "none"):
        losses.append("tool_choice")
    if not tools and conversation.tools_used:
        # Anthropic rejects a conversation with tool calls if the tools are absent.
        out["tools"] = [{"name": name, "input_schema": {"type": "object"}} for name in conversation.tools_used]
        out["tool_choice"] = {"type": "none"}


def _tool(tool: Json, place: str, losses: Losses, *, strict: bool) -> Json | None:
    function = dict_of(tool.get("function"))
    if tool.get("type", "function") == "function" and function:
        made = _function(function, f"{place}.function", losses, strict=strict)
        marker = dict_of(tool.get("cache_control")) or dict_of(function.get("cache_control"))
        return {**made, "cache_control": marker} if marker else made
    if "input_schema" in tool and tool.get("type", "custom") == "custom":
        return tool
    losses.append(place)
    return None


def _function(function: Json, place: str, losses: Losses, *, strict: bool) -> Json:
    name = text_of(function.get("name"))
    fits = fit_name(name, MESSAGES_NAME)
    if fits != name:
        losses.append(f"{place}.name")
    schema = parameters_schema(function.get("parameters"), f"{place}.parameters", losses)
    made: Json = {"name": fits, "input_schema": schema}
    if text_of(function.get("description")):
        made["description"] = function["description"]
    if function.get("strict") and strict:
        made["strict"] = True
        made["input_schema"] = {"type": "object", **closed_schema(schema, f"{place}.parameters", losses)}
    elif function.get("strict"):
        losses.append(f"{place}.strict")
    return made


def _set_choice(asked: Any, body: Json, out: Json, losses: Losses) -> None:
    named = dict_of(asked)
    choice: Json | None = None
    if isinstance(asked, str):
        choice = {"type": {"required": "any"}.get(asked, asked)}
    elif name := text_of((dict_of(named.get("function")) or named).get("name")):
        choice = {"type": "tool", "name": fit_name(name, MESSAGES_NAME)}
    elif allowed := dict_of(named.get("allowed_tools")):
        choice = _allow_only(allowed, out, losses)
    elif asked is not None:
        losses.append("tool_choice")
    if choice and (
        choice["type"] not in ("auto", "any", "tool", "none")
        or (choice["type"] == "tool" and all(tool.get("name") != choice["name"] for tool in out["tools"]))
    ):
        losses.append("tool_choice")
        choice = None
    if body.get("parallel_tool_calls") is False and (choice or {}).get("type") != "none":
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    if choice:
        out["tool_choice"] = choice


def _allow_only(allowed: Json, out: Json, losses: Losses) -> Json:
    """Keep only the allowed tools. Without any, tool calls are disabled."""
    tools = objects_of(allowed.get("tools"), "tool_choice.allowed_tools.tools")
    names = {fit_name(text_of((dict_of(each.get("function")) or each).get("name")), MESSAGES_NAME) for each in tools}
    kept = [tool for tool in out["tools"] if tool.get("name") in names]
    if not kept:
        losses.append("tool_choice")
        return {"type": "none"}
    out["tools"] = kept
    return {"type": "any" if allowed.get("mode") == "required" else "auto"}


# ── response format ─────────────────────────────────────────────────────────────────────────────────────────────────


def _set_format(body: Json, out: Json, conversation: Conversation, traits: Traits, losses: Losses) -> None:
    asked = dict_of(body.get("response_format"))
    kind = asked.get("type")
    if kind == "text" or not asked:
        return
    if kind not in ("json_schema", "json_object"):
        losses.append("response_format")
        return
    described = dict_of(asked.get("json_schema"))
    schema = dict_of(described.get("schema"))
    if kind == "json_schema" and schema and traits.schemas:
        place = "response_format.json_schema.schema"
        out["output_config"] = {"format": {"type": "json_schema", "schema": closed_schema(schema, place, losses)}}
    elif schema.get("type") == "object" and "tools" not in out and not _thinks(body):
        about = text_of(described.get("description")) or "The answer."
        out["tools"] = [{"name": ANSWER_TOOL, "description": about, "input_schema": schema}]
        out["tool_choice"] = {"type": "tool", "name": ANSWER_TOOL}
    else:
        losses.append("response_format")
        words = f"{_IN_WORDS} It must be valid by this JSON Schema: {_encode(schema).decode()}" if schema else _IN_WORDS
        conversation.system.append({"type": "text", "text": words})


def _thinks(body: Json) -> bool:
    return any(body.get(name) not in (None, "none") for name in ("reasoning_effort", "reasoning", "thinking"))


def _limit_markers(out: Json, losses: Losses) -> None:
    """Keep the last cache markers, since they cover the longest prefix."""
    places: list[tuple[str, Json]] = [(f"tools[{at}]", each) for at, each in enumerate(out.get("tools") or ())]
    places += [(f"system[{at}]", each) for at, each in enumerate(out.get("system") or ())]
    for turn in out["messages"]:
        for block in turn["content"]:
            places += [("messages", each) for each in (*dicts_of(block.get("content")), block)]
    marked = [(place, each) for place, each in places if "cache_control" in each]
    for place, each in marked[: -(MAX_CACHE_MARKERS - ("cache_control" in out))]:
        del each["cache_control"]
        losses.append(f"{place}.cache_control")
