"""Convert Responses items to chat messages.

Messages are converted or rejected, never omitted. Calls of provider-executed tools are reported as losses; the
message after them contains their outcome.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from .contract import InvalidBody, Json, Losses
from .dialects import names_model
from .gemini_signatures import split_packed
from .messages_over_chat_turns import TOOL_MEDIA_INTRO
from .responses_answer import unpack_thinking
from .responses_history import ordered
from .responses_tools import function_name
from .validation import unsupported_content

_encode = msgspec.json.Encoder().encode
_TRACES = frozenset({
    "code_interpreter_call",
    "file_search_call",
    "image_generation_call",
    "mcp_call",
    "mcp_list_tools",
    "tool_search_call",
    "tool_search_output",
    "web_search_call",
})  # fmt: skip
_DETAILS = frozenset({"auto", "low", "high"})
_FILE = ("file_data", "file_id", "filename")


def messages(body: Json, losses: Losses) -> list[Json]:
    """The conversation of a request. Raises InvalidBody for items without a chat equivalent."""
    given = body["input"]
    thread = _Thread(str(body.get("model")), losses)
    if body.get("instructions"):
        thread.messages.append({"role": "system", "content": body["instructions"]})
    if isinstance(given, str):
        thread.messages.append({"role": "user", "content": given})
        return thread.messages
    messages_before = len(thread.messages)
    for place, item in ordered(cast("list[Json]", given), losses):
        thread.where = f"input[{place}]"
        try:
            thread.take(item)
        except KeyError as error:
            raise InvalidBody(f"{thread.where}: required field {error.args[0]} is missing", thread.where) from None
        except (TypeError, AttributeError):
            raise InvalidBody(f"{thread.where}: a field has the wrong type", thread.where) from None
    if len(thread.messages) == messages_before:
        raise unsupported_content("input")
    return thread.messages


def move_tool_media(thread: list[Json]) -> list[Json]:
    """Move images and files of tool results to a user message after the results, because a chat result holds only text.

    The given messages are changed.
    """
    out: list[Json] = []
    media: list[Json] = []
    for message in thread:
        if message["role"] == "tool":
            media += _take_media(message)
        elif media:
            out.append({"role": "user", "content": [{"type": "text", "text": TOOL_MEDIA_INTRO}, *media]})
            media = []
            if message["role"] == "user":
                content = message["content"]
                out[-1]["content"] += [{"type": "text", "text": content}] if isinstance(content, str) else content
                continue
        out.append(message)
    if media:
        out.append({"role": "user", "content": [{"type": "text", "text": TOOL_MEDIA_INTRO}, *media]})
    return out


def _take_media(message: Json) -> list[Json]:
    """Remove all parts but text from a tool result, and return them."""
    parts = cast("list[Json]", message["content"]) if isinstance(message["content"], list) else []
    media = [part for part in parts if part["type"] != "text"]
    if media:
        message["content"] = "\n".join(part["text"] for part in parts if part["type"] == "text")
    return media


class _Thread:
    """Messages under construction: the text and the calls of one assistant turn become one message."""

    def __init__(self, model: str, losses: Losses) -> None:
        self.messages: list[Json] = []
        self.where = "input"
        self._model, self._losses = model, losses

    def take(self, item: Json) -> None:
        kind = item.get("type") or "message"
        if kind == "message":
            self._message(item)
        elif kind == "function_call":
            self._call(item, item["arguments"])
        elif kind == "custom_tool_call":
            self._call(item, _encode({"input": item["input"]}).decode())
        elif kind in ("function_call_output", "custom_tool_call_output"):
            content = self._content(item["output"], "output")
            self.messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
        elif kind == "reasoning":
            self._reasoning(item)
        elif kind in _TRACES:
            self._losses.append(f"{self.where} ({kind})")
        else:
            raise InvalidBody(f"{self.where}: the target's API does not support {kind}; remove it", self.where)

    def _message(self, item: Json) -> None:
        role = item["role"]
        if role != "assistant":
            # `developer` is OpenAI's name for `system`.
            role = "system" if role == "developer" else role
            self.messages.append({"role": role, "content": self._content(item["content"], "content")})
            return
        parts = cast("list[Json]", item["content"]) if isinstance(item["content"], list) else []
        refusal = "".join(part["refusal"] for part in parts if part.get("type") == "refusal")
        text = item["content"] if isinstance(item["content"], str) else ""
        text += "".join(self._text(part) for part in parts if part.get("type") != "refusal")
        turn = self._turn()
        if turn.get("content"):
            if turn.get("tool_calls"):
                text = f"{turn['content']}\n\n{text}"
            else:
                turn = self._turn(fresh=True)
        turn["content"] = text or None
        if refusal:
            turn["refusal"] = refusal

    def _text(self, part: Json) -> str:
        if part["type"] not in ("output_text", "input_text", "text"):
            raise InvalidBody(
                f"{self.where}.content: assistant content must be output_text or refusal", f"{self.where}.content"
            )
        return part["text"]

    def _call(self, item: Json, arguments: str) -> None:
        call: Json = {"id": item["call_id"], "type": "function"}
        name = function_name(item.get("namespace"), item["name"])
        call["function"] = {"name": name, "arguments": arguments}
        self._turn().setdefault("tool_calls", []).append(call)

    def _reasoning(self, item: Json) -> None:
        packed = unpack_thinking(item.get("encrypted_content")) or []
        blocks = [block for block in packed if block.get("model") is None or names_model(block["model"], self._model)]
        text = "".join(part["text"] for part in cast("list[Json]", item.get("content") or ()))
        if len(blocks) < len(packed) or not (blocks or text):
            # Reasoning of another model or provider, or a summary: no other model can use it.
            self._losses.append(f"{self.where} (reasoning)")
            return
        turn = self._turn()
        if turn.get("content") and not turn.get("tool_calls") and not split_packed(blocks)[1]:
            turn = self._turn(fresh=True)
        if text:
            turn["reasoning_content"] = turn.get("reasoning_content", "") + text
        if blocks:
            turn["thinking_blocks"] = [*turn.get("thinking_blocks", ()), *blocks]

    def _turn(self, *, fresh: bool = False) -> Json:
        """The assistant message under construction."""
        if not fresh and self.messages and self.messages[-1]["role"] == "assistant":
            return self.messages[-1]
        turn: Json = {"role": "assistant", "content": None}
        self.messages.append(turn)
        return turn

    def _content(self, content: Any, name: str) -> str | list[Json]:
        if isinstance(content, str):
            return content
        parts = [self._part(part, f"{self.where}.{name}[{n}]") for n, part in enumerate(cast("list[Json]", content))]
        # Some servers reject a list of parts.
        return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts

    def _part(self, part: Json, where: str) -> Json:
        kind = part["type"]
        if kind in ("input_text", "output_text", "text"):
            return {"type": "text", "text": part["text"]}
        if kind == "input_image" and part.get("image_url"):
            image: Json = {"url": part["image_url"]}
            if part.get("detail") in _DETAILS:
                image["detail"] = part["detail"]
            elif part.get("detail"):
                self._losses.append(f"{where}.detail")
            return {"type": "image_url", "image_url": image}
        if kind == "input_file" and (part.get("file_data") or part.get("file_id")):
            return {"type": "file", "file": {key: part[key] for key in _FILE if part.get(key)}}
        if kind == "input_audio":
            return {"type": "input_audio", "input_audio": part["input_audio"]}
        raise InvalidBody(
            f"{where}: the target's API does not support {kind} in this form; send text, or the data itself", where
        )
