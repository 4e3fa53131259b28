"""Convert the conversation of a chat request to Anthropic messages.

Anthropic turns alternate. Tool results come first in the turn after the calls. Empty text is rejected. Instructions
come before the conversation or, for some models, after a user turn.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .contract import Losses
from .dialects import names_model
from .identifiers import MESSAGES_ID, MESSAGES_NAME, fit_name
from .lenient_json import (
    Json,
    dict_of,
    dicts_of,
    text_of,
)
from .messages_models import Traits
from .validation import (
    blocks_of,
    check,
    objects_of,
    role_of,
    text_field,
    unsupported_content,
)

UNSIGNED_PREFIX = "overnight/"
"""The prefix of the model name that replaces the signature of reasoning from other models."""
CONTINUE_PROMPT = "Continue."

_decode = msgspec.json.Decoder().decode
_MESSAGE = frozenset({
    "role", "content", "tool_calls", "function_call", "tool_call_id", "name", "refusal", "cache_control",
    "thinking_blocks", "reasoning_content", "reasoning",
})  # fmt: skip
_NAMED = frozenset({"tool", "function"})
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_SHAPES = {"function_call": (dict,), "refusal": (str,)}


class Conversation:
    """Builds `system` and `turns`; both are complete after `end`. `model` is the target's model name.

    Raises:
        InvalidBody: a message cannot be read, or the first or last user turn has no content.
    """

    def __init__(self, model: str, traits: Traits, losses: Losses) -> None:
        self.system: list[Json] = []
        self.turns: list[Json] = []
        self.tools_used: dict[str, None] = {}
        self._model, self._traits, self._losses = model, traits, losses
        self._results: list[Json] = []
        self._user_content: list[Json] = []
        self._instructions: list[tuple[str, Json]] = []
        self._unread = ""
        self._used_ids: set[str] = set()
        self._unanswered: list[tuple[str, str]] = []
        """The calls of the last assistant turns without a result: the id in the request, and the id that is sent."""

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
            self._append("assistant", self._answered(message, place))
        elif role in _NAMED:
            self._results.append(self._result(message, place))
        elif role in ("system", "developer"):
            blocks = self._texts(message, place)
            if self.turns or self._user_content or self._results:
                self._instructions += [(place, each) for each in blocks]
            else:
                self.system += blocks
        else:
            lost = len(self._losses)
            content = self._blocks(message, place)
            self._user_content += content
            if not content and len(self._losses) > lost:
                self._unread = f"{place}.content"

    def end(self, place: str) -> None:
        """Finish the conversation. It must start and, for most models, end with a user turn."""
        self._end_turn(last=True)
        turns = self.turns
        if not turns and self.system:
            # A conversation with only a system prompt contains no question.
            turns.append({"role": "user", "content": self.system})
            self.system = []
        if not turns:
            raise unsupported_content(place)
        if turns[0]["role"] == "assistant":
            self._losses.append(f"{place}[0].role")
            turns.insert(0, _go_on())
        if turns[-1]["role"] != "assistant":
            return
        last = turns[-1]["content"][-1]
        if not self._traits.prefill or last["type"] == "tool_use":
            self._losses.append(f"{place}[-1].role")
            turns.append(_go_on())
        elif last["type"] == "text":
            last["text"] = last["text"].rstrip()

    def _end_turn(self, *, last: bool = False) -> None:
        turn = self._results + self._user_content
        if self._unread and not turn and (last or not self.turns):
            # Otherwise a generated text would have to replace the content.
            raise unsupported_content(self._unread)
        self._append("user", turn)
        self._results, self._user_content, self._unread = [], [], ""
        instructions, self._instructions = self._instructions, []
        if not instructions:
            return
        if self._traits.system_turns and self.turns and self.turns[-1]["role"] == "user":
            self.turns.append({"role": "system", "content": [block for _, block in instructions]})
            return
        self._losses += dict.fromkeys(f"{place}.role" for place, _ in instructions)
        self.system += [block for _, block in instructions]

    def _append(self, role: str, content: list[Json]) -> None:
        if not content:
            return
        if self.turns and self.turns[-1]["role"] == role:
            self.turns[-1]["content"] += content
        else:
            self.turns.append({"role": role, "content": content})

    # ── one message
    # ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _answered(self, message: Json, place: str) -> list[Json]:
        blocks = self._reasoning_blocks(message, place)
        blocks += self._texts(message, place, may_lack=True)
        if text_of(message.get("refusal")).strip():
            blocks.append({"type": "text", "text": message["refusal"]})
        for at, call in enumerate(objects_of(message.get("tool_calls"), f"{place}.tool_calls")):
            where = f"{place}.tool_calls[{at}]"
            if call.get("type", "function") == "function":
                blocks.append(self._call(dict_of(call.get("function")), text_of(call.get("id")), where))
            else:
                self._losses.append(where)
        if function := dict_of(message.get("function_call")):
            blocks.append(self._call(function, _id_of_function(function), f"{place}.function_call"))
        return blocks

    def _reasoning_blocks(self, message: Json, place: str) -> list[Json]:
        """The reasoning blocks of the target's own model. It rejects those of other models."""
        blocks: list[Json] = []
        for at, thought in enumerate(dicts_of(message.get("thinking_blocks"))):
            kind, signed = thought.get("type"), text_of(thought.get("signature"))
            own = thought.get("model") is None or names_model(thought["model"], self._model)
            if kind == "thinking" and signed and not signed.startswith(UNSIGNED_PREFIX) and own:
                blocks.append({"type": kind, "thinking": text_of(thought.get("thinking")), "signature": signed})
            elif kind == "redacted_thinking" and thought.get("data") and own:
                blocks.append({"type": kind, "data": thought["data"]})
            else:
                self._losses.append(f"{place}.thinking_blocks[{at}]")
        if not blocks and not message.get("thinking_blocks"):
            self._losses += [f"{place}.{name}" for name in ("reasoning_content", "reasoning") if message.get(name)]
        return blocks

    def _call(self, function: Json, call_id: str, place: str) -> Json:
        name = self._fits(text_of(function.get("name")), MESSAGES_NAME, f"{place}.function.name")
        self.tools_used[name] = None
        return {
            "type": "tool_use",
            "id": self._unique_id(call_id, f"{place}.id"),
            "name": name,
            "input": self._arguments(function.get("arguments"), f"{place}.function.arguments"),
        }

    def _unique_id(self, given: str, place: str) -> str:
        """The id of a call. Anthropic rejects empty and repeated ids, which some servers and agents make."""
        fits = self._fits(given, MESSAGES_ID, place) if given else "call"
        unique, number = fits, 1
        while not given or unique in self._used_ids:
            unique, number = f"{fits[: MESSAGES_ID - 8]}_{number}", number + 1
            if unique not in self._used_ids:
                break
        self._used_ids.add(unique)
        self._unanswered.append((given, unique))
        return unique

    def _id_of_result(self, given: str) -> str:
        """The id that was sent for the call of a result: of calls with one id, the first without a result."""
        for at, (asked, sent) in enumerate(self._unanswered):
            if asked == given:
                del self._unanswered[at]
                return sent
        return self._fits(given, MESSAGES_ID, "")

    def _arguments(self, arguments: Any, place: str) -> Json:
        if isinstance(arguments, str) and not arguments.strip():
            return {}
        try:
            found: Any = _decode(arguments) if isinstance(arguments, str) else arguments
        except (msgspec.DecodeError, RecursionError):
            found = None
        if isinstance(found, dict):
            return dict_of(found)
        self._losses.append(place)
        return {"unparsed_input": arguments}

    def _result(self, message: Json, place: str) -> Json:
        call_id = message.get("tool_call_id") if message.get("role") == "tool" else _id_of_function(message)
        content = message.get("content")
        block: Json = {"type": "tool_result", "tool_use_id": self._id_of_result(text_of(call_id))}
        if isinstance(content, str):
            if content.strip():
                block["content"] = content
        elif parts := self._blocks({"content": content}, place, may_lack=True):
            block["content"] = parts
        if marker := dict_of(message.get("cache_control")):
            block["cache_control"] = marker
        return block

    def _fits(self, name: str, most: int, place: str) -> str:
        fits = fit_name(name, most)
        if fits != name and place:
            self._losses.append(place)
        return fits

    # ── content parts
    # ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _texts(self, message: Json, place: str, *, may_lack: bool = False) -> list[Json]:
        """The text blocks of instructions or answers, which accept nothing else."""
        return self._blocks(message, place, may_lack=may_lack, only_text=True)

    def _blocks(self, message: Json, place: str, *, may_lack: bool = False, only_text: bool = False) -> list[Json]:
        blocks: list[Json] = []
        for at, part in enumerate(blocks_of(message.get("content"), f"{place}.content", may_lack=may_lack)):
            where = f"{place}.content[{at}]"
            block = self._block(part, where)
            if block is not None and only_text and block["type"] != "text":
                self._losses.append(where)
            elif block is not None:
                if marker := dict_of(part.get("cache_control")):
                    block["cache_control"] = marker
                blocks.append(block)
        marker = dict_of(message.get("cache_control"))
        if marker and blocks:
            blocks[-1]["cache_control"] = marker
        return blocks

    def _block(self, part: Json, place: str) -> Json | None:
        kind = part.get("type")
        match kind:
            case "text" | "input_text" | "output_text" | "refusal":
                text = text_field(part, "refusal" if kind == "refusal" else "text", place)
                return {"type": "text", "text": text} if text.strip() else None
            case "image_url":
                image = part.get("image_url")
                url = text_of(image) or text_of(dict_of(image).get("url"))
                if dict_of(image).get("detail") not in (None, "auto"):
                    self._losses.append(f"{place}.image_url.detail")
                block = _media_block(url)
            case "file":
                file = dict_of(part.get("file"))
                block = _media_block(text_of(file.get("file_data")))
                if block is not None and block["type"] == "document" and text_of(file.get("filename")):
                    block["title"] = file["filename"]
            case "image" | "document" | "search_result" if part.get("source"):
                block = {name: value for name, value in part.items() if name != "cache_control"}
            case _:
                block = None
        if block is None:
            self._losses.append(place)
        return block


def _go_on() -> Json:
    return {"role": "user", "content": [{"type": "text", "text": CONTINUE_PROMPT}]}


def _id_of_function(function: Json) -> str:
    """The id of a legacy function call, derived from the function name, because such calls have no id."""
    return f"call_{text_of(function.get('name'))}"


def _media_block(url: str) -> Json | None:
    """An image or document block, by URL or with embedded data."""
    if not url.startswith("data:"):
        kind = "document" if url.partition("?")[0].lower().endswith(".pdf") else "image"
        return {"type": kind, "source": {"type": "url", "url": url}} if "://" in url else None
    head, comma, data = url[5:].partition(",")
    media_type, *how = head.lower().split(";")
    if not comma or "base64" not in how:
        return None
    if media_type == "image/jpg":
        media_type = "image/jpeg"
    kind = "document" if media_type == "application/pdf" else "image" if media_type.startswith("image/") else None
    source = {"type": "base64", "media_type": media_type, "data": data}
    return {"type": kind, "source": source} if kind else None
