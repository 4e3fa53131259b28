"""Statements of a final answer, compared with effects. Pure."""

from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from overnight.domain.claim_rules import ClaimRule
from overnight.domain.patterns import LinearPattern, PatternTooSlow

from .records import OPEN, CheckedClaim, EffectEntry

MAX_TEXT, MAX_PER_RULE, MAX_CANDIDATES = 100_000, 100, 50


class AnswerStatement(msgspec.Struct):
    """One match of a rule. `candidates`: keys of effects with these arguments. `is_read`: False if the text took too long."""

    rule: ClaimRule
    text: str
    groups: dict[str, str]
    is_read: bool = True
    candidates: dict[str, None] = {}


def find_statements(rules: Iterable[ClaimRule], text: str) -> list[AnswerStatement]:
    """The statements in a text, each once."""
    found: dict[tuple[Any, ...], AnswerStatement] = {}
    for rule in rules:
        try:
            for matched, groups in LinearPattern(rule.text).find_all(text[:MAX_TEXT], MAX_PER_RULE):
                # Without groups, one effect of the tool supports all matches of the rule.
                known = sorted((name, _plain(value)) for name, value in groups.items())
                found.setdefault((rule, *known), AnswerStatement(rule, matched, groups))
        except PatternTooSlow:
            found[(rule,)] = AnswerStatement(rule, "", {}, is_read=False)
        except ValueError:
            continue  # a pattern of another version; `overnight check` reports it
    return list(found.values())


class ClaimChecker:
    """Finds the effects with the arguments of each statement, one recorded request at a time."""

    def __init__(self, statements: Iterable[AnswerStatement]) -> None:
        self._statements = list(statements)
        self.tools = frozenset(statement.rule.tool for statement in self._statements)

    def add(self, effect_key: str, tool: str, arguments: Mapping[str, Any]) -> None:
        """Take the arguments of an effect; a later call, such as after an edit, replaces earlier ones."""
        for statement in self._statements:
            if statement.rule.tool != tool:
                continue
            statement.candidates.pop(effect_key, None)
            fits = all(name in arguments and _equals(arguments[name], text) for name, text in statement.groups.items())
            if fits and len(statement.candidates) < MAX_CANDIDATES:
                statement.candidates[effect_key] = None

    def candidates(self) -> list[str]:
        """The keys of the effects of all statements, whose entries `verdicts` needs."""
        return [*dict.fromkeys(key for statement in self._statements for key in statement.candidates)]

    def verdicts(self, entries: Mapping[str, EffectEntry]) -> list[CheckedClaim]:
        return [_verdict(statement, entries) for statement in self._statements]


def _verdict(statement: AnswerStatement, entries: Mapping[str, EffectEntry]) -> CheckedClaim:
    found = [entries[key] for key in statement.candidates if key in entries]
    committed = [each for each in found if each.state == "committed"]
    # What Overnight knows by itself is the better evidence.
    supporting = min(committed, key=lambda each: each.found_by == "reported", default=None)
    waiting = next((each for each in found if each.state in OPEN), None)
    chosen = supporting or waiting
    return CheckedClaim(
        text=statement.text,
        tool=statement.rule.tool,
        verdict="unchecked"
        if not statement.is_read
        else "supported"
        if supporting
        else "pending"
        if waiting
        else "unsupported",
        arguments=statement.groups,
        effect_id=chosen.effect_id if chosen is not None else None,
        found_by=chosen.found_by if chosen is not None else None,
    )


def _equals(value: Any, text: str) -> bool:
    """Whether an argument is what the text says: the same text, or the same number; a sentence may end with it."""
    plain = _plain(text)
    return _is_same(value, text) or (plain != text and _is_same(value, plain))


def _plain(text: str) -> str:
    return text.rstrip(".,;:!?)")


def _is_same(value: Any, text: str) -> bool:
    if isinstance(value, bool) or value is None:
        return text.lower() == msgspec.json.encode(value).decode()
    if isinstance(value, str) and value == text:
        return True
    if isinstance(value, (int, float, str)):
        try:
            return Decimal(str(value)) == Decimal(text.replace(",", ""))
        except InvalidOperation:
            return False
    return False
