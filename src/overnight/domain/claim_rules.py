"""Rules that compare statements of a final answer with effects: `assert: {effects: [{text, tool}]}`."""

from collections.abc import Iterable
from typing import Any, cast

import msgspec

from .errors import BadInput
from .patterns import LinearPattern

MAX_RULES = 50
TEXT, TOOL = "text", "tool"


class ClaimRule(msgspec.Struct, frozen=True):
    """Each match of the pattern `text` in the final answer needs a committed effect of `tool`, whose arguments equal the named
    groups of the match."""

    text: str
    tool: str


def claim_rules(value: Any, place: str) -> tuple[ClaimRule, ...]:
    """Read the rules that are given with a job: a list of `{text, tool}`. Raises BadInput with the place of a mistake."""
    if not isinstance(value, list) or len(cast(list[Any], value)) > MAX_RULES:
        raise BadInput(f"{place}: expected a list of at most {MAX_RULES} objects with text and tool")
    return tuple(_rule(each, f"{place}[{at}]") for at, each in enumerate(cast(list[Any], value)))


def _rule(value: Any, place: str) -> ClaimRule:
    if not isinstance(value, dict):
        raise BadInput(f"{place}: expected an object with text and tool")
    fields = cast(dict[str, Any], value)
    for name in fields.keys() - {TEXT, TOOL}:
        raise BadInput(f"{place}: unknown field {name[:40]!r}; expected text and tool")
    for name in (TEXT, TOOL):
        if not isinstance(fields.get(name), str) or not fields[name]:
            raise BadInput(f"{place}.{name}: expected a text")
    if (problem := pattern_problem(fields[TEXT])) is not None:
        raise BadInput(f"{place}.text: {problem}")
    return ClaimRule(fields[TEXT], fields[TOOL])


def pattern_problem(text: str) -> str | None:
    """Why a pattern cannot be used; None if it can."""
    try:
        LinearPattern(text)
    except ValueError as error:
        return f"not a usable pattern: {error}"
    return None


def public_rules(rules: Iterable[ClaimRule]) -> list[dict[str, str]]:
    """The rules as JSON, as they are given with a job."""
    return [{TEXT: rule.text, TOOL: rule.tool} for rule in rules]
