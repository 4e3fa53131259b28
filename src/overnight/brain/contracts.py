"""Read tools/*.yaml: one version of one tool's contract per file, such as refund.yaml and the older refund.v2.yaml."""

import re
from typing import Any

import msgspec

from overnight.domain.key_templates import parse_key_template
from overnight.domain.tools import (
    DRIFT_ACTIONS,
    KEY_SCOPES,
    PASS,
    READ,
    REPEATS,
    RETRY,
    TOOL_CLASSES,
    TOOL_FAILURES,
    TOOL_NAME,
    ArgumentTest,
    TextTest,
    ToolContract,
    ToolLimits,
)

from .executors import read_http, read_status, read_test
from .fields import Fields, Reader, as_node, choice, flag, integer, list_of, money, text
from .nodes import Entries, Node, Scalar, parse_yaml
from .problems import Problem, clipped
from .value_readers import pattern, pointer, schema

_DAY_MS = 86_400_000
_FILE = re.compile(r"(?P<name>[^.]+)(\.v(?P<version>[1-9][0-9]{0,5}))?\.yaml")
_LATER = ("webhook", "smtp", "sql", "shell", "job", "mcp", "python")


def _key(reader: Reader, node: Node, name: str) -> str | None:
    found = text(r"[ -~]{1,500}", 'a template such as "{payment}:{usd}"')(reader, node, name)
    if found is None:
        return None
    try:
        parse_key_template(found)
    except ValueError as error:
        reader.problem(node, f"{name}: {error}")
        return None
    return found


_TOP: Fields = {
    "name": ("name", text(TOOL_NAME, "up to 64 letters, digits, _ and -")),
    "version": ("version", integer(1, 999_999)),
    "class": ("tool_class", choice(*TOOL_CLASSES)),
    "input": ("input", schema),
    "output": ("output", schema),
    "key": ("key", _key),
    "key_scope": ("key_scope", choice(*KEY_SCOPES)),
    "repeats": ("repeats", choice(*REPEATS)),
    "http": ("http", as_node),
    "repeat_safe": ("repeat_safe", flag),
    "key_lifetime_ms": ("key_lifetime_ms", integer(1, 366 * _DAY_MS)),
    "status": ("status", as_node),
    "timeout_ms": ("timeout_ms", integer(1, _DAY_MS)),
    "retry": ("retry", as_node),
    "limits": ("limits", as_node),
    "result": ("result", as_node),
    "assert": ("assert", as_node),
    "drift": ("drift", choice(*DRIFT_ACTIONS)),
}
_RETRY: Fields = {"max_attempts": ("max_attempts", integer(1, 100))}
_LIMITS: Fields = {
    "requests_per_minute": ("requests_per_minute", integer(1, 1_000_000_000)),
    "max_usd_per_day": ("max_usd_per_day_microusd", money),
    "amount": ("amount", pointer),
}
_RESULT: Fields = {"keep": ("keep", list_of(pointer))}
_TEXT: Fields = {"text": ("text", pattern), "absent": ("absent", flag)}


class ReadContract(msgspec.Struct, frozen=True):
    """A contract and the nodes of its keys."""

    contract: ToolContract
    nodes: dict[str, tuple[Scalar, Node]]
    node: Node


def tool_of(path: str) -> str:
    """The name of the tool that a file is about."""
    return path.rpartition("/")[2].partition(".")[0]


def read_contract(file: str, content: str) -> tuple[ReadContract | None, list[Problem]]:
    """Parse one file. Returns the contract, or None on errors, and all problems."""
    root, problems = parse_yaml(file, content)
    if root is None and problems:
        return None, problems
    reader = Reader(file)
    if root is None:
        root = Scalar(1, 1, "", "null")
    contract = _contract(reader, root, file)
    problems += reader.problems
    if contract is None or any(problem.severity == "error" for problem in problems):
        return None, problems
    return ReadContract(contract, root.entries if isinstance(root, Entries) else {}, root), problems


def _contract(reader: Reader, root: Node, file: str) -> ToolContract | None:
    if not isinstance(root, Entries):
        reader.problem(root, "a contract needs name and version", "see the reference of tools")
        return None
    later = [each for each in _LATER if each in root.entries]
    for kind in later:
        message = f"the executor {kind!r} is not part of this release"
        reader.problem(root.entries[kind][0], message, "known: http; without an executor your program calls the tool")
    known = Entries(root.line, root.column, {k: v for k, v in root.entries.items() if k not in later}, root.size)
    found = reader.section(known, "", _TOP)
    for key in ("name", "version"):
        if key not in root.entries:
            reader.problem(root, f"the contract needs the key {key!r}")
    _check_name(reader, root, file, found)
    for key, read in (("http", read_http), ("status", read_status)):
        node = found.pop(key, None)
        if node is not None:
            message = f"{key}: checked, and not executed by this release"
            reader.problem(root.entries[key][0], message, "your program calls the tool", "warning")
            found[key] = read(reader, node, key)
    found |= _sections(reader, found)
    _check_uses(reader, root, found)
    return ToolContract(**found) if "name" in found and "version" in found else None


def _sections(reader: Reader, found: dict[str, Any]) -> dict[str, Any]:
    retry, limits = found.pop("retry", None), found.pop("limits", None)
    result, asserts = found.pop("result", None), found.pop("assert", None)
    attempts: dict[str, int] = {}
    for name, (at, value) in reader.entries(retry, "retry").items():
        if name not in TOOL_FAILURES:
            reader.unknown(at, f"unknown failure class {clipped(name)} in retry", name, TOOL_FAILURES)
            continue
        own = reader.section(value, f"retry.{name}", _RETRY, ("max_attempts",))
        if own:
            attempts[name] = own["max_attempts"]
    for key in ("requests_per_minute", "max_usd_per_day"):
        if isinstance(limits, Entries) and key in limits.entries:
            message = f"limits.{key}: checked, and not enforced by this release"
            reader.problem(limits.entries[key][0], message, "use a rule about the amount, or a budget", "warning")
    tests = [_assert(reader, item, f"assert[{index}]") for index, item in enumerate(reader.items(asserts, "assert"))]
    return {
        "retry": attempts,
        "limits": ToolLimits(**reader.section(limits, "limits", _LIMITS)),
        "keep": reader.section(result, "result", _RESULT).get("keep", ()),
        "asserts": tuple(each for each in tests if each is not None),
    }


def _assert(reader: Reader, node: Node, name: str) -> ArgumentTest | TextTest | None:
    if isinstance(node, Entries) and ("text" in node.entries or "absent" in node.entries):
        found = reader.section(node, name, _TEXT, ("text",))
        return TextTest(**found) if "text" in found else None
    return read_test(reader, node, name)


def _check_name(reader: Reader, root: Entries, file: str, found: dict[str, Any]) -> None:
    """The file's name says which tool it is about, so that a reader finds it and no two files collide."""
    named = _FILE.fullmatch(file.rpartition("/")[2])
    if named is None:
        reader.problem(
            root, "the file's name is not that of a tool", "name it NAME.yaml, and an older one NAME.v2.yaml"
        )
        return
    if "name" in found and found["name"] != named["name"]:
        message = f"name is {clipped(found['name'])}, and the file's name says {clipped(named['name'])}"
        reader.problem(root.entries["name"][1], message, f"rename the file to {found['name']}.yaml")
    if named["version"] and "version" in found and found["version"] != int(named["version"]):
        message = f"version is {found['version']}, and the file's name says v{named['version']}"
        reader.problem(root.entries["version"][1], message, "make them equal")


def _check_uses(reader: Reader, root: Entries, found: dict[str, Any]) -> None:
    """Report keys that contradict each other."""

    def at(key: str) -> Node:
        return root.entries[key][0]

    is_read = found.get("tool_class") == READ
    if found.get("drift") == RETRY and not is_read:
        reader.problem(at("drift"), "drift: retry is only for tools of class read", "a write must not be repeated")
    if is_read and "key" in found:
        reader.problem(at("key"), "key has no use: a tool of class read needs none", "remove the line", "warning")
    if "key_lifetime_ms" in found and not found.get("repeat_safe"):
        reader.problem(at("key_lifetime_ms"), "key_lifetime_ms has no use without repeat_safe: true", "", "warning")
    if found.get("drift") in (PASS, RETRY) and not found.get("asserts") and "output" not in found:
        reader.problem(at("drift"), "drift has no use: neither output nor assert says what fits", "", "warning")
