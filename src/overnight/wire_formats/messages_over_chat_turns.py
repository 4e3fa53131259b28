"""Convert the conversation of a messages request to chat messages."""

from __future__ import annotations

from typing import Any

import msgspec

from .chat_over_messages_turns import UNSIGNED_PREFIX
from .contract import Losses
from .dialects import names_model
from .gemini_signatures import packed_block
from .identifiers import CHAT_ID, CHAT_NAME, fit_name
from .lenient_json import (
    Json,
    dict_of,
    dicts_of,
    text_of,
)
from .validation import (
    blocks_of,
    role_of,
    text_field,
    unsupported_content,
)

_encode = msgspec.json.Encoder().encode
_SEEN = frozenset({"type", "text", "cache_control"})
_ROLES = ("user", "assistant", "system")
_FAILED = "Error: "
SUMMARY_INTRO = "Summary of the conversation so far:\n"
TOOL_MEDIA_INTRO = "What the tool showed:"
"""The text before images of a tool result, in the user message after the result."""


class Conversation:
    """Builds `messages` from the turns that are added.

    `markers`: whether the target accepts `cache_control`.

    Raises:
        InvalidBody: a turn cannot be read, or `end` finds no content at all or none in the last user turn.
    """

    def __init__(self, model: str, losses: Losses, *, markers: bool) -> None:
        self.messages: list[Json] = []
        self.markers = markers
        self._model, self._losses = model, losses
        self._unread = ""

    def begin(self, system: Any) -> None:
        parts = self._texts(blocks_of(system, "system", may_lack=True), "system")
        if parts:
            self.messages.append({"role": "system", "content": self._content(parts)})

    def add(self, message: Json, place: str) -> None:
        role = role_of(message, _ROLES, place)
        blocks = blocks_of(message.get("content"), f"{place}.content")
        self._unread = ""
        match role:
            case "assistant":
                self._add_answer(blocks, place)
            case "system":
                if parts := self._texts(blocks, f"{place}.content"):
                    self.messages.append({"role": "system", "content": self._content(parts)})
            case _:
                self._add_user(blocks, place)

    def end(self, place: str) -> None:
        """Finish the conversation after its last turn."""
        if self._unread or all(message["role"] == "system" for message in self.messages):
            raise unsupported_content(self._unread or place)

    # ── user turns
    # ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _add_user(self, blocks: list[Json], place: str) -> None:
        """Add a user turn. Tool results come first, since they must follow the calls. Images of a result move to the
        user message, because a chat result holds only text.
        """
        media: list[Json] = []
        user_parts: list[Json] = []
        before, lost = len(self.messages), len(self._losses)
        for at, block in enumerate(blocks):
            where = f"{place}.content[{at}]"
            if block.get("type") == "tool_result":
                media += self._add_result(block, where)
            else:
                user_parts += self._parts(block, where)
        if media:
            user_parts = [{"type": "text", "text": TOOL_MEDIA_INTRO}, *media, *user_parts]
        if user_parts:
            self.messages.append({"role": "user", "content": self._content(user_parts)})
        elif len(self.messages) == before and len(self._losses) > lost:
            self._unread = f"{place}.content"

    def _add_result(self, block: Json, place: str) -> list[Json]:
        texts: list[str] = []
        media: list[Json] = []
        for at, inner in enumerate(blocks_of(block.get("content"), f"{place}.content", may_lack=True)):
            for part in self._parts(inner, f"{place}.content[{at}]"):
                if part["type"] == "text":
                    texts.append(part["text"])
                else:
                    media.append(part)
        text = "\n".join(texts)
        if block.get("is_error") and not text.lower().startswith("error"):
            text = _FAILED + text
        self._drop_marker(block, place)
        call_id = self._fits(text_of(block.get("tool_use_id")), CHAT_ID, "")
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": text})
        return media

    def _parts(self, block: Json, place: str) -> list[Json]:
        """Convert a block to message parts. A block without an equivalent is added to the losses."""
        kind = block.get("type")
        source = dict_of(block.get("source"))
        found: list[Json] = []
        match kind:
            case "text":
                if block.get("citations"):
                    self._losses.append(f"{place}.citations")
                text = text_field(block, "text", place)
                found = [{"type": "text", "text": text}] if text else []
            case "image" if source.get("type") == "url":
                found = [{"type": "image_url", "image_url": {"url": text_of(source.get("url"))}}]
            case "image" if source.get("type") == "base64":
                found = [{"type": "image_url", "image_url": {"url": _data_url(source)}}]
            case "document":
                found = self._document(block, source, place)
            case "search_result":
                head = "\n".join(filter(None, (text_of(block.get("title")), text_of(block.get("source")))))
                texts = [text_of(each.get("text")) for each in dicts_of(block.get("content"))]
                found = [{"type": "text", "text": "\n".join([head, *texts])}]
            case _:
                self._losses.append(place)
                return []
        if not found and kind != "text":
            self._losses.append(place)
        if found and self.markers and dict_of(block.get("cache_control")):
            found[-1]["cache_control"] = block["cache_control"]
        else:
            self._drop_marker(block, place)
        return found

    def _document(self, block: Json, source: Json, place: str) -> list[Json]:
        head = "\n".join(filter(None, (text_of(block.get("title")), text_of(block.get("context")))))
        titled = [{"type": "text", "text": head}] if head else []
        match source.get("type"):
            case "text":
                return [{"type": "text", "text": "\n".join(filter(None, (head, text_of(source.get("data")))))}]
            case "base64":
                name = text_of(block.get("title")) or "document.pdf"
                return [{"type": "file", "file": {"filename": name, "file_data": _data_url(source)}}]
            case "content":
                inner = blocks_of(source.get("content"), f"{place}.source.content")
                parts = [self._parts(each, f"{place}.source.content[{at}]") for at, each in enumerate(inner)]
                return [*titled, *(part for each in parts for part in each)]
            case _:
                return []

    # ── assistant turns
    # ───────────────────────────────────────────────────────────────────────────────────────────────

    def _add_answer(self, blocks: list[Json], place: str) -> None:
        texts: list[Json] = []
        calls: list[Json] = []
        thoughts: list[str] = []
        signed: list[Json] = []
        for at, block in enumerate(blocks):
            where = f"{place}.content[{at}]"
            match block.get("type"):
                case "text":
                    texts += self._parts(block, where)
                case "tool_use":
                    self._drop_marker(block, where)
                    calls.append(self._call(block, where))
                case "compaction" if text_of(block.get("content")):
                    # Anthropic reads it in place of all that came before.
                    texts.append({"type": "text", "text": f"{SUMMARY_INTRO}{text_of(block['content'])}\n\n"})
                case "thinking" if _is_own_thought(text_of(block.get("signature")), self._model):
                    thoughts.append(text_of(block.get("thinking")))
                case "thinking" if (packed := packed_block(text_of(block.get("signature")))) is not None:
                    signed.append(packed)
                case _:
                    self._losses.append(where)
        if not texts and not calls:
            return
        # Citations split one text into several blocks, so the blocks are joined without a separator.
        marked = any("cache_control" in each for each in texts)
        text: Any = texts if marked else "".join(each["text"] for each in texts)
        message: Json = {"role": "assistant", "content": text or None}
        if thoughts:
            message["reasoning_content"] = "".join(thoughts)
        if signed:
            message["thinking_blocks"] = signed
        if calls:
            message["tool_calls"] = calls
        before = self.messages[-1] if self.messages else {}
        if before.get("role") == "assistant":
            _join(before, message)  # a result must follow its call, and some servers reject two turns in a row
        else:
            self.messages.append(message)

    def _call(self, block: Json, place: str) -> Json:
        name = self._fits(text_of(block.get("name")), CHAT_NAME, f"{place}.name")
        if not isinstance(block.get("input"), dict):
            self._losses.append(f"{place}.input")
        arguments = _encode(dict_of(block.get("input"))).decode()
        call_id = self._fits(text_of(block.get("id")), CHAT_ID, f"{place}.id")
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}

    # ── content parts
    # ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _texts(self, blocks: list[Json], place: str) -> list[Json]:
        """The text parts of instructions, which accept nothing else."""
        parts: list[Json] = []
        for at, block in enumerate(blocks):
            found = self._parts(block, f"{place}[{at}]")
            parts += [each for each in found if each["type"] == "text"]
            if any(each["type"] != "text" for each in found):
                self._losses.append(f"{place}[{at}]")
        return parts

    def _content(self, parts: list[Json]) -> Any:
        """The content as one string where possible, since some chat servers reject a list of parts."""
        if all(each.keys() == {"type", "text"} for each in parts):
            return "\n".join(each["text"] for each in parts)
        return parts

    def _drop_marker(self, block: Json, place: str) -> None:
        if dict_of(block.get("cache_control")):
            self._losses.append(f"{place}.cache_control")

    def _fits(self, name: str, most: int, place: str) -> str:
        fits = fit_name(name, most)
        if fits != name and place:
            self._losses.append(place)
        return fits


def _join(before: Json, message: Json) -> None:
    """Add an assistant turn to the one before."""
    contents = [each["content"] for each in (before, message) if each.get("content")]
    if all(isinstance(each, str) for each in contents):
        before["content"] = "\n".join(contents) or None
    else:
        lists = [[{"type": "text", "text": each}] if isinstance(each, str) else each for each in contents]
        before["content"] = [part for parts in lists for part in parts]
    if message.get("reasoning_content"):
        before["reasoning_content"] = before.get("reasoning_content", "") + message["reasoning_content"]
    if message.get("tool_calls"):
        before["tool_calls"] = [*before.get("tool_calls", ()), *message["tool_calls"]]


def _data_url(source: Json) -> str:
    return f"data:{text_of(source.get('media_type'))};base64,{text_of(source.get('data'))}"


def _is_own_thought(signature: str, model: str) -> bool:
    """Whether a signature marks reasoning that this model produced in the chat format."""
    return signature.startswith(UNSIGNED_PREFIX) and names_model(signature.removeprefix(UNSIGNED_PREFIX), model)
