"""Tools: their contracts, the rules about their calls, and the verdicts of these rules. Records only."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from .globs import Names
from .patterns import LinearPattern

ToolClass = Literal["read", "write", "destructive"]
TOOL_CLASSES: tuple[ToolClass, ...] = ("read", "write", "destructive")
DEFAULT_CLASS: ToolClass = "write"
"""The class of a tool without a contract."""
APPROVAL_EXPIRES_MS = 86_400_000
"""How long an approval waits for a person, unless its rule says otherwise."""

Pointer = tuple[str, ...]
"""The names and indexes of a JSON pointer, unescaped; () is the whole value."""

Operator = Literal["gt", "ge", "lt", "le", "equals", "in", "matches", "present"]
NUMERIC: frozenset[str] = frozenset({"gt", "ge", "lt", "le"})


class ValueCondition(msgspec.Struct, frozen=True):
    """A condition on the value at a pointer. `value` is a number for `gt`, `ge`, `lt` and `le`, a tuple for `in`, a bool for
    `present`; `pattern` is that of `matches`, found anywhere in a text."""

    pointer: Pointer
    operator: Operator
    value: Any = None
    pattern: LinearPattern | None = None

    def __str__(self) -> str:
        return f"{pointer_text(self.pointer)} {self.operator} {self.pattern.text if self.pattern else self.value}"


class ToolConditions(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions of a rule that must all be met. None and () are met by every call. `first_use` is met by the first call of a
    tool with an API key."""

    tool: Names | None = None
    tool_class: tuple[str, ...] | None = None
    tenant: Names | None = None
    agent: Names | None = None
    workflow: Names | None = None
    amount: tuple[ValueCondition, ...] = ()
    arguments: tuple[ValueCondition, ...] = ()
    first_use: bool | None = None


class ToolRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule of `policies/*.yaml`. `name` is its own or its place; `by` are the roles and names that may approve, none: any
    person with the scope; `digest` is that of its text."""

    name: str
    do: Literal["allow", "approve", "deny"]
    when: ToolConditions = ToolConditions()
    by: tuple[str, ...] = ()
    expires_ms: int = APPROVAL_EXPIRES_MS
    why: str = ""
    digest: str = ""


class ResultAssertion(msgspec.Struct, frozen=True):
    """A statement about the result of a tool: a condition on a value, or a pattern that its text has; with `absent`, has not."""

    condition: ValueCondition | None = None
    pattern: LinearPattern | None = None
    absent: bool = False

    def __str__(self) -> str:
        if self.pattern is not None:
            return f"text {'without' if self.absent else 'with'} {self.pattern.text}"
        return str(self.condition)


class ToolContract(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a tool: a file of `tools/*.yaml`.

    Fields:
        input, output: JSON Schemas (2020-12) of arguments and result; None: any value.
        key: the template of its idempotency key; None: the caller's key. key_scope: where a key holds.
        repeat_safe: the vendor ignores a repeated key, for `key_lifetime_ms` (None: for ever).
        amount: where the amount of a call stands in its arguments.
        keep: the parts of a result that callers receive; none: all. assertions: what a result must meet.
        drift: what happens to a result that does not fit. digest: that of the file.
    """

    name: str
    version: int = 1
    tool_class: ToolClass = DEFAULT_CLASS
    input: Mapping[str, Any] | None = None
    output: Mapping[str, Any] | None = None
    key: str | None = None
    key_scope: Literal["job", "tenant"] = "job"
    repeat_safe: bool = False
    key_lifetime_ms: int | None = None
    timeout_ms: int | None = None
    amount: Pointer | None = None
    keep: tuple[Pointer, ...] = ()
    assertions: tuple[ResultAssertion, ...] = ()
    drift: Literal["quarantine", "pass", "retry"] = "quarantine"
    repeats: Literal["same", "new"] = "same"
    digest: str = ""

    @property
    def label(self) -> str:
        """Its name and version, as effects record it."""
        return f"{self.name}@{self.version}"


class ToolCallFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules about tool calls know of a call. `arguments` is a JSON value."""

    tool: str
    tool_class: str = DEFAULT_CLASS
    tenant_id: str
    agent_id: str | None
    workflow: str | None
    arguments: Any
    first_use: bool = False


class Allowed(msgspec.Struct, frozen=True):
    """No rule stops the call. `rule_name` is the rule that allows it, if one does."""

    rule_name: str | None = None


class Denied(msgspec.Struct, frozen=True):
    """A rule denies the call."""

    rule_name: str
    why: str


class NeedsApproval(msgspec.Struct, frozen=True):
    """A rule wants the approval of a person. `rule_digest` is that of all rules that do, and of the contract: an approval holds
    for these. `by` are the roles and names that may give it."""

    rule_name: str
    why: str
    by: tuple[str, ...]
    expires_ms: int
    rule_digest: str


Verdict = Allowed | Denied | NeedsApproval


def parse_pointer(text: str) -> Pointer:
    """The parts of a JSON pointer (RFC 6901). Raises ValueError."""
    if not text:
        return ()
    if not text.startswith("/"):
        raise ValueError("a JSON pointer begins with /")
    parts = text[1:].split("/")
    for part in parts:
        if "~" in part.replace("~0", "").replace("~1", ""):
            raise ValueError("in a JSON pointer, ~ is written ~0, and / in a name ~1")
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in parts)


def pointer_text(pointer: Pointer) -> str:
    """The JSON pointer as text."""
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in pointer)


MISSING: Any = object()


def value_at(value: Any, pointer: Pointer) -> Any:
    """The value at a pointer; MISSING where there is none."""
    for part in pointer:
        if isinstance(value, Mapping):
            found: Any = value  # pyright: ignore[reportUnknownVariableType]
            value = found.get(part, MISSING)
        elif isinstance(value, list | tuple) and part.isascii() and part.isdigit() and (part == "0" or part[0] != "0"):
            items: Any = value  # pyright: ignore[reportUnknownVariableType]
            index = int(part) if len(part) < 10 else len(items)
            value = items[index] if index < len(items) else MISSING
        else:
            return MISSING
        if value is MISSING:
            return MISSING
    return value
