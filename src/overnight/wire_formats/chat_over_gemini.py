"""Translate chat requests to Gemini.

A JSON Schema for the answer becomes `responseJsonSchema`, or `responseSchema` for older models. Reasoning effort becomes a
thinking budget or level. Thoughts are returned as `reasoning_content`, and their signatures as one block of `thinking_blocks`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .chat_over_gemini_answer import StreamTranslator, answer
from .chat_over_gemini_turns import Conversation
from .contract import Losses
from .gemini import CAP_FIELD
from .gemini_models import Traits, function_name, traits_of
from .gemini_schemas import subset_schema
from .lenient_json import Json, dict_of, dicts_of, text_of
from .validation import check, objects_of, texts_of

__all__ = ["StreamTranslator", "answer", "request"]

MAX_STOP_SEQUENCES = 5
# Gemini's fields, which clients send together with chat fields.
_NATIVE = {"safety_settings": "safetySettings", "cached_content": "cachedContent"}
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
}
_HANDLED = frozenset({
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "stop", "tools", "functions",
    "tool_choice", "function_call", "parallel_tool_calls", "response_format", "reasoning_effort", "reasoning", "thinking",
    "n", "logprobs", "top_logprobs", *_NATIVE, *_NATIVE.values(), *_SAMPLING,
})  # fmt: skip
# Values that equal the default behaviour.
_NEUTRAL: Json = {
    "logit_bias": {},
    "store": False,
    "modalities": ["text"],
    "verbosity": "medium",
    "service_tier": "auto",
}
_SHAPES: dict[str, tuple[type, ...]] = {
    "stop": (str, list),
    "functions": (list,),
    "tool_choice": (str, dict),
    "function_call": (str, dict),
    "response_format": (dict,),
    "reasoning_effort": (str,),
    "reasoning": (dict,),
    "thinking": (dict,),
}
# https://ai.google.dev/gemini-api/docs/openai names these budgets and levels.
_BUDGETS = {"minimal": 1_024, "low": 1_024, "medium": 8_192, "high": 24_576, "xhigh": 24_576, "max": 24_576}
_LEVELS = {"minimal": "MINIMAL", "low": "LOW", "medium": "MEDIUM", "high": "HIGH", "xhigh": "HIGH", "max": "HIGH"}
_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
_IN_WORDS = "Answer with one JSON object and nothing else."
_encode = msgspec.json.Encoder().encode


def request(body: Json, losses: Losses) -> Json:
    """Translate a request body. `model` is the target's model name. Raises InvalidBody."""
    check(body, _SHAPES)
    model = text_of(body.get("model"))
    traits = traits_of(model)
    losses += [
        name
        for name, value in body.items()
        if name not in _HANDLED and value not in (None, [], {}) and value != _NEUTRAL.get(name)
    ]
    conversation = Conversation(model, traits, losses)
    for at, message in enumerate(dicts_of(body.get("messages"))):
        conversation.add(message, f"messages[{at}]")
    conversation.end("messages")
    out: Json = {"model": model, "contents": conversation.contents}
    if body.get("stream"):
        out["stream"] = True
    if cap := body.get("max_completion_tokens") or body.get("max_tokens"):
        out[CAP_FIELD] = cap
    for name, native in _NATIVE.items():
        if (value := body.get(native, body.get(name))) is not None:
            out[native] = value
    config: Json = {}
    _set_sampling(body, config, losses)
    _set_tools(body, out, traits, losses)
    _set_format(body, out, config, conversation, traits, losses)
    _set_thinking(body, config, cap, traits, losses)
    if config:
        out["generationConfig"] = config
    if conversation.system:
        out["systemInstruction"] = {"parts": conversation.system}
    return out


def _set_sampling(body: Json, config: Json, losses: Losses) -> None:
    for name, native in _SAMPLING.items():
        value: Any = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            losses.append(name)
        elif value or name in ("temperature", "seed", "top_p"):
            config[native] = value
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else texts_of(stop, "stop")
    losses += [f"stop[{at}]" for at, each in enumerate(stops) if not each or at >= MAX_STOP_SEQUENCES]
    if kept := [each for each in stops[:MAX_STOP_SEQUENCES] if each]:
        config["stopSequences"] = kept
    if type(count := body.get("n")) is int and count > 1:
        config["candidateCount"] = count
    if body.get("logprobs"):
        config["responseLogprobs"] = True
        if body.get("top_logprobs"):
            config["logprobs"] = body["top_logprobs"]


# ── tools ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _set_tools(body: Json, out: Json, traits: Traits, losses: Losses) -> None:
    declared: list[Json] = []
    for at, tool in enumerate(dicts_of(body.get("tools"))):
        function = dict_of(tool.get("function"))
        if tool.get("type", "function") == "function" and function:
            declared.append(_function(function, f"tools[{at}].function", traits, losses))
            losses += [f"tools[{at}].{name}" for name in tool if name not in ("type", "function") and tool[name]]
        else:
            losses.append(f"tools[{at}]")
    for at, function in enumerate(objects_of(body.get("functions"), "functions")):
        declared.append(_function(function, f"functions[{at}]", traits, losses))
    asked = body.get("function_call") if body.get("tool_choice") is None else body["tool_choice"]
    if not declared:
        if asked not in (None, "auto", "none"):
            losses.append("tool_choice")
        return
    names = [each["name"] for each in declared]
    choice = _choice(asked, names, losses)
    if (kept := choice.pop("kept", None)) is not None:
        declared = [each for each in declared if each["name"] in kept]
    out["tools"] = [{"functionDeclarations": declared}]
    if choice:
        out["toolConfig"] = {"functionCallingConfig": choice}
    if body.get("parallel_tool_calls") is False:
        losses.append("parallel_tool_calls")


def _function(function: Json, place: str, traits: Traits, losses: Losses) -> Json:
    name = text_of(function.get("name"))
    fits = function_name(name)
    if fits != name:
        losses.append(f"{place}.name")
    made: Json = {"name": fits}
    if text_of(function.get("description")):
        made["description"] = function["description"]
    schema = dict_of(function.get("parameters"))
    if schema.get("properties") or schema.keys() - {
        "type",
        "properties",
        "additionalProperties",
        "required",
        "$schema",
    }:
        if traits.json_schema:
            made["parametersJsonSchema"] = {"type": "object", **schema}
        else:
            made["parameters"] = {"type": "OBJECT", **subset_schema(schema, f"{place}.parameters", losses)}
    if function.get("strict"):
        losses.append(f"{place}.strict")
    return made


def _choice(asked: Any, names: list[str], losses: Losses) -> Json:
    """The configuration of function calls; `kept` are the functions that remain, if not all."""
    named = dict_of(asked)
    if isinstance(asked, str) and asked in _MODES:
        return {} if asked == "auto" else {"mode": _MODES[asked]}
    if allowed := dict_of(named.get("allowed_tools")):
        tools = objects_of(allowed.get("tools"), "tool_choice.allowed_tools.tools")
        kept = {function_name(text_of((dict_of(each.get("function")) or each).get("name"))) for each in tools}
        if kept := [name for name in names if name in kept]:
            return {"kept": kept, **({"mode": "ANY"} if allowed.get("mode") == "required" else {})}
        losses.append("tool_choice")
        return {"mode": "NONE"}
    name = function_name(text_of((dict_of(named.get("function")) or named).get("name")))
    if asked is not None and name in names:
        return {"mode": "ANY", "allowedFunctionNames": [name]}
    if asked is not None:
        losses.append("tool_choice")
    return {}


# ── response format and thinking ────────────────────────────────────────────────────────────────────────────────────


def _set_format(
    body: Json, out: Json, config: Json, conversation: Conversation, traits: Traits, losses: Losses
) -> None:
    asked = dict_of(body.get("response_format"))
    kind = asked.get("type")
    if kind == "text" or not asked:
        return
    if kind not in ("json_schema", "json_object"):
        losses.append("response_format")
        return
    schema = dict_of(dict_of(asked.get("json_schema")).get("schema"))
    if "tools" in out and not traits.tools_with_format:
        losses.append("response_format")
        words = f"{_IN_WORDS} It must be valid by this JSON Schema: {_encode(schema).decode()}" if schema else _IN_WORDS
        conversation.system.append({"text": words})
        return
    config["responseMimeType"] = "application/json"
    if schema and traits.json_schema:
        config["responseJsonSchema"] = schema
    elif schema:
        config["responseSchema"] = subset_schema(schema, "response_format.json_schema.schema", losses)


def _set_thinking(body: Json, config: Json, cap: Any, traits: Traits, losses: Losses) -> None:
    name, effort, budget = _asked_thinking(body)
    if not name:
        return
    if not (traits.budget or traits.level) or (effort != "none" and budget is None and effort not in _BUDGETS):
        losses.append(name)
    elif effort == "none":
        if traits.can_stop_thinking:
            config["thinkingConfig"] = {"thinkingBudget": 0}
        else:
            losses.append(name)
    elif traits.level:
        if budget is not None:
            effort = next((level for level in ("low", "medium") if budget <= _BUDGETS[level]), "high")
        config["thinkingConfig"] = {"thinkingLevel": _LEVELS[effort], "includeThoughts": True}
    else:
        most = budget if budget is not None else _BUDGETS[effort]
        if type(cap) is int and most >= cap:
            if budget is not None:
                losses.append(f"{name} (budget)")
            most = cap // 2
        config["thinkingConfig"] = {"thinkingBudget": most, "includeThoughts": True}


def _asked_thinking(body: Json) -> tuple[str, str, int | None]:
    """The field that asks for thinking, the effort, and the budget in tokens."""
    native, reasoning = dict_of(body.get("thinking")), dict_of(body.get("reasoning"))
    if native.get("type") == "disabled":
        return "thinking", "none", None
    if native.get("type") in ("enabled", "adaptive"):
        budget = native.get("budget_tokens")
        return "thinking", text_of(body.get("reasoning_effort")) or "high", budget if type(budget) is int else None
    if effort := text_of(body.get("reasoning_effort")):
        return "reasoning_effort", effort, None
    if reasoning.get("enabled") is False:
        return "reasoning", "none", None
    if reasoning:
        budget = reasoning.get("max_tokens")
        return "reasoning", text_of(reasoning.get("effort")) or "medium", budget if type(budget) is int else None
    return "", "", None
