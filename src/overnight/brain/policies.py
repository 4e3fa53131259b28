"""Read policies/*.yaml: rules about tool calls."""

from typing import Any

import msgspec

from overnight.domain.globs import Names
from overnight.domain.tools import (
    ALLOW,
    APPROVE,
    DEFAULT_EXPIRES_MS,
    TOOL_CLASSES,
    VERDICTS,
    Sampling,
    ToolRule,
    ToolWhen,
)

from .fields import Fields, Reader, as_node, choice, flag, integer, list_of, names, number, one_or_many, text
from .nodes import Entries, Node, parse_yaml
from .problems import Problem
from .value_readers import argument_tests, value_test

MAX_EXPIRES_MS = 366 * 86_400_000
_ANSWERED = "checked, and not used by this release"

_share = number(0, 1)
_SAMPLE: Fields = {"share": ("share", _share), "agents": ("agents", as_node)}
_NOTIFY: Fields = {"tool": ("tool", text(r"[A-Za-z0-9_.-]{1,64}", "the name of a tool or address such as slack"))}
_TOP: Fields = {
    "rules": ("rules", as_node),
    "default": ("default", choice(*VERDICTS)),
    "sample": ("sample", as_node),
    "instructions": ("instructions", choice("fence", "off")),
    "notify": ("notify", as_node),
}
_WHEN: Fields = {
    "tool": ("tool", names()),
    "class": ("tool_class", one_or_many(choice(*TOOL_CLASSES))),
    "arguments": ("arguments", argument_tests),
    "amount": ("amount", value_test),
    "first_use": ("first_use", flag),
    "tenant": ("tenant", names()),
    "agent": ("agent", names()),
    "workflow": ("workflow", names()),
}
_RULE: Fields = {
    "name": ("name", text(r"[A-Za-z0-9][A-Za-z0-9_.:/@+-]{0,127}", "letters, digits and _ . : / @ + -")),
    "when": ("when", as_node),
    "do": ("do", choice(*VERDICTS)),
    "by": ("by", list_of(text(r"[!-~]([ -~]{0,126}[!-~])?", "a person's name or a role such as reviewer"))),
    "expires_ms": ("expires_ms", integer(1_000, MAX_EXPIRES_MS)),
    "why": ("why", text(r"[^\x00-\x1f\x7f]{1,300}", "one line of text")),
}


class ReadRule(msgspec.Struct, frozen=True):
    """A rule and its place. `when_node` is the place of its conditions."""

    rule: ToolRule
    file: str
    node: Node
    when_node: Node | None


class ReadPolicies(msgspec.Struct, frozen=True):
    """One file: its rules, and its other keys with their places."""

    file: str
    rules: tuple[ReadRule, ...] = ()
    values: dict[str, Any] = {}
    places: dict[str, Node] = {}


def read_policies(file: str, content: str) -> tuple[ReadPolicies, list[Problem]]:
    """Parse one file. Returns its valid rules and all problems."""
    root, problems = parse_yaml(file, content)
    if root is None and problems:
        return ReadPolicies(file), problems
    reader = Reader(file)
    found = reader.section(root, "", _TOP)
    entries = root.entries if isinstance(root, Entries) else {}
    stem = file.rpartition("/")[2].removesuffix(".yaml")
    items = reader.items(found.pop("rules", None), "rules")
    rules = [_rule(reader, item, f"rules[{index}]", stem, file) for index, item in enumerate(items)]
    if "sample" in found:
        found["sample"] = _sampling(reader, found["sample"])
        if found["sample"] != Sampling():
            reader.problem(entries["sample"][0], f"sample: {_ANSWERED}", severity="warning")
    if "notify" in found:
        items = reader.items(found["notify"], "notify")
        listed = [reader.section(each, f"notify[{at}]", _NOTIFY, ("tool",)) for at, each in enumerate(items)]
        found["notify"] = tuple(each["tool"] for each in listed if "tool" in each)
        reader.problem(entries["notify"][0], f"notify: {_ANSWERED}", "addresses are notified", severity="warning")
    if found.get("instructions") == "fence":
        reader.problem(entries["instructions"][0], f"instructions: {_ANSWERED}", severity="warning")
    places: dict[str, Node] = {key: entries[key][0] for key in found}
    valid = tuple(each for each in rules if each is not None)
    return ReadPolicies(file, valid, found, places), problems + reader.problems


def _sampling(reader: Reader, node: Node) -> Sampling:
    found = reader.section(node, "sample", _SAMPLE)
    shares: dict[str, float] = {}
    for agent, (_, value) in reader.entries(found.pop("agents", None), "sample.agents").items():
        if (share := _share(reader, value, f"sample.agents.{agent}")) is not None:
            shares[agent] = share
    return Sampling(**found, agents=shares)


def _rule(reader: Reader, node: Node, place: str, stem: str, file: str) -> ReadRule | None:
    before = len(reader.problems)
    if not isinstance(node, Entries):
        reader.wrong(node, place, "a mapping with when and do")
        return None
    found = reader.section(node, place, _RULE, ("do",))
    when_node: Node | None = found.pop("when", None)
    when = reader.section(when_node, f"{place}.when", _WHEN)
    if found.get("do") not in (None, APPROVE):
        for key in ("by", "expires_ms"):
            if key in node.entries:
                reader.problem(node.entries[key][0], f"{place}.{key} is only for do: approve", "remove the line")
    if found.get("by") == ():
        reader.problem(node.entries["by"][0], f"{place}.by is an empty list", "name a person or a role")
    _check_when(reader, when_node, place, when, found.get("do"))
    errors = [each for each in reader.problems[before:] if each.severity == "error"]
    if errors or "do" not in found:
        return None
    rule = ToolRule(
        name=found.get("name") or f"{stem}.{place}",
        when=ToolWhen(**when),
        do=found["do"],
        by=found.get("by", ()),
        expires_ms=found.get("expires_ms", DEFAULT_EXPIRES_MS),
        why=found.get("why", ""),
    )
    return ReadRule(rule, file, node, when_node)


def _check_when(reader: Reader, node: Node | None, place: str, when: dict[str, Any], do: str | None) -> None:
    """Report conditions that hold for more calls than they seem to."""
    if node is None or do in (None, ALLOW):
        return
    tool: Names | None = when.get("tool")
    every = tool is None or tool.matches("\0any\0")
    if when.get("arguments") and every:
        message = f"{place} tests arguments of every tool: a call without them counts as meeting the rule"
        reader.problem(node, message, "name the tools, or add `present: true`", "warning")
