"""YAML as plain nodes with line numbers, within limits for any input.

Built from parse events instead of a loader's objects. A loader converts 0.75 to a float before its digits can be
read, drops the lines of keys, and exhausts stack or memory on deep nesting or recursive aliases.
"""

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from overnight.brain.problems import Problem, clipped

MAX_DEPTH = 64
MAX_NODES = 50_000  # aliases count once per use

ScalarKind = Literal["text", "int", "float", "bool", "null", "other"]


class Scalar(msgspec.Struct, frozen=True):
    """A scalar as written. `kind` is its YAML 1.2 type; `quoted` distinguishes "0.75" from 0.75."""

    line: int
    column: int
    text: str
    kind: ScalarKind
    quoted: bool = False
    size: int = 1


class Items(msgspec.Struct, frozen=True):
    """A list."""

    line: int
    column: int
    items: "tuple[Node, ...]"
    size: int


class Entries(msgspec.Struct, frozen=True):
    """A mapping: key text → (the key's own node, the value)."""

    line: int
    column: int
    entries: "dict[str, tuple[Scalar, Node]]"
    size: int


Node = Scalar | Items | Entries

_KINDS: dict[str, ScalarKind] = {
    "tag:yaml.org,2002:str": "text",
    "tag:yaml.org,2002:int": "int",
    "tag:yaml.org,2002:float": "float",
    "tag:yaml.org,2002:bool": "bool",
    "tag:yaml.org,2002:null": "null",
}


class _Stop(Exception):
    """The rest of the document cannot be read."""

    def __init__(self, line: int, column: int, message: str, hint: str = "") -> None:
        self.line, self.column, self.message, self.hint = line, column, message, hint
        super().__init__(message)


class _Composer:
    """Builds nodes from parse events, and collects problems that do not prevent reading the rest."""

    def __init__(self, file: str, first_line: int) -> None:
        from ruamel.yaml import YAML  # imported here: commands that read no brain save 25 ms
        from ruamel.yaml.nodes import ScalarNode

        self.yaml: Any = YAML(typ="safe", pure=True)
        self.scalar_node: Any = ScalarNode
        self.file = file
        self.first_line = first_line
        self.problems: list[Problem] = []
        self.anchors: dict[str, Node] = {}
        self.count = 0
        self.events: Iterator[Any] = iter(())

    def document(self, text: str) -> Node | None:
        self.events = self.yaml.parse(text)
        root: Node | None = None
        started = False
        for event in self.events:
            kind = type(event).__name__
            if kind == "DocumentStartEvent":
                if started:
                    raise _Stop(*self.place(event), "a second document starts here", "one document per file")
                started = True
            elif kind not in ("StreamStartEvent", "DocumentEndEvent", "StreamEndEvent"):
                root = self.node(event, 0)
        return root

    def place(self, event: Any) -> tuple[int, int]:
        return event.start_mark.line + self.first_line, event.start_mark.column + 1

    def problem(self, place: tuple[int, int], message: str, hint: str = "") -> None:
        self.problems.append(Problem(self.file, place[0], place[1], message, hint))

    def node(self, event: Any, depth: int) -> Node:
        place = self.place(event)
        if depth > MAX_DEPTH:
            raise _Stop(*place, f"nested deeper than {MAX_DEPTH} levels")
        kind = type(event).__name__
        if kind == "AliasEvent":
            found = self.anchors.get(event.anchor)
            if found is None:
                raise _Stop(*place, f"the alias *{event.anchor} has no finished anchor &{event.anchor} before it")
            self.grow(found.size, place)
            return found
        self.grow(1, place)
        if event.ctag is not None:
            self.problem(place, f"tags such as {clipped(str(event.ctag))} are not supported", "write the plain value")
        if kind == "ScalarEvent":
            node = self.scalar(event, place)
        elif kind == "SequenceStartEvent":
            node = self.items(place, depth)
        else:
            node = self.entries(place, depth)
        if event.anchor is not None:
            # Defined only now, since an alias inside its own anchor would be a cycle.
            self.anchors[event.anchor] = node
        return node

    def grow(self, by: int, place: tuple[int, int]) -> None:
        self.count += by
        if self.count > MAX_NODES:
            raise _Stop(*place, f"more than {MAX_NODES:,} values in one file", "split the file")

    def scalar(self, event: Any, place: tuple[int, int]) -> Scalar:
        text: str = event.value
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _Stop(*place, "an escape in this text is half a character (a lone surrogate)") from None
        quoted = event.style is not None
        tag = str(self.yaml.resolver.resolve(self.scalar_node, text, (not quoted, quoted)))
        return Scalar(place[0], place[1], text, _KINDS.get(tag, "other"), quoted)

    def items(self, place: tuple[int, int], depth: int) -> Items:
        before = self.count
        items: list[Node] = []
        for event in self.events:
            if type(event).__name__ == "SequenceEndEvent":
                break
            items.append(self.node(event, depth + 1))
        return Items(*place, tuple(items), self.count - before + 1)

    def entries(self, place: tuple[int, int], depth: int) -> Entries:
        before = self.count
        entries: dict[str, tuple[Scalar, Node]] = {}
        for event in self.events:
            if type(event).__name__ == "MappingEndEvent":
                break
            at = self.place(event)
            key = self.node(event, depth + 1)
            value = self.node(next(self.events), depth + 1)
            if isinstance(value, Scalar) and value.kind == "null" and not value.text:
                # The parser places an omitted value at the next token.
                value = Scalar(at[0], at[1], "", "null")
            if not isinstance(key, Scalar):
                self.problem(at, "a key must be a single word or string", "lists and mappings cannot be keys")
            elif key.text in entries:
                first = entries[key.text][0].line
                self.problem(at, f"the key {clipped(key.text)} appears twice", f"first on line {first}; keep one")
            else:
                entries[key.text] = (key, value)
        return Entries(*place, entries, self.count - before + 1)


def parse_yaml(file: str, text: str, first_line: int = 1) -> tuple[Node | None, list[Problem]]:
    """Parse `text` to nodes, with all YAML problems. The node is None for an empty or unreadable document.

    Never raises: at most `MAX_NODES` values, `MAX_DEPTH` levels, one document, no tags.
    """
    composer = _Composer(file, first_line)
    try:
        root = composer.document(text)
    except _Stop as stop:
        root = None
        composer.problem((stop.line, stop.column), stop.message, stop.hint)
    except Exception as error:
        # Not only YAMLError: the parser raises OverflowError and others for some damaged escapes and directives.
        root = None
        composer.problem(_error_place(error, text, first_line), f"this is not valid YAML: {_reason(error)}")
    return root, composer.problems


def _error_place(error: Any, text: str, first_line: int) -> tuple[int, int]:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        return mark.line + first_line, mark.column + 1
    position = getattr(error, "position", None)
    if isinstance(position, int):
        return text_place(text, position, first_line)
    return first_line, 1


def _reason(error: Any) -> str:
    # The parser's own rendering quotes the line, which may contain a secret.
    parts = [getattr(error, "context", None), getattr(error, "problem", None) or getattr(error, "reason", None)]
    reason = ", ".join(str(part) for part in parts if part)
    return reason or type(error).__name__


def text_place(text: str, position: int, first_line: int = 1) -> tuple[int, int]:
    """The line and column of a character position, counted from 1."""
    return text.count("\n", 0, position) + first_line, position - text.rfind("\n", 0, position)
