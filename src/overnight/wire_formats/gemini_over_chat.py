"""Translate Gemini requests to chat.

`responseSchema` and `responseJsonSchema` become `response_format`; a thinking budget or level becomes `reasoning_effort`. The
target's reasoning is returned as thoughts, which are signed with its model name. Only the same model gets them back.
"""

from __future__ import annotations

from typing import Any

from .chat_over_messages_thinking import effort_of
from .contract import InvalidBody, Losses
from .gemini import CAP_FIELD
from .gemini_over_chat_answer import StreamTranslator, answer
from .gemini_over_chat_turns import Conversation
from .gemini_schemas import json_schema
from .identifiers import CHAT_NAME, fit_name
from .lenient_json import Json, dict_of, text_of
from .messages_over_chat import NO_EFFORT, NO_EFFORT_WITH_TOOLS, THINKERS
from .messages_schemas import is_strict
from .validation import check, objects_of, texts_of

__all__ = ["StreamTranslator", "answer", "request"]

MAX_STOP_SEQUENCES = 4
_HANDLED = frozenset({
    "model", "stream", "contents", "systemInstruction", "tools", "toolConfig", "generationConfig", CAP_FIELD,
    "cachedContent",
})  # fmt: skip
_SAMPLING = {
    "temperature": "temperature",
    "topP": "top_p",
    "topK": "top_k",
    "seed": "seed",
    "presencePenalty": "presence_penalty",
    "frequencyPenalty": "frequency_penalty",
}
_CONFIG = frozenset({
    CAP_FIELD, "stopSequences", "candidateCount", "responseMimeType", "responseSchema", "responseJsonSchema",
    "thinkingConfig", "responseLogprobs", "logprobs", "responseModalities", *_SAMPLING,
})  # fmt: skip
_SHAPES: dict[str, tuple[type, ...]] = {
    "systemInstruction": (dict, str),
    "tools": (list,),
    "toolConfig": (dict,),
    "generationConfig": (dict,),
}
_CONFIG_SHAPES: dict[str, tuple[type, ...]] = {
    "stopSequences": (list,),
    "responseMimeType": (str,),
    "responseSchema": (dict,),
    "thinkingConfig": (dict,),
    "responseModalities": (list,),
}
_DECLARATION = frozenset({"name", "description", "parameters", "parametersJsonSchema", "behavior", "response"})
_MODES = {"AUTO": "auto", "ANY": "required", "NONE": "none", "VALIDATED": "auto"}
_EFFORTS = {"MINIMAL": "minimal", "LOW": "low", "MEDIUM": "medium", "HIGH": "high", "XHIGH": "xhigh"}


def request(body: Json, losses: Losses) -> Json:
    """Translate a request body. `model` is the target's model name. Raises InvalidBody."""
    check(body, _SHAPES)
    config = dict_of(body.get("generationConfig"))
    check(config, _CONFIG_SHAPES, "generationConfig.")
    if body.get("cachedContent"):
        raise InvalidBody(
            "cachedContent: is stored at Google, so no other provider can read it; send the contents", "cachedContent"
        )
    model = text_of(body.get("model"))
    losses += [name for name, value in body.items() if name not in _HANDLED and value not in (None, [], {}, False)]
    losses += [
        f"generationConfig.{name}"
        for name, value in config.items()
        if name not in _CONFIG and value not in (None, [], {}, False)
    ]
    conversation = Conversation(model, losses)
    conversation.begin(body.get("systemInstruction"))
    contents = objects_of(body.get("contents"), "contents")
    for at, content in enumerate(contents):
        conversation.add(content, f"contents[{at}]")
    conversation.end()
    if contents and contents[-1].get("role") == "model":
        # Gemini would continue this content; chat treats it as a complete answer.
        losses.append(f"contents[{len(contents) - 1}].role")
    out: Json = {"model": model, "messages": conversation.messages}
    if cap := body.get(CAP_FIELD) or config.get(CAP_FIELD):
        out["max_tokens"] = cap
    if body.get("stream"):
        out["stream"] = True
    _set_tools(body, out, losses)
    _set_format(config, out, losses)
    _set_effort(config, out, losses)
    _set_sampling(config, out, losses)
    return out


def _set_tools(body: Json, out: Json, losses: Losses) -> None:
    tools: list[Json] = []
    for at, tool in enumerate(objects_of(body.get("tools"), "tools")):
        place = f"tools[{at}]"
        # The provider would run all other tools itself.
        losses += [
            f"{place}.{name}" for name, value in tool.items() if name != "functionDeclarations" and value is not None
        ]
        declared = objects_of(tool.get("functionDeclarations"), f"{place}.functionDeclarations")
        tools += [_function(each, f"{place}.functionDeclarations[{n}]", losses) for n, each in enumerate(declared)]
    config = dict_of(body.get("toolConfig"))
    losses += [
        f"toolConfig.{name}"
        for name, value in config.items()
        if name != "functionCallingConfig" and value not in (None, {}, False)
    ]
    if not tools:
        return
    calling = dict_of(config.get("functionCallingConfig"))
    choice = _MODES.get(text_of(calling.get("mode")) or "AUTO")
    if choice is None:
        losses.append("toolConfig.functionCallingConfig.mode")
    place = "toolConfig.functionCallingConfig.allowedFunctionNames"
    allowed = {fit_name(each, CHAT_NAME) for each in texts_of(calling.get("allowedFunctionNames"), place)}
    kept = [tool for tool in tools if tool["function"]["name"] in allowed] if allowed else tools
    if not kept:
        losses.append(place)
        kept = tools
    out["tools"] = kept
    if choice == "required" and len(kept) == 1 and allowed:
        out["tool_choice"] = {"type": "function", "function": {"name": kept[0]["function"]["name"]}}
    elif choice not in (None, "auto"):
        out["tool_choice"] = choice


def _function(declared: Json, place: str, losses: Losses) -> Json:
    name = text_of(declared.get("name"))
    fits = fit_name(name, CHAT_NAME)
    if fits != name:
        losses.append(f"{place}.name")
    losses += [
        f"{place}.{field}"
        for field, value in declared.items()
        if value not in (None, "BLOCKING") and (field not in _DECLARATION or field in ("behavior", "response"))
    ]
    schema = dict_of(declared.get("parametersJsonSchema")) or json_schema(declared.get("parameters"))
    function: Json = {"name": fits, "parameters": {"type": "object", "properties": {}, **schema}}
    if text_of(declared.get("description")):
        function["description"] = declared["description"]
    return {"type": "function", "function": function}


def _set_format(config: Json, out: Json, losses: Losses) -> None:
    kind = text_of(config.get("responseMimeType"))
    schema = dict_of(config.get("responseJsonSchema")) or json_schema(config.get("responseSchema"))
    if kind == "application/json" and schema:
        described = {"name": "answer", "schema": schema, "strict": is_strict(schema)}
        out["response_format"] = {"type": "json_schema", "json_schema": described}
    elif kind == "application/json":
        out["response_format"] = {"type": "json_object"}
    elif kind not in ("", "text/plain"):
        losses.append("generationConfig.responseMimeType")
    modalities: list[Any] = config.get("responseModalities") or []
    if any(each != "TEXT" for each in modalities):
        losses.append("generationConfig.responseModalities")


def _set_effort(config: Json, out: Json, losses: Losses) -> None:
    thinking = dict_of(config.get("thinkingConfig"))
    place = "generationConfig.thinkingConfig"
    budget, effort = thinking.get("thinkingBudget"), _EFFORTS.get(text_of(thinking.get("thinkingLevel")).upper(), "")
    losses += [
        f"{place}.{name}" for name in thinking if name not in ("thinkingBudget", "thinkingLevel", "includeThoughts")
    ]
    if not effort and type(budget) is int and budget >= 0:  # a budget of -1 is the model's own
        effort = effort_of(budget) if budget else "none"
    model = out["model"].lower().rpartition("/")[2]
    if "tools" in out and model.startswith(NO_EFFORT_WITH_TOOLS):
        out["reasoning_effort"] = "none"
        if effort not in ("", "none"):
            losses.append(place)
    elif effort and model.startswith(NO_EFFORT):
        if effort != "none":
            losses.append(place)
    elif effort:
        out["reasoning_effort"] = "xhigh" if effort == "max" else effort


def _set_sampling(config: Json, out: Json, losses: Losses) -> None:
    stops = texts_of(config.get("stopSequences"), "generationConfig.stopSequences")
    losses += [f"generationConfig.stopSequences[{at}]" for at in range(MAX_STOP_SEQUENCES, len(stops))]
    if stops:
        out["stop"] = stops[:MAX_STOP_SEQUENCES]
    thinks = out["model"].lower().rpartition("/")[2].startswith(THINKERS) and out.get("reasoning_effort") != "none"
    for name, field in _SAMPLING.items():
        value: Any = config.get(name)
        if value is None or (name in ("temperature", "topP") and value == 1):
            continue
        is_sampling = name in ("temperature", "topP")
        if isinstance(value, bool) or not isinstance(value, int | float) or (thinks and is_sampling):
            losses.append(f"generationConfig.{name}")
        elif name == "topK":
            out[field] = int(value)
        else:
            out[field] = value
    count = config.get("candidateCount")
    if type(count) is int and count > 1:
        out["n"] = count
    if config.get("responseLogprobs"):
        out["logprobs"] = True
        if config.get("logprobs"):
            out["top_logprobs"] = config["logprobs"]
