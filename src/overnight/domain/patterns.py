"""Regular expressions in linear time, for patterns of the brain on texts of models: no text makes a match slow.

Python's syntax, without backreferences, look-around, and atomic or possessive parts. A pattern runs as a set of states, so the
time is at most pattern length times text length; `MAX_STEPS` bounds it further.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

MAX_PATTERN = 1_000
MAX_PROGRAM = 500
MAX_STEPS = 3_000_000
"""Bounds of one pattern: characters, states, and states visited in one text (a few seconds)."""

_SINGLE = {"LITERAL", "NOT_LITERAL", "ANY", "IN"}
_Test = Callable[[str], bool]
_Groups = tuple[int | None, ...]


class PatternTooSlow(Exception):
    """The text needs more steps than `MAX_STEPS`."""


class LinearPattern:
    """A compiled pattern. `groups` are the names of its groups."""

    def __init__(self, text: str) -> None:
        """Raises ValueError with the reason, for a pattern that is invalid, too long or not supported."""
        if len(text) > MAX_PATTERN:
            raise ValueError(f"longer than {MAX_PATTERN:,} characters")
        try:
            re.compile(text)
            parsed: Any = import_module("re._parser").parse(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(str(error)) from None
        self.text = text
        self._names: dict[str, int] = dict(parsed.state.groupdict)
        self.groups = tuple(self._names)
        self._slots = 2 * parsed.state.groups
        self._program: list[tuple[Any, ...]] = []
        self._compile(parsed, parsed.state.flags)
        self._emit("match")

    def find_all(self, text: str, most: int) -> Iterator[tuple[str, dict[str, str]]]:
        """The first `most` matches: the matched text, and the named groups that took part. Raises PatternTooSlow."""
        start, steps = 0, [0]
        for _ in range(most):
            found = self._search(text, start, steps)
            if found is None:
                return
            begin, end = found[0] or 0, found[1] or 0
            spans = {name: (found[2 * at], found[2 * at + 1]) for name, at in self._names.items()}
            yield text[begin:end], {name: text[low:high] for name, (low, high) in spans.items() if low is not None}
            start = end + (end == begin)

    # ── compiling ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _emit(self, *instruction: Any) -> int:
        if len(self._program) >= MAX_PROGRAM:
            raise ValueError("too large: use smaller counts")
        self._program.append(instruction)
        return len(self._program) - 1

    def _compile(self, nodes: Any, flags: int) -> None:
        for op, value in nodes:
            name = str(op)
            if name in _SINGLE:
                self._emit("char", _single(name, value, flags))
            elif name == "AT":
                self._emit("at", _position(str(value), flags))
            elif name == "SUBPATTERN":
                group, added, removed, inside = value
                self._emit("save", 2 * group) if group else None
                self._compile(inside, (flags | added) & ~removed)
                self._emit("save", 2 * group + 1) if group else None
            elif name == "BRANCH":
                self._branch(value[1], flags)
            elif name in {"MAX_REPEAT", "MIN_REPEAT"}:
                self._repeat(*value, is_greedy=name == "MAX_REPEAT", flags=flags)
            else:
                raise ValueError(f"{name.lower().replace('_', ' ')} is not supported: it cannot run in linear time")

    def _branch(self, branches: Sequence[Any], flags: int) -> None:
        ends: list[int] = []
        for at, branch in enumerate(branches):
            is_last = at == len(branches) - 1
            split = -1 if is_last else self._emit("split", 0, 0)
            self._compile(branch, flags)
            if not is_last:
                ends.append(self._emit("jump", 0))
                self._program[split] = ("split", split + 1, len(self._program))
        for end in ends:
            self._program[end] = ("jump", len(self._program))

    def _repeat(self, least: Any, most: Any, inside: Any, *, is_greedy: bool, flags: int) -> None:
        for _ in range(int(least)):
            self._compile(inside, flags)
        if str(most) == "MAXREPEAT":
            split = self._emit("split", 0, 0)
            self._compile(inside, flags)
            self._emit("jump", split)
            self._join(split, is_greedy)
            return
        splits: list[int] = []
        for _ in range(int(most) - int(least)):
            splits.append(self._emit("split", 0, 0))
            self._compile(inside, flags)
        for split in splits:
            self._join(split, is_greedy)

    def _join(self, split: int, is_greedy: bool) -> None:
        into, past = split + 1, len(self._program)
        self._program[split] = ("split", into, past) if is_greedy else ("split", past, into)

    # ── matching ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _search(self, text: str, start: int, steps: list[int]) -> _Groups | None:
        """The leftmost match from `start` on, as positions of groups; alternatives in the order of `re`."""
        empty: _Groups = (None,) * self._slots
        found: _Groups | None = None
        threads: list[tuple[int, _Groups]] = []
        for at in range(start, len(text) + 1):
            if found is None:
                self._follow(threads, text, at, 0, (at, *empty[1:]))
            if not threads:
                if found is not None:
                    break
                continue
            following: list[tuple[int, _Groups]] = []
            seen: set[int] = set()
            steps[0] += len(threads)
            if steps[0] > MAX_STEPS:
                raise PatternTooSlow
            character = text[at] if at < len(text) else None
            for place, groups in threads:
                instruction = self._program[place]
                if instruction[0] == "match":
                    found = (groups[0], at, *groups[2:])
                    break  # threads after it have a lower priority
                if character is not None and instruction[1](character):
                    self._follow(following, text, at + 1, place + 1, groups, seen)
            threads = following
        return found

    def _follow(
        self,
        threads: list[tuple[int, _Groups]],
        text: str,
        at: int,
        place: int,
        groups: _Groups,
        seen: set[int] | None = None,
    ) -> None:
        """Add the states that are reached from `place` without a character, in the order of their priority."""
        seen = {each for each, _ in threads} if seen is None else seen
        waiting = [(place, groups)]
        while waiting:
            place, groups = waiting.pop()
            if place in seen:
                continue
            seen.add(place)
            instruction = self._program[place]
            match instruction[0]:
                case "jump":
                    waiting.append((instruction[1], groups))
                case "split":
                    waiting += [(instruction[2], groups), (instruction[1], groups)]
                case "save":
                    slot = instruction[1]
                    waiting.append((place + 1, (*groups[:slot], at, *groups[slot + 1 :])))
                case "at":
                    if instruction[1](text, at):
                        waiting.append((place + 1, groups))
                case _:
                    threads.append((place, groups))


def _single(name: str, value: Any, flags: int) -> _Test:
    """Whether a character matches a node of one character."""
    if name == "ANY":
        return (lambda _: True) if flags & re.DOTALL else (lambda character: character != "\n")
    items = [(name.removeprefix("NOT_"), value)] if name != "IN" else [(str(op), each) for op, each in value]
    negated = name == "NOT_LITERAL" or items[0][0] == "NEGATE"
    items = [each for each in items if each[0] != "NEGATE"]
    ignores_case, known = bool(flags & re.IGNORECASE), dict[str, bool]()

    def test(character: str) -> bool:
        if (result := known.get(character)) is None:
            forms = {character, character.lower(), character.upper()} if ignores_case else {character}
            result = known[character] = negated != any(_fits(form, *item) for form in forms for item in items)
        return result

    return test


def _fits(character: str, kind: str, value: Any) -> bool:
    if kind == "LITERAL":
        return character == chr(value)
    if kind == "RANGE":
        return len(character) == 1 and value[0] <= ord(character) <= value[1]
    category = str(value).removeprefix("CATEGORY_")
    plain = category.removeprefix("NOT_")
    if plain == "DIGIT":
        found = character.isdecimal()
    elif plain == "SPACE":
        found = character.isspace()
    else:
        found = _is_word(character)
    return found != (plain != category)


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _position(name: str, flags: int) -> Callable[[str, int], bool]:
    """Whether a place in the text fits `^`, `$`, `\\A`, `\\Z`, `\\b` or `\\B`."""
    by_line = bool(flags & re.MULTILINE)

    def boundary(text: str, at: int) -> bool:
        return (at > 0 and _is_word(text[at - 1])) != (at < len(text) and _is_word(text[at]))

    match name:
        case "AT_BEGINNING":
            return lambda text, at: at == 0 or (by_line and text[at - 1] == "\n")
        case "AT_BEGINNING_STRING":
            return lambda _, at: at == 0
        case "AT_END":
            return lambda text, at: at == len(text) or (text[at] == "\n" and (by_line or at == len(text) - 1))
        case "AT_END_STRING":
            return lambda text, at: at == len(text)
        case "AT_NON_BOUNDARY":
            return lambda text, at: not boundary(text, at)
        case _:
            return boundary
