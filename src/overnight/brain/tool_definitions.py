"""All contracts and rules of a brain, with the problems that appear only between files."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from overnight.domain.globs import is_glob
from overnight.domain.tools import (
    ALLOW,
    APPROVE,
    DENY,
    Sampling,
    ToolContract,
    ToolDefinitions,
    ToolRule,
    ToolWhen,
)

from .contracts import ReadContract, read_contract, tool_of
from .nodes import Node
from .policies import ReadPolicies, ReadRule, read_policies
from .problems import Problem, Severity, clipped, did_you_mean

TOOLS, POLICIES = "tools", "policies"
Contracts = Mapping[str, Mapping[int, ToolContract]]


def read_tool_definitions(texts: Mapping[str, str]) -> tuple[ToolDefinitions, list[Problem]]:
    """Read the files of tools/ and policies/ by path, and report all problems."""
    problems: list[Problem] = []
    contracts: dict[str, dict[int, ToolContract]] = {}
    places: dict[tuple[str, int], str] = {}
    policies: list[ReadPolicies] = []
    for path in sorted(texts):
        if path.startswith(f"{TOOLS}/"):
            contract, found = read_contract(path, texts[path])
            if contract is not None:
                found += _add(contracts, places, path, contract)
        else:
            read, found = read_policies(path, texts[path])
            policies.append(read)
        problems += found
    named = {tool_of(path) for path in texts if path.startswith(f"{TOOLS}/")}
    rules = [rule for each in policies for rule in each.rules]
    values, found = _singletons(policies)
    problems += [*found, *_lint(rules, contracts, named, values.get("default", ALLOW))]
    definitions = ToolDefinitions(
        contracts=contracts,
        rules=tuple(each.rule for each in rules),
        default=values.get("default", ALLOW),
        sampling=values.get("sample", Sampling()),
        instructions=values.get("instructions"),
        notify=values.get("notify", ()),
    )
    return definitions, problems


def _problem(file: str, at: Node, message: str, hint: str = "", severity: Severity = "error") -> Problem:
    return Problem(file=file, line=at.line, column=at.column, message=message, hint=hint, severity=severity)


def _add(
    contracts: dict[str, dict[int, ToolContract]], places: dict[tuple[str, int], str], path: str, read: ReadContract
) -> list[Problem]:
    """Add a contract, or report that its name and version are taken."""
    one = read.contract
    before = places.setdefault((one.name, one.version), path)
    if before != path:
        message = f"{one.label} is also defined in {before}"
        return [_problem(path, read.nodes["version"][1], message, "give each version its own number, or remove one")]
    contracts.setdefault(one.name, {})[one.version] = one
    for other in contracts:
        if other != one.name and other.lower() == one.name.lower():
            message = f"the tools {other} and {one.name} differ only in case"
            return [_problem(path, read.nodes["name"][1], message, "a model would confuse them", "warning")]
    return []


def _singletons(policies: Iterable[ReadPolicies]) -> tuple[dict[str, Any], list[Problem]]:
    """The keys that only one file may set."""
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    problems: list[Problem] = []
    for each in policies:
        for key, value in each.values.items():
            if key in values:
                problems.append(
                    _problem(each.file, each.places[key], f"{key} is also set in {places[key]}", "keep one")
                )
            else:
                values[key], places[key] = value, each.file
    return values, problems


# ── rules that do not do what they seem to ───────────────────────────────────────────────────────────────────────────


def _lint(rules: Sequence[ReadRule], contracts: Contracts, named: set[str], default: str) -> list[Problem]:
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for index, each in enumerate(rules):
        name = each.rule.name
        if name in seen:
            problems.append(_problem(each.file, each.node, f"the rule {name} is also in {seen[name]}", "rename one"))
        seen.setdefault(name, each.file)
        for message, hint in _doubts(each.rule, contracts, named, default):
            problems.append(_problem(each.file, each.when_node or each.node, message, hint, "warning"))
        problems += _against(each, rules[:index], rules)
    return problems


def _doubts(rule: ToolRule, contracts: Contracts, named: set[str], default: str) -> Iterable[tuple[str, str]]:
    when = rule.when
    if rule.do == ALLOW and default == ALLOW:
        yield (
            f"{rule.name} has no effect: calls are allowed unless a rule says otherwise",
            "set default: deny or approve",
        )
    for pattern in when.tool.patterns if when.tool is not None else ():
        known = {*contracts, *named}
        if is_glob(pattern):
            if not any(when.tool is not None and when.tool.matches(each) for each in known):
                yield f"{rule.name}: no tool with a contract matches {clipped(pattern)}", ""
            continue
        if pattern not in known:
            message = f"{rule.name}: the tool {clipped(pattern)} has no contract in tools/"
            yield message, did_you_mean(pattern, known) if known else ""
    matching = [
        versions[max(versions)] for tool, versions in contracts.items() if when.tool is None or when.tool.matches(tool)
    ]
    exact = when.tool is not None and when.tool.glob is None and len(matching) == len(when.tool.patterns)
    if when.tool_class and exact and not any(each.tool_class in when.tool_class for each in matching):
        classes = ", ".join(sorted({each.tool_class for each in matching}))
        yield f"{rule.name} can never match: its tools are of class {classes}", f"needs {' or '.join(when.tool_class)}"
    if when.amount is not None and not any(each.limits.amount for each in matching):
        hint = "set limits.amount in the contract, or test the argument"
        yield f"{rule.name} can never match: no contract of its tools names an amount", hint
    if exact:
        yield from _unknown_arguments(rule, matching)


def _unknown_arguments(rule: ToolRule, contracts: Iterable[ToolContract]) -> Iterable[tuple[str, str]]:
    for each in rule.when.arguments:
        for contract in contracts:
            names = _properties(contract.input)
            if names and each.pointer.parts[0] not in names:
                message = f"{rule.name}: the input of {contract.name} has no property for {each.pointer}"
                yield message, did_you_mean(each.pointer.parts[0], names)


def _properties(schema: Any) -> list[str]:
    """The names of a plain object schema; empty if others may come from elsewhere."""
    if not isinstance(schema, dict):
        return []
    entries = cast("dict[str, Any]", schema)
    if entries.keys() & {"$ref", "allOf", "anyOf", "oneOf", "if", "patternProperties"}:
        return []
    properties = entries.get("properties")
    return list(cast("dict[str, Any]", properties)) if isinstance(properties, dict) else []


def _against(each: ReadRule, before: Sequence[ReadRule], rules: Sequence[ReadRule]) -> Iterable[Problem]:
    """A rule against the others: those that always win, and those that no person could approve together."""
    rule, at = each.rule, each.when_node or each.node
    for other in rules:
        wins = other is not each and other.rule.do == DENY and (rule.do != DENY or other in before)
        if wins and _covers(other.rule.when, rule.when):
            message = f"{rule.name} never decides: {other.rule.name} denies all of its calls"
            yield _problem(each.file, at, message, "remove one, or narrow the denial", "warning")
            return
    for other in before:
        both = rule.do == other.rule.do == APPROVE and rule.by and other.rule.by
        if both and not set(rule.by) & set(other.rule.by) and _meet(rule.when, other.rule.when):
            message = (
                f"{rule.name} and {other.rule.name} have no name in common under `by`: calls that both match are denied"
            )
            yield _problem(
                each.file, at, message, "add a common role, or make the conditions exclude each other", "warning"
            )


def _covers(wider: ToolWhen, narrower: ToolWhen) -> bool:
    """Whether every call that meets `narrower` certainly meets `wider`."""
    for name in ToolWhen.__struct_fields__:
        one, other = getattr(wider, name), getattr(narrower, name)
        if name == "tool_class" and one:
            if not other or not set(other) <= set(one):
                return False
        elif one not in (None, ()) and one != other:
            return False
    return True


def _meet(one: ToolWhen, other: ToolWhen) -> bool:
    """Whether a call could meet both, as far as names and classes tell."""
    for name in ("tool", "tenant", "agent", "workflow"):
        left, right = getattr(one, name), getattr(other, name)
        if left is None or right is None:
            continue
        exact = [each for each in left.patterns if not is_glob(each)]
        if len(exact) == len(left.patterns) and not any(map(right.matches, exact)):
            return False
        exact = [each for each in right.patterns if not is_glob(each)]
        if len(exact) == len(right.patterns) and not any(map(left.matches, exact)):
            return False
    return not (one.tool_class and other.tool_class and not set(one.tool_class) & set(other.tool_class))
