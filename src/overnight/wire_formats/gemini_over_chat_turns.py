"""Convert Gemini's contents to chat messages.

Gemini's calls may have no ids. They get ids by their place, and a result without one belongs to the first call of its name
that has none yet.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from .contract import Losses
from .dialects import names_model
from .gemini_signatures import read_own
from .identifiers import CHAT_ID, CHAT_NAME, fit_name
from .lenient_json import Json, dict_of, dicts_of, text_of
from .messages_over_chat_turns import TOOL_MEDIA_INTRO
from .validation import objects_of, text_field, unsupported_content

_ROLES = {"user": "user", "model": "model", "function": "user", "": "user"}
_AUDIO = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/mp3": "mp3", "audio/mpeg": "mp3"}
_ASIDE = frozenset({"thought", "thoughtSignature"})
_encode = msgspec.json.Encoder().encode


class Conversation:
    """Builds `messages` from the contents that are added. `model` is the target's model name.

    Raises:
        InvalidBody: a content cannot be read, or `end` finds no content at all or none in the last one.
    """

    def __init__(self, model: str, losses: Losses) -> None:
        self.messages: list[Json] = []
        self._model, self._losses = model, losses
        self._open = _OpenCalls()
        self._calls = 0
        self._unread = ""

    def begin(self, instruction: Any) -> None:
        given = {"parts": [{"text": instruction}]} if isinstance(instruction, str) else dict_of(instruction)
        texts: list[str] = []
        for at, part in enumerate(objects_of(given.get("parts"), "systemInstruction.parts")):
            place = f"systemInstruction.parts[{at}]"
            if text := text_field(part, "text", place):
                texts.append(text)
            elif part.keys() - {"text"}:
                self._losses.append(place)
        if texts:
            self.messages.append({"role": "system", "content": "\n".join(texts)})

    def add(self, content: Json, place: str) -> None:
        parts = objects_of(content.get("parts"), f"{place}.parts")
        role = _ROLES.get(text_of(content.get("role")))
        self._unread = ""
        if role is None:
            self._losses.append(f"{place}.role")
        if role == "model":
            self._add_answer(parts, place)
        else:
            self._add_user(parts, place)

    def end(self) -> None:
        """Finish the conversation after its last content."""
        if self._unread or all(message["role"] == "system" for message in self.messages):
            raise unsupported_content(self._unread or "contents")

    # ── the user and functions ──────────────────────────────────────────────────────────────────────────────────────

    def _add_user(self, parts: list[Json], place: str) -> None:
        results: list[Json] = []
        media: list[Json] = []
        user_parts: list[Json] = []
        lost = len(self._losses)
        for at, part in enumerate(parts):
            where = f"{place}.parts[{at}]"
            if response := dict_of(part.get("functionResponse")):
                results.append(self._result(response, where))
                media += [
                    made
                    for n, each in enumerate(dicts_of(response.get("parts")))
                    if (made := self._part(each, f"{where}.functionResponse.parts[{n}]")) is not None
                ]
            elif (made := self._part(part, where)) is not None:
                user_parts.append(made)
        self.messages += results
        if media:
            user_parts = [{"type": "text", "text": TOOL_MEDIA_INTRO}, *media, *user_parts]
        if user_parts:
            self.messages.append({"role": "user", "content": _content(user_parts)})
        elif not results and len(self._losses) > lost:
            self._unread = f"{place}.parts"

    def _result(self, response: Json, place: str) -> Json:
        name, given = text_of(response.get("name")), text_of(response.get("id"))
        found = self._open.take(given, name)
        losses = [each for each in ("scheduling", "willContinue") if response.get(each) is not None]
        self._losses += [f"{place}.functionResponse.{each}" for each in losses]
        call_id = found or fit_name(given or f"call_{name}", CHAT_ID)
        return {"role": "tool", "tool_call_id": call_id, "content": _result_text(response.get("response"))}

    def _part(self, part: Json, place: str) -> Json | None:
        """Convert a part to a message part. What has no equivalent is added to the losses."""
        self._losses += [
            f"{place}.{name}"
            for name, value in part.items()
            if name in ("videoMetadata", "mediaResolution", "partMetadata") and value is not None
        ]
        if "text" in part:
            text = text_field(part, "text", place)
            return {"type": "text", "text": text} if text else None
        made: Json | None = None
        if blob := dict_of(part.get("inlineData")):
            made = _inline(text_of(blob.get("mimeType")), text_of(blob.get("data")), text_of(blob.get("displayName")))
        elif file := dict_of(part.get("fileData")):
            uri = text_of(file.get("fileUri"))
            if text_of(file.get("mimeType")).startswith("image/") and uri.startswith(("http://", "https://")):
                made = {"type": "image_url", "image_url": {"url": uri}}
        elif (text := code_text(part)) is not None:
            return {"type": "text", "text": text}
        if made is None and part.keys() - _ASIDE:
            self._losses.append(place)
        return made

    # ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _add_answer(self, parts: list[Json], place: str) -> None:
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[Json] = []
        blocks: list[Json] = []
        self._open = _OpenCalls()
        for at, part in enumerate(parts):
            where = f"{place}.parts[{at}]"
            is_own = self._read_signature(part, blocks, where)
            if call := dict_of(part.get("functionCall")):
                calls.append(self._call(call, where))
            elif part.get("thought"):
                if is_own:
                    thoughts.append(text_of(part.get("text")))
                elif part.get("text"):
                    self._losses.append(where)
            elif (made := self._part(part, where)) is not None:
                if made["type"] == "text":
                    texts.append(made["text"])
                else:
                    self._losses.append(where)
        if not texts and not calls:
            return
        message: Json = {"role": "assistant", "content": "".join(texts) or None}
        if thoughts:
            message["reasoning_content"] = "".join(thoughts)
        if blocks:
            message["thinking_blocks"] = blocks
        if calls:
            message["tool_calls"] = calls
        self.messages.append(message)

    def _read_signature(self, part: Json, blocks: list[Json], place: str) -> bool:
        """Whether the target's own model made this part. Its reasoning blocks are added to `blocks`."""
        signature = text_of(part.get("thoughtSignature"))
        if not signature:
            return False
        own = read_own(signature)
        if own is not None and names_model(own[0], self._model):
            blocks += own[1]
            return True
        self._losses.append(f"{place}.thoughtSignature")
        return False

    def _call(self, call: Json, place: str) -> Json:
        name, given = text_of(call.get("name")), text_of(call.get("id"))
        fits = fit_name(name, CHAT_NAME)
        if fits != name:
            self._losses.append(f"{place}.functionCall.name")
        call_id = fit_name(given or f"call_{self._calls}_{name}", CHAT_ID)
        if call_id in self._open.ids:
            call_id = fit_name(f"call_{self._calls}_{given or name}", CHAT_ID)
        self._calls += 1
        self._open.add(given, name, call_id)
        arguments = _encode(dict_of(call.get("args"))).decode()
        return {"id": call_id, "type": "function", "function": {"name": fits, "arguments": arguments}}


class _OpenCalls:
    """The calls of a turn without a result. `ids` are their ids in chat."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self._by_given: dict[str, deque[str]] = {}
        self._by_name: dict[str, deque[str]] = {}

    def add(self, given: str, name: str, call_id: str) -> None:
        self.ids.add(call_id)
        self._by_name.setdefault(name, deque()).append(call_id)
        if given:
            self._by_given.setdefault(given, deque()).append(call_id)

    def take(self, given: str, name: str) -> str | None:
        """Remove the first call with the id that Gemini used, else with the name. Returns its id in chat; None without one."""
        for waiting in (self._by_given.get(given), self._by_name.get(name)):
            while waiting:
                if (call_id := waiting.popleft()) in self.ids:
                    self.ids.remove(call_id)
                    return call_id
        return None


def code_text(part: Json) -> str | None:
    """Code that a provider ran, or its output, as text; None for another part."""
    if code := dict_of(part.get("executableCode")):
        return f"\n```{text_of(code.get('language')).lower()}\n{text_of(code.get('code'))}\n```\n"
    if result := dict_of(part.get("codeExecutionResult")):
        return f"\n```\n{text_of(result.get('output'))}\n```\n"
    return None


def _result_text(response: Any) -> str:
    found = dict_of(response)
    for name in ("output", "result"):
        if found.keys() == {name} and isinstance(found[name], str):
            return found[name]
    if found.keys() == {"error"}:
        error: Any = found["error"]
        return f"Error: {error if isinstance(error, str) else _encode(error).decode()}"
    return _encode(found).decode()


def _inline(kind: str, data: str, name: str) -> Json | None:
    if not data:
        return None
    url = f"data:{kind};base64,{data}"
    if kind.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": url}}
    if kind in _AUDIO:
        return {"type": "input_audio", "input_audio": {"data": data, "format": _AUDIO[kind]}}
    if kind.startswith("video/") or kind.startswith("audio/"):
        return None
    return {"type": "file", "file": {"filename": name or "document.pdf", "file_data": url}}


def _content(parts: list[Json]) -> Any:
    """The content as one string where possible, since some chat servers reject a list of parts."""
    if all(each.keys() == {"type", "text"} for each in parts):
        return "\n".join(each["text"] for each in parts)
    return parts
