"""The parts of a streamed chat choice in the order of the stream, for formats whose parts come one after another.

A chat stream may turn to a call before the text ends, return to text after a call, or write two calls in turns. In messages
and Responses each part has a start, pieces and an end. So a part begins when the one before has ended: text and reasoning end
where something else begins, a call where its arguments are complete.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from overnight.domain.json_text import joined_halves

from .growing_json import GrowingJson, GrowingText
from .lenient_json import Json, dict_of, list_of, text_of

Kind = Literal["thinking", "text", "refusal", "call", "block"]
_REASONING = ("reasoning_content", "reasoning")


class Part:
    """One part. `sent`: how many of its pieces were emitted; `details`: what else the format needs of it."""

    __slots__ = ("at", "call_id", "details", "half", "is_open", "kind", "name", "number", "pieces", "sent")

    def __init__(self, kind: Kind, at: int, number: int) -> None:
        self.kind: Kind = kind
        self.at = at
        """Its place among all parts."""
        self.number = number
        """Its number among the parts of its kind."""
        self.pieces: GrowingText = GrowingJson() if kind == "call" else GrowingText()
        self.call_id = self.name = ""
        self.sent = 0
        self.half = ""
        """The first half of a surrogate pair, which waits for the second one."""
        self.is_open = False
        self.details: dict[str, list[Any]] = {}

    def text(self) -> str:
        return joined_halves("".join(self.pieces))

    def unsent(self, *, ends: bool) -> str:
        """The text since the last call of this. Half of a character waits for the other one, unless the part `ends`."""
        new = len(self.pieces) - self.sent
        if not new:
            return self.half if ends else ""
        piece = self.pieces[-1] if new == 1 else "".join(self.pieces[self.sent :])
        self.sent = len(self.pieces)
        if self.half:
            piece, self.half = self.half + piece, ""
        if not ends and "\ud800" <= piece[-1:] <= "\udbff":
            piece, self.half = piece[:-1], piece[-1]
        return piece

    def is_complete(self) -> bool:
        """Whether another part may begin: a call must have its arguments."""
        return not isinstance(self.pieces, GrowingJson) or (bool(self.pieces.start) and self.pieces.is_complete())

    def is_blank(self) -> bool:
        return self.kind != "call" and not self.details and not any(piece.strip() for piece in self.pieces)


Step = tuple[Literal["open", "piece", "close"], Part, str]


class OrderedParts:
    """Takes chat deltas, whose tool calls a chat `Assembly` has numbered, and yields the steps of the parts.

    `drops_blank`: whether parts of white space only are left out.
    """

    __slots__ = ("_at", "_calls", "_counts", "_drops_blank", "_last_text", "parts")

    def __init__(self, *, drops_blank: bool) -> None:
        self.parts: list[Part] = []
        self._calls: dict[int, Part] = {}
        self._last_text: Part | None = None
        self._counts: dict[str, int] = {}
        self._drops_blank = drops_blank
        self._at = 0
        """The part that is open, or begins next."""

    def take(self, delta: Json) -> Iterator[Step]:
        """Add a delta. Yields what can be emitted by now. Raises ValueError where a call goes on after its end."""
        for name in _REASONING:
            if thought := text_of(delta.get(name)):
                self._add("thinking", thought)
                break
        if blocks := list_of(delta.get("thinking_blocks")):
            self._last("thinking").details.setdefault("thinking_blocks", []).extend(blocks)
        if text := content_text(delta.get("content")):
            self._add("text", text)
        if refusal := text_of(delta.get("refusal")):
            self._add("refusal", refusal)
        if notes := list_of(delta.get("annotations")):
            self._annotate(notes)
        for position, call in enumerate(list_of(delta.get("tool_calls"))):
            self._add_call(dict_of(call), position)
        if function := dict_of(delta.get("function_call")):
            self._add_call({"index": 0, "function": function}, 0)
        return self._steps(is_over=False)

    def grow_text(self, delta: Json) -> Part | None:
        """Add a delta that only goes on with the open text, as most do. Returns its part; None for any other delta, which is
        not added."""
        text: Any = delta.get("content")
        at = self._at
        if len(delta) != 1 or type(text) is not str or not text or at != len(self.parts) - 1:
            return None
        part = self.parts[at]
        if part.kind != "text" or not part.is_open or part.half or "\ud800" <= text[-1] <= "\udbff":
            return None
        part.pieces.append(text)
        part.sent += 1
        return part

    def add_block(self, block: Json) -> None:
        """Add a part that is whole."""
        self._begin("block").details["block"] = [block]

    def end(self) -> Iterator[Step]:
        """The remaining steps, once the stream is over."""
        return self._steps(is_over=True)

    def shown(self) -> list[Part]:
        """The parts that are emitted."""
        return [part for part in self.parts if part.is_open or self._may_open(part, is_over=True)]

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _last(self, kind: Kind) -> Part:
        """The last part if it is of this kind, else a new one."""
        if self.parts and self.parts[-1].kind == kind:
            return self.parts[-1]
        if kind == "text" and self._drops_blank and self.parts and self.parts[-1].kind == "refusal":
            return self.parts[-1]
        return self._begin(kind)

    def _begin(self, kind: Kind) -> Part:
        number = self._counts.get(kind, 0)
        self._counts[kind] = number + 1
        part = Part(kind, len(self.parts), number)
        self.parts.append(part)
        if kind == "text":
            self._last_text = part
        return part

    def _add(self, kind: Kind, piece: str) -> None:
        self._last(kind).pieces.append(piece)

    def _annotate(self, notes: list[Any]) -> None:
        if self._last_text is not None:
            self._last_text.details.setdefault("annotations", []).extend(notes)

    def _add_call(self, fragment: Json, position: int) -> None:
        index = fragment.get("index")
        index = index if isinstance(index, int) else position
        part = self._calls.get(index)
        if part is None:
            part = self._calls[index] = self._begin("call")
        function = dict_of(fragment.get("function"))
        part.call_id = part.call_id or text_of(fragment.get("id"))
        part.name += text_of(function.get("name"))
        piece = text_of(function.get("arguments"))
        if not piece:
            return
        if self._at > part.at:
            if piece.strip():
                raise ValueError("the arguments of a call go on after their end")
            return
        part.pieces.append(piece)
        if isinstance(part.pieces, GrowingJson):
            part.pieces.ends_with(piece)

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _steps(self, *, is_over: bool) -> Iterator[Step]:
        while self._at < len(self.parts):
            part = self.parts[self._at]
            has_next = self._at + 1 < len(self.parts)
            if not part.is_open:
                if not self._may_open(part, is_over=is_over):
                    if not (is_over or (has_next and part.kind != "call")):
                        return
                    self._at += 1  # blank
                    continue
                part.is_open = True
                yield "open", part, ""
            ends = is_over or (has_next and part.is_complete())
            if piece := part.unsent(ends=ends):
                yield "piece", part, piece
            if not ends:
                return
            yield "close", part, ""
            self._at += 1

    def _may_open(self, part: Part, *, is_over: bool) -> bool:
        if part.kind == "call":
            # The name may come in fragments, until the arguments begin.
            return bool(part.name) and (is_over or (isinstance(part.pieces, GrowingJson) and bool(part.pieces.start)))
        return not (self._drops_blank and part.is_blank())


def content_text(content: Any) -> str:
    """The text of a message's content, or of a fragment of it."""
    if isinstance(content, str):
        return content
    return "".join(text_of(dict_of(part).get("text")) for part in list_of(content))
