"""Convert Gemini's answers to chat completions, complete and streamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from overnight.pricing.usage import Cost, Usage, cost_fields

from .contract import AnswerContext
from .gemini import usage_of
from .gemini_models import original_names
from .gemini_over_chat_turns import code_text
from .gemini_signatures import Signatures, pack
from .gemini_stream import is_blocked
from .lenient_json import Json, dict_of, dicts_of, text_of

_FILTERED = frozenset({
    "SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "MODEL_ARMOR",
})  # fmt: skip
_FINISHED = {"STOP": "stop", "MAX_TOKENS": "length", **dict.fromkeys(_FILTERED, "content_filter")}
_encode = msgspec.json.Encoder().encode


def names_back(body: Json) -> Mapping[str, str]:
    """Map sent function names to the client's names."""
    functions = [dict_of(tool.get("function")) for tool in dicts_of(body.get("tools"))]
    functions += dicts_of(body.get("functions"))
    return original_names(text_of(each.get("name")) for each in functions)


class _Message:
    """The message of one candidate, from its parts, in the order in which they arrive.

    `take` returns the delta of each part, so that a stream and the whole answer are the same message.
    """

    def __init__(self, context: AnswerContext, index: int, names: Mapping[str, str]) -> None:
        self._context, self._index, self._names = context, index, names
        self._key = context.answer_id.partition("-")[2] or context.answer_id
        self._text_signature = ""
        self._signatures: list[str] = []
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self.calls: list[Json] = []
        self.images: list[Json] = []
        self.annotations: list[Json] = []

    def take(self, part: Json) -> Json:
        signature = text_of(part.get("thoughtSignature"))
        if call := dict_of(part.get("functionCall")):
            self._signatures.append(signature)
            return self._call(call)
        if signature:
            self._text_signature = signature
        text = text_of(part.get("text"))
        if part.get("thought"):
            self._thoughts.append(text)
            return {"reasoning_content": text} if text else {}
        if image := dict_of(part.get("inlineData")):
            url = f"data:{text_of(image.get('mimeType'))};base64,{text_of(image.get('data'))}"
            made: Json = {"type": "image_url", "image_url": {"url": url}, "index": len(self.images)}
            self.images.append(made)
            return {"images": [made]}
        text += code_text(part) or ""
        self._texts.append(text)
        return {"content": text} if text else {}

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def thoughts(self) -> str:
        return "".join(self._thoughts)

    def _call(self, call: Json) -> Json:
        name = text_of(call.get("name"))
        at = len(self.calls)
        call_id = text_of(call.get("id")) or f"call_{self._key}_{self._index}_{at}"[-40:]
        function = {"name": self._names.get(name, name), "arguments": _encode(call.get("args") or {}).decode()}
        made: Json = {"id": call_id, "type": "function", "function": function}
        self.calls.append(made)
        return {"tool_calls": [{"index": at, **made}]}

    def end(self, candidate: Json) -> Json:
        """The delta before the finish reason."""
        self.annotations = _annotations(dict_of(candidate.get("groundingMetadata")), self.text)
        delta: Json = {"annotations": self.annotations} if self.annotations else {}
        if blocks := self.thinking_blocks():
            delta["thinking_blocks"] = blocks
        return delta

    def thinking_blocks(self) -> list[Json]:
        signed = Signatures(self._text_signature, tuple(self._signatures))
        if not signed:
            return []
        model = self._context.model
        return [{"type": "thinking", "thinking": "", "signature": pack(signed, model), "index": 0, "model": model}]


def answer(answer: Json, context: AnswerContext) -> Json:
    """The chat completion. A refused prompt becomes an empty answer of its own finish reason."""
    names = names_back(context.body)
    choices: list[Json] = []
    for at, candidate in enumerate(dicts_of(answer.get("candidates")) or [{}]):
        message = _Message(context, at, names)
        for part in dicts_of(dict_of(candidate.get("content")).get("parts")):
            message.take(part)
        message.end(candidate)
        out: Json = {"role": "assistant", "content": message.text or None, "refusal": _refusal(candidate, answer)}
        if message.thoughts:
            out["reasoning_content"] = message.thoughts
        if blocks := message.thinking_blocks():
            out["thinking_blocks"] = blocks
        if message.calls:
            out["tool_calls"] = message.calls
        if message.images:
            out["images"] = message.images
        if message.annotations:
            out["annotations"] = message.annotations
        choices.append(
            {
                "index": at,
                "message": out,
                "logprobs": _logprobs(candidate),
                "finish_reason": _finish(candidate, answer, calls=bool(message.calls)),
            }
        )
    completion = {**_head(context, "chat.completion"), "choices": choices}
    if (usage := usage_of(answer)) is not None:
        completion["usage"] = chat_usage(usage)
    return completion


def chat_usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": usage.audio_input_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": usage.audio_output_tokens,
        },
    }


def _head(context: AnswerContext, kind: str) -> Json:
    return {"id": context.answer_id, "object": kind, "created": context.created_at, "model": context.model}


def _finish(candidate: Json, answer: Json, *, calls: bool) -> str:
    reason = text_of(candidate.get("finishReason"))
    if not reason and is_blocked(answer):
        return "content_filter"
    if reason == "STOP" and calls:
        return "tool_calls"
    # An unknown reason is passed on under its own name.
    return _FINISHED.get(reason, reason.lower() or "other")


def _refusal(candidate: Json, answer: Json) -> str | None:
    feedback, reason = dict_of(answer.get("promptFeedback")), text_of(candidate.get("finishReason"))
    if not reason and (blocked := text_of(feedback.get("blockReason"))):
        return text_of(feedback.get("blockReasonMessage")) or f"The provider blocked the prompt: {blocked}."
    if reason in _FILTERED:
        return text_of(candidate.get("finishMessage")) or f"The provider ended the answer: {reason}."
    return None


def _annotations(grounding: Json, text: str) -> list[Json]:
    """The sources of a grounded answer. Gemini counts the bytes of a text, chat its characters."""
    chunks = [dict_of(chunk.get("web")) for chunk in dicts_of(grounding.get("groundingChunks"))]
    raw = text.encode("utf-8", "surrogatepass")
    annotations: list[Json] = []
    for support in dicts_of(grounding.get("groundingSupports")):
        segment = dict_of(support.get("segment"))
        start, end = (_characters(raw, segment.get(name)) for name in ("startIndex", "endIndex"))
        for at in support.get("groundingChunkIndices") or ():
            if type(at) is int and 0 <= at < len(chunks) and (url := text_of(chunks[at].get("uri"))):
                title = text_of(chunks[at].get("title"))
                citation = {"url": url, "title": title, "start_index": start, "end_index": end}
                annotations.append({"type": "url_citation", "url_citation": citation})
    return annotations


def _characters(raw: bytes, at: Any) -> int:
    return len(raw[:at].decode("utf-8", "ignore")) if type(at) is int and at > 0 else 0


def _logprobs(candidate: Json) -> Json | None:
    result = dict_of(candidate.get("logprobsResult"))
    chosen = dicts_of(result.get("chosenCandidates"))
    if not chosen:
        return None
    tops = [dicts_of(top.get("candidates")) for top in dicts_of(result.get("topCandidates"))]
    content: list[Json] = []
    for at, token in enumerate(chosen):
        others = [_logprob(each) for each in (tops[at] if at < len(tops) else [])]
        content.append({**_logprob(token), "top_logprobs": others})
    return {"content": content, "refusal": None}


def _logprob(token: Json) -> Json:
    text = text_of(token.get("token"))
    return {"token": text, "logprob": token.get("logProbability"), "bytes": list(text.encode("utf-8", "replace"))}


class StreamTranslator:
    """Converts events of Gemini to chat chunks."""

    def __init__(self, context: AnswerContext) -> None:
        self._context = context
        self._names = names_back(context.body)
        self._head = _head(context, "chat.completion.chunk")
        self._messages: dict[int, _Message] = {}
        self._last: dict[int, Json] = {}
        self._calls: dict[int, list[Json]] = {}

    def take(self, event: Json) -> list[Json]:
        chunks: list[Json] = []
        candidates: list[Json] = event.get("candidates") or ([{}] if is_blocked(event) else [])
        for candidate in candidates:
            index: int = candidate.get("index") or 0
            message = self._messages.get(index)
            if message is None:
                message = self._messages[index] = _Message(self._context, index, self._names)
                chunks.append(self._chunk(index, {"role": "assistant", "content": None, "refusal": None}))
            held = self._last.setdefault(index, {})
            held |= {name: value for name, value in candidate.items() if name not in ("content", "logprobsResult")}
            logprobs = _logprobs(candidate)
            for part in dicts_of(dict_of(candidate.get("content")).get("parts")):
                delta = message.take(part)
                if "tool_calls" in delta:
                    # The signatures of all calls go before the first: a client that acts on it has them.
                    self._calls.setdefault(index, []).append(delta)
                elif delta:
                    chunks.append(self._chunk(index, delta, logprobs=logprobs))
                    logprobs = None
            if candidate.get("finishReason") or is_blocked(event):
                delta = message.end(held)
                if refusal := _refusal(held, event):
                    delta["refusal"] = refusal
                for each in (*([delta] if delta else []), *self._calls.pop(index, [])):
                    chunks.append(self._chunk(index, each))
                chunks.append(self._chunk(index, {}, _finish(held, event, calls=bool(message.calls))))
        return chunks

    def arranged(self, answer: Json) -> Json:
        return answer

    def end(self, cost_usd: Cost | None, usage: Usage) -> list[Json]:
        if cost_usd is None:
            return []
        return [{**self._head, "choices": [], "usage": {**chat_usage(usage), **cost_fields(cost_usd)}}]

    def _chunk(self, index: int, delta: Json, reason: str | None = None, logprobs: Json | None = None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**self._head, "choices": [choice]}
