"""Responses items → chat messages. What was said is carried over or refused, never left out; what the provider's own tools left
in the history is named in the losses, since the message after it says what came of it."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from .contract import InvalidBody, Json, Losses
from .dialects import is_of
from .messages_over_chat_turns import SHOWN
from .responses_answer import unsealed
from .validation import nothing_left

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
    """The conversation of a request. Raises InvalidBody for what a chat cannot hold."""
    said = body["input"]
    thread = _Thread(str(body.get("model")), losses)
    if body.get("instructions"):
        thread.messages.append({"role": "system", "content": body["instructions"]})
    if isinstance(said, str):
        thread.messages.append({"role": "user", "content": said})
        return thread.messages
    begun = len(thread.messages)
    for place, item in enumerate(cast("list[Json]", said)):
        thread.where = f"input[{place}]"
        try:
            thread.take(item)
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidBody(f"{thread.where}: {error} is missing or of an unknown shape", thread.where) from None
    if len(thread.messages) == begun:
        raise nothing_left("input")
    return thread.messages


def showing(thread: list[Json]) -> list[Json]:
    """The conversation with what the tools showed in the user's message after their results: in a result, chat takes only text.
    The messages given are changed."""
    out: list[Json] = []
    shown: list[Json] = []
    for message in thread:
        if message["role"] == "tool":
            shown += _shown_by(message)
        elif shown:
            out.append({"role": "user", "content": [{"type": "text", "text": SHOWN}, *shown]})
            shown = []
            if message["role"] == "user":
                said = message["content"]
                out[-1]["content"] += [{"type": "text", "text": said}] if isinstance(said, str) else said
                continue
        out.append(message)
    if shown:
        out.append({"role": "user", "content": [{"type": "text", "text": SHOWN}, *shown]})
    return out


def _shown_by(message: Json) -> list[Json]:
    """What is no text is taken out of the result of a tool."""
    parts = cast("list[Json]", message["content"]) if isinstance(message["content"], list) else []
    shown = [part for part in parts if part["type"] != "text"]
    if shown:
        message["content"] = "\n".join(part["text"] for part in parts if part["type"] == "text")
    return shown


class _Thread:
    """Messages as they grow: what the model said and called in one turn is one message."""

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
            raise InvalidBody(f"{self.where}: this model's API has no form for {kind}; leave it out", self.where)

    def _message(self, item: Json) -> None:
        role = item["role"]
        if role != "assistant":
            # `developer` is `system` by another name, and only OpenAI knows it.
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
                f"{self.where}.content: an assistant says output_text or refusal", f"{self.where}.content"
            )
        return part["text"]

    def _call(self, item: Json, arguments: str) -> None:
        call: Json = {"id": item["call_id"], "type": "function"}
        call["function"] = {"name": item["name"], "arguments": arguments}
        self._turn().setdefault("tool_calls", []).append(call)

    def _reasoning(self, item: Json) -> None:
        told = unsealed(item.get("encrypted_content")) or []
        blocks = [block for block in told if block.get("model") is None or is_of(block["model"], self._model)]
        text = "".join(part["text"] for part in cast("list[Json]", item.get("content") or ()))
        if len(blocks) < len(told) or not (blocks or text):
            # Another model's, sealed by another provider, or a summary: nobody else can think on from it.
            self._losses.append(f"{self.where} (reasoning)")
            return
        turn = self._turn()
        if turn.get("content") and not turn.get("tool_calls"):
            turn = self._turn(fresh=True)
        if text:
            turn["reasoning_content"] = turn.get("reasoning_content", "") + text
        if blocks:
            turn["thinking_blocks"] = [*turn.get("thinking_blocks", ()), *blocks]

    def _turn(self, *, fresh: bool = False) -> Json:
        """The message of the model that is being put together."""
        if not fresh and self.messages and self.messages[-1]["role"] == "assistant":
            return self.messages[-1]
        turn: Json = {"role": "assistant", "content": None}
        self.messages.append(turn)
        return turn

    def _content(self, content: Any, name: str) -> str | list[Json]:
        if isinstance(content, str):
            return content
        parts = [self._part(part, f"{self.where}.{name}[{n}]") for n, part in enumerate(cast("list[Json]", content))]
        # Not every server takes a list of parts.
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
        raise InvalidBody(f"{where}: this model's API cannot be given {kind} so; send text, or the data itself", where)
