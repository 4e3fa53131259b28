"""Convert the conversation of a chat request to Gemini's contents.

Results of functions come first in the content after the calls, in their order. Instructions stand outside of the contents.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .contract import Losses
from .dialects import names_model
from .gemini_models import Traits, function_name
from .gemini_signatures import GEMINI_PREFIX, SKIPPED, Signatures, packed_model, unpack
from .lenient_json import Json, dict_of, dicts_of, text_of
from .validation import blocks_of, check, objects_of, role_of, text_field, unsupported_content

CONTINUE_PROMPT = "Continue."
_MESSAGE = frozenset({
    "role", "content", "tool_calls", "function_call", "tool_call_id", "name", "refusal", "thinking_blocks",
    "reasoning_content", "reasoning",
})  # fmt: skip
_NAMED = frozenset({"tool", "function"})
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_SHAPES = {"function_call": (dict,), "refusal": (str,)}
_UNSIGNED = Signatures("", ())
_MEDIA_TYPES = {
    "pdf": "application/pdf", "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp",
    "gif": "image/gif", "mp3": "audio/mp3", "wav": "audio/wav", "mp4": "video/mp4", "txt": "text/plain",
}  # fmt: skip
_decode = msgspec.json.Decoder().decode


class Conversation:
    """Builds `system` and `contents`; both are complete after `end`. `model` is the target's model name.

    Raises:
        InvalidBody: a message cannot be read, or the conversation has no content.
    """

    def __init__(self, model: str, traits: Traits, losses: Losses) -> None:
        self.system: list[Json] = []
        self.contents: list[Json] = []
        self._model, self._traits, self._losses = model, traits, losses
        self._names: dict[str, str] = {}
        """The function of each call, by the id of the call."""
        self._order: dict[str, int] = {}
        self._results: list[tuple[int, list[Json]]] = []
        self._media: list[Json] = []
        self._user_parts: list[Json] = []
        self._unread = ""

    def add(self, message: Json, place: str) -> None:
        for name, value in message.items():
            if name not in _MESSAGE and value not in (None, [], {}, ""):
                self._losses.append(f"{place}.{name}")
        role = role_of(message, _ROLES, place)
        check(message, _SHAPES, f"{place}.")
        if message.get("name") and role not in _NAMED:
            self._losses.append(f"{place}.name")
        if role == "assistant":
            self._end_turn()
            self._append("model", self._answered(message, place))
        elif role in _NAMED:
            self._add_result(message, place)
        elif role in ("system", "developer"):
            if self.contents or self._user_parts or self._results:
                self._losses.append(f"{place}.role")  # Gemini reads all instructions before the conversation
            self.system += self._parts(message, place, only_text=True)
        else:
            lost = len(self._losses)
            parts = self._parts(message, place)
            self._user_parts += parts
            if not parts and len(self._losses) > lost:
                self._unread = f"{place}.content"

    def end(self, place: str) -> None:
        """Finish the conversation, which must begin with a content of the user."""
        self._end_turn()
        if not self.contents and self.system:
            # A conversation with only instructions contains no question.
            self.contents.append({"role": "user", "parts": self.system})
            self.system = []
        if self._unread or not self.contents:
            raise unsupported_content(self._unread or place)
        if self.contents[0]["role"] == "model":
            self._losses.append(f"{place}[0].role")
            self.contents.insert(0, {"role": "user", "parts": [{"text": CONTINUE_PROMPT}]})

    def _end_turn(self) -> None:
        ordered = sorted(self._results, key=lambda result: result[0])
        results = [part for _, parts in ordered for part in parts]
        if parts := [*results, *self._media, *self._user_parts]:
            self._unread = ""
        self._append("user", parts)
        self._results, self._media, self._user_parts = [], [], []

    def _append(self, role: str, parts: list[Json]) -> None:
        if not parts:
            return
        if self.contents and self.contents[-1]["role"] == role:
            self.contents[-1]["parts"] += parts
        else:
            self.contents.append({"role": role, "parts": parts})

    # ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _answered(self, message: Json, place: str) -> list[Json]:
        signed, parts = self._signed(message, place)
        texts = self._parts(message, place, only_text=True, may_lack=True)
        if text_of(message.get("refusal")).strip():
            texts.append({"text": message["refusal"]})
        if signed.text:
            if not texts:
                texts.append({"text": ""})
            texts[-1]["thoughtSignature"] = signed.text
        calls: list[Json] = []
        self._order = {}
        for at, call in enumerate(objects_of(message.get("tool_calls"), f"{place}.tool_calls")):
            where = f"{place}.tool_calls[{at}]"
            if call.get("type", "function") == "function":
                calls.append(self._call(dict_of(call.get("function")), text_of(call.get("id")), where))
            else:
                self._losses.append(where)
        if function := dict_of(message.get("function_call")):
            calls.append(self._call(function, _id_of_function(function), f"{place}.function_call"))
        for part, signature in zip(calls, signed.calls, strict=False):
            if signature:
                part["thoughtSignature"] = signature
        if calls and self._traits.signed_calls and not any("thoughtSignature" in part for part in calls):
            calls[0]["thoughtSignature"] = SKIPPED
        return [*parts, *texts, *calls]

    def _signed(self, message: Json, place: str) -> tuple[Signatures, list[Json]]:
        """The signatures of the target's own model, and the thoughts that belong to them."""
        signed = _UNSIGNED
        for at, thought in enumerate(dicts_of(message.get("thinking_blocks"))):
            signature = text_of(thought.get("signature"))
            found = unpack(signature) if signature.startswith(GEMINI_PREFIX) else None
            if found is not None and names_model(packed_model(signature), self._model):
                signed = found
            else:
                self._losses.append(f"{place}.thinking_blocks[{at}]")
        reasoning = text_of(message.get("reasoning_content"))
        if signed and reasoning:
            return signed, [{"text": reasoning, "thought": True}]
        self._losses += [f"{place}.{name}" for name in ("reasoning_content", "reasoning") if message.get(name)]
        return signed, []

    def _call(self, function: Json, call_id: str, place: str) -> Json:
        name = text_of(function.get("name"))
        fits = function_name(name)
        if fits != name:
            self._losses.append(f"{place}.function.name")
        self._names[call_id] = fits
        self._order[call_id] = len(self._order)
        call: Json = {"name": fits, "args": self._arguments(function.get("arguments"), f"{place}.function.arguments")}
        if call_id:
            call["id"] = call_id
        return {"functionCall": call}

    def _arguments(self, arguments: Any, place: str) -> Json:
        if isinstance(arguments, str) and not arguments.strip():
            return {}
        try:
            found: Any = _decode(arguments) if isinstance(arguments, str) else arguments
        except (msgspec.DecodeError, RecursionError):
            found = None
        if isinstance(found, dict):
            return dict_of(found)
        if arguments is not None:
            self._losses.append(place)
        return {"unparsed_input": arguments}

    def _add_result(self, message: Json, place: str) -> None:
        call_id = text_of(message.get("tool_call_id") if message.get("role") == "tool" else _id_of_function(message))
        parts = self._parts(message, place, may_lack=True)
        text = "\n".join(part["text"] for part in parts if "text" in part)
        name = self._names.get(call_id) or function_name(text_of(message.get("name")) or "unknown_function")
        response: Json = {"name": name, "response": _response(text)}
        if call_id:
            response["id"] = call_id
        # A result that answers no call of the turn before keeps its place behind the others.
        self._results.append((self._order.get(call_id, len(self._order)), [{"functionResponse": response}]))
        self._media += [part for part in parts if "text" not in part]

    # ── content parts ───────────────────────────────────────────────────────────────────────────────────────────────

    def _parts(self, message: Json, place: str, *, only_text: bool = False, may_lack: bool = False) -> list[Json]:
        parts: list[Json] = []
        for at, block in enumerate(blocks_of(message.get("content"), f"{place}.content", may_lack=may_lack)):
            where = f"{place}.content[{at}]"
            part = self._part(block, where)
            if part is not None and only_text and "text" not in part:
                self._losses.append(where)
            elif part is not None and part.get("text") != "":
                parts.append(part)
        return parts

    def _part(self, block: Json, place: str) -> Json | None:
        kind = block.get("type")
        part: Json | None = None
        match kind:
            case "text" | "input_text" | "output_text" | "refusal":
                if block.get("cache_control"):
                    self._losses.append(f"{place}.cache_control")
                return {"text": text_field(block, "refusal" if kind == "refusal" else "text", place)}
            case "image_url":
                image = block.get("image_url")
                if dict_of(image).get("detail") not in (None, "auto"):
                    self._losses.append(f"{place}.image_url.detail")
                part = _media(text_of(image) or text_of(dict_of(image).get("url")), "image/jpeg")
            case "input_audio":
                audio = dict_of(block.get("input_audio"))
                if text_of(audio.get("data")):
                    data = {"mimeType": f"audio/{text_of(audio.get('format')) or 'wav'}", "data": audio["data"]}
                    part = {"inlineData": data}
            case "file":
                part = _media(text_of(dict_of(block.get("file")).get("file_data")), "application/pdf")
            case "image" | "document" if (source := dict_of(block.get("source"))).get("type") == "base64":
                part = {"inlineData": {"mimeType": text_of(source.get("media_type")), "data": source.get("data")}}
            case _:
                pass
        if part is None:
            self._losses.append(place)
        return part


def _response(text: str) -> Json:
    """What a function returned. Gemini takes an object only; a text is its `output`."""
    try:
        found: Any = _decode(text) if text[:1] == "{" else None
    except (msgspec.DecodeError, RecursionError):
        found = None
    return dict_of(found) if isinstance(found, dict) else {"output": text}


def _id_of_function(function: Json) -> str:
    """The id of a legacy function call, derived from the function name, because such calls have no id."""
    return f"call_{text_of(function.get('name'))}"


def _media(url: str, usual: str) -> Json | None:
    """The part of a file, by URL or with its data."""
    if not url.startswith("data:"):
        ending = url.partition("?")[0].rpartition(".")[2].lower()
        kind = _MEDIA_TYPES.get(ending, usual)
        return {"fileData": {"fileUri": url, "mimeType": kind}} if "://" in url else None
    head, comma, data = url[5:].partition(",")
    media_type, *how = head.lower().split(";")
    if not comma or "base64" not in how:
        return None
    return {"inlineData": {"mimeType": "image/jpeg" if media_type == "image/jpg" else media_type, "data": data}}
