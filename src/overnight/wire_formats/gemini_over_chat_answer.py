"""Convert chat answers to Gemini's, complete and streamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from overnight.pricing.usage import Cost, Usage, cost_fields, estimated_usage, openai_usage

from .contract import AnswerContext
from .gemini import estimate_input_tokens
from .gemini_signatures import sign_own
from .identifiers import CHAT_NAME, original_names
from .lenient_json import Json, dict_of, dicts_of, text_of

_FINISHED = {
    "stop": "STOP",
    "tool_calls": "STOP",
    "function_call": "STOP",
    "length": "MAX_TOKENS",
    "content_filter": "SAFETY",
}
_REASONING = ("reasoning_content", "reasoning")
_decode = msgspec.json.Decoder().decode


def names_back(body: Json) -> Mapping[str, str]:
    """Map sent function names to the client's names."""
    declared = [each for tool in dicts_of(body.get("tools")) for each in dicts_of(tool.get("functionDeclarations"))]
    return original_names((text_of(each.get("name")) for each in declared), CHAT_NAME)


def answer(completion: Json, context: AnswerContext) -> Json:
    """The answer. Its thoughts are signed with the model name."""
    names = names_back(context.body)
    candidates: list[Json] = []
    characters = 0
    for at, choice in enumerate(dicts_of(completion["choices"])):
        message = dict_of(choice.get("message"))
        parts: list[Json] = []
        if thought := _reasoning(message):
            parts.append(_thought(thought, context))
        text = _text(message) + text_of(message.get("refusal"))
        if text:
            parts.append({"text": text})
        calls = dicts_of(message.get("tool_calls"))
        if function := dict_of(message.get("function_call")):
            calls.append({"function": function})
        made = [_call(call, n, at, names, context) for n, call in enumerate(calls)]
        parts += _signed(made, dicts_of(message.get("thinking_blocks")), context)
        characters += len(thought) + len(text)
        candidates.append(
            {
                "content": {"parts": parts, "role": "model"},
                **_ended(choice, text_of(message.get("refusal"))),
                "index": at,
                **_grounding(message),
            }
        )
    usage = openai_usage(completion.get("usage")) or estimated_usage(
        4 * estimate_input_tokens(context.body), characters
    )
    return {"candidates": candidates, "usageMetadata": gemini_usage(usage), **_fields(context)}


def gemini_usage(usage: Usage) -> Json:
    """Usage in Gemini's format: thoughts are not part of the candidates' tokens."""
    fields: Json = {
        "promptTokenCount": usage.input_tokens,
        "candidatesTokenCount": usage.output_tokens - usage.reasoning_tokens,
        "totalTokenCount": usage.input_tokens + usage.output_tokens,
    }
    if usage.cached_tokens:
        fields["cachedContentTokenCount"] = usage.cached_tokens
    if usage.reasoning_tokens:
        fields["thoughtsTokenCount"] = usage.reasoning_tokens
    return fields


def _fields(context: AnswerContext) -> Json:
    return {"modelVersion": context.model, "responseId": context.answer_id}


def _reasoning(message: Json) -> str:
    return next((text for name in _REASONING if (text := text_of(message.get(name)))), "")


def _thought(text: str, context: AnswerContext) -> Json:
    return {"text": text, "thought": True, "thoughtSignature": sign_own(context.model, [])}


def _signed(calls: list[Json], blocks: list[Json], context: AnswerContext) -> list[Json]:
    """The calls, with the target's reasoning blocks as the signature of the first. Without a call, an empty text has it."""
    if not blocks:
        return calls
    signature = sign_own(context.model, blocks)
    if not calls:
        return [{"text": "", "thoughtSignature": signature}]
    return [{**calls[0], "thoughtSignature": signature}, *calls[1:]]


def _text(message: Json) -> str:
    content = message.get("content")
    if not isinstance(content, str):
        content = "".join(text_of(part.get("text")) for part in dicts_of(content))
    return content


def _call(call: Json, at: int, index: int, names: Mapping[str, str], context: AnswerContext) -> Json:
    function = dict_of(call.get("function"))
    name = text_of(function.get("name"))
    call_id = text_of(call.get("id")) or f"call_{context.answer_id}_{index}_{at}"
    return {
        "functionCall": {"id": call_id, "name": names.get(name, name), "args": _arguments(function.get("arguments"))}
    }


def _arguments(arguments: Any) -> Json:
    if not isinstance(arguments, str):
        return dict_of(arguments)
    if not arguments.strip():
        return {}
    try:
        found: Any = _decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        found = None
    return dict_of(found) if isinstance(found, dict) else {"unparsed_input": arguments}


def _ended(choice: Json, refusal: str) -> Json:
    reason = text_of(choice.get("finish_reason"))
    ended = "SAFETY" if refusal else _FINISHED.get(reason, "OTHER")
    if refusal:
        return {"finishReason": ended, "finishMessage": refusal}
    # An unknown reason is passed on in words, since clients know Gemini's own only.
    return {"finishReason": ended, **({"finishMessage": reason} if ended == "OTHER" else {})}


def _grounding(message: Json) -> Json:
    """The sources of an answer."""
    chunks: list[Json] = []
    supports: list[Json] = []
    text = _text(message)
    for note in dicts_of(message.get("annotations")):
        if not (citation := dict_of(note.get("url_citation"))):
            continue
        start, end = (_bytes(text, citation.get(name)) for name in ("start_index", "end_index"))
        supports.append({"segment": {"startIndex": start, "endIndex": end}, "groundingChunkIndices": [len(chunks)]})
        chunks.append({"web": {"uri": text_of(citation.get("url")), "title": text_of(citation.get("title"))}})
    return {"groundingMetadata": {"groundingChunks": chunks, "groundingSupports": supports}} if chunks else {}


def _bytes(text: str, at: Any) -> int:
    return len(text[:at].encode("utf-8", "surrogatepass")) if type(at) is int and at > 0 else 0


class _Candidate:
    """What a candidate holds back until its end: its calls, since Gemini's are always complete, and its signatures."""

    __slots__ = ("annotations", "blocks", "calls", "choice", "refusal", "texts")

    def __init__(self) -> None:
        self.calls: dict[int, Json] = {}
        self.blocks: list[Json] = []
        self.annotations: list[Json] = []
        self.texts: list[str] = []
        self.choice: Json = {}
        self.refusal = ""

    def add_call(self, part: Json, position: int) -> None:
        at = part.get("index")
        call = self.calls.setdefault(at if isinstance(at, int) else position, {"id": "", "name": "", "pieces": []})
        function = dict_of(part.get("function"))
        call["id"] = call["id"] or text_of(part.get("id"))
        call["name"] += text_of(function.get("name"))  # some servers send it in fragments
        call["pieces"].append(text_of(function.get("arguments")))


class StreamTranslator:
    """Converts chat chunks to Gemini's events. The last event is sent by `end`, when the usage is known.

    A chat `Assembly` must have numbered the tool calls of the chunks.
    """

    def __init__(self, context: AnswerContext) -> None:
        self._context = context
        self._names = names_back(context.body)
        self._candidates: dict[int, _Candidate] = {}

    def take(self, event: Json) -> list[Json]:
        events: list[Json] = []
        for choice in dicts_of(event.get("choices")):
            index: int = choice.get("index") or 0
            candidate = self._candidates.setdefault(index, _Candidate())
            delta = dict_of(choice.get("delta"))
            parts: list[Json] = []
            if thought := _reasoning(delta):
                parts.append(_thought(thought, self._context))
            refusal = text_of(delta.get("refusal"))
            candidate.refusal += refusal
            if text := _text(delta) + refusal:
                candidate.texts.append(text)
                parts.append({"text": text})
            candidate.blocks += dicts_of(delta.get("thinking_blocks"))
            candidate.annotations += dicts_of(delta.get("annotations"))
            calls = dicts_of(delta.get("tool_calls"))
            if function := dict_of(delta.get("function_call")):
                calls.append({"index": 0, "function": function})
            for position, call in enumerate(calls):
                candidate.add_call(call, position)
            if choice.get("finish_reason"):
                candidate.choice = choice
            if parts:
                events.append(self._event([self._part_of(index, parts)]))
        return events

    def arranged(self, answer: Json) -> Json:
        return answer

    def end(self, cost_usd: Cost | None, usage: Usage) -> list[Json]:
        last: list[Json] = []
        for index, candidate in sorted(self._candidates.items()):
            whole = [
                {"id": call["id"], "function": {"name": call["name"], "arguments": "".join(call["pieces"])}}
                for _, call in sorted(candidate.calls.items())
            ]
            calls = [_call(call, n, index, self._names, self._context) for n, call in enumerate(whole)]
            parts = _signed(calls, candidate.blocks, self._context)
            message: Json = {"content": "".join(candidate.texts), "annotations": candidate.annotations}
            ended = {**_ended(candidate.choice, candidate.refusal), **_grounding(message)}
            last.append({**self._part_of(index, parts or [{"text": ""}]), **ended})
        reported = gemini_usage(usage)
        if cost_usd is not None:
            reported |= cost_fields(cost_usd)
        return [{**self._event(last), "usageMetadata": reported}]

    def _part_of(self, index: int, parts: list[Json]) -> Json:
        return {"content": {"parts": parts, "role": "model"}, "index": index}

    def _event(self, candidates: list[Json]) -> Json:
        return {"candidates": candidates, **_fields(self._context)}
