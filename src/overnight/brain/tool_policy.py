"""The rules about tool calls: which one decides a call, and why. Pure; deny beats approve beats allow."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from overnight.domain.patterns import PatternTooSlow
from overnight.domain.tools import (
    MISSING,
    NUMERIC,
    Allowed,
    Denied,
    NeedsApproval,
    ToolCallFacts,
    ToolConditions,
    ToolContract,
    ToolRule,
    ValueCondition,
    Verdict,
    value_at,
)


class RuleOutcome(NamedTuple):
    """One rule in the explanation of a verdict. `unmet` is the first condition that the call does not meet; None: it applies."""

    rule: ToolRule
    unmet: str | None


class ToolPolicy:
    """The contracts and rules of one brain version. Rules are live; a job keeps the contracts of its own version."""

    def __init__(self, contracts: Mapping[str, Sequence[ToolContract]], rules: Sequence[ToolRule]) -> None:
        """`contracts`: the versions of each tool, highest first."""
        self._contracts, self.rules = contracts, tuple(rules)

    def contract(self, tool: str, version: int | None = None) -> ToolContract | None:
        """The contract of a tool: of this version, else the highest."""
        found = self._contracts.get(tool, ())
        return next((each for each in found if version in (None, each.version)), None)

    @property
    def contracts(self) -> list[ToolContract]:
        """Every contract, by name, the highest version first."""
        return [each for name in sorted(self._contracts) for each in self._contracts[name]]

    @property
    def needs_first_use(self) -> bool:
        """Whether a rule asks for the first use of a key."""
        return any(rule.when.first_use is not None for rule in self.rules)

    def decide(self, facts: ToolCallFacts) -> Verdict:
        """The verdict about a call. `facts.tool_class` is that of its contract, where it has one."""
        if not self.rules:
            return Allowed()
        contract = self.contract(facts.tool)
        matching = [rule for rule in self.rules if _unmet(rule, facts, contract) is None]
        denying = [rule for rule in matching if rule.do == "deny"]
        if denying:
            return Denied(denying[0].name, denying[0].why or f"denied by rule {denying[0].name}")
        approving = [rule for rule in matching if rule.do == "approve"]
        if approving:
            return _needs_approval(approving, contract)
        allowing = next((rule for rule in matching if rule.do == "allow"), None)
        return Allowed(allowing.name if allowing else None)

    def explain(self, facts: ToolCallFacts) -> list[RuleOutcome]:
        """All rules in their order, each with the condition that keeps it from this call."""
        contract = self.contract(facts.tool)
        return [RuleOutcome(rule, _unmet(rule, facts, contract)) for rule in self.rules]


def _needs_approval(rules: Sequence[ToolRule], contract: ToolContract | None) -> NeedsApproval:
    """Several rules: a decider has to be permitted by each of them, and the shortest time holds."""
    digest = hashlib.sha256()
    for part in (*(rule.digest for rule in rules), contract.digest if contract else ""):
        digest.update(f"{len(part)}:{part}".encode())
    deciders: list[tuple[str, ...]] = [rule.by for rule in rules if rule.by]
    common = [name for name in dict.fromkeys(deciders[0]) if all(name in by for by in deciders)] if deciders else []
    # Where no name is permitted by all, the first rule's names decide nothing: an impossible name keeps the call waiting.
    by = tuple(sorted(common)) if common or not deciders else ("(no name is permitted by all rules)",)
    names, reasons = ", ".join(rule.name for rule in rules), [rule.why for rule in rules if rule.why]
    why = "; ".join(reasons) or f"rule {names} requires approval"
    return NeedsApproval(names, why, by, min(rule.expires_ms for rule in rules), digest.hexdigest())


def _unmet(rule: ToolRule, facts: ToolCallFacts, contract: ToolContract | None) -> str | None:
    """The first condition that the call does not meet; None if it meets all.

    A value that cannot be compared (missing, of another type, not finite) meets a condition of a rule that restricts, and does
    not meet that of a rule that allows: an odd value never loosens a rule.
    """
    when = rule.when
    return _unmet_name(when, facts) or _unmet_value(when, facts, contract, restricts=rule.do != "allow")


def _unmet_name(when: ToolConditions, facts: ToolCallFacts) -> str | None:
    for kind, names, value in (
        ("tool", when.tool, facts.tool),
        ("tenant", when.tenant, facts.tenant_id),
        ("agent", when.agent, facts.agent_id),
        ("workflow", when.workflow, facts.workflow),
    ):
        if names is not None and not names.matches(value):
            return f"needs {kind} {names}"
    if when.tool_class is not None and facts.tool_class not in when.tool_class:
        return f"needs class {' or '.join(when.tool_class)}"
    if when.first_use is not None and when.first_use != facts.first_use:
        return "needs the first use of the key" if when.first_use else "needs a later use of the key"
    return None


def _unmet_value(
    when: ToolConditions, facts: ToolCallFacts, contract: ToolContract | None, *, restricts: bool
) -> str | None:
    for condition in when.arguments:
        if not condition_met(condition, facts.arguments, unknown=restricts):
            return f"needs {condition}"
    if when.amount:
        pointer = contract.amount if contract is not None else None
        for condition in when.amount:
            found = MISSING if pointer is None else value_at(facts.arguments, pointer)
            if not _compares(condition, found, unknown=restricts):
                return f"needs amount {condition.operator} {condition.value}"
    return None


def condition_met(condition: ValueCondition, value: Any, *, unknown: bool) -> bool:
    """Whether a JSON value meets a condition. `unknown` is the answer for a value that cannot be compared."""
    return _compares(condition, value_at(value, condition.pointer), unknown=unknown)


def _compares(condition: ValueCondition, found: Any, *, unknown: bool) -> bool:
    operator: Literal["present"] | str = condition.operator
    if operator == "present":
        return (found is not MISSING) == condition.value
    if found is MISSING:
        return unknown
    if operator in NUMERIC:
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            return unknown
        wanted = condition.value
        results = {"gt": found > wanted, "ge": found >= wanted, "lt": found < wanted, "le": found <= wanted}
        return results[operator]
    if operator == "matches":
        if not isinstance(found, str) or condition.pattern is None:
            return unknown
        try:
            return next(condition.pattern.find_all(found, 1), None) is not None
        except PatternTooSlow:
            return unknown
    wanted = condition.value if operator == "in" else (condition.value,)
    return any(_equal(found, each) for each in wanted)


def _equal(one: Any, other: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0, and true does not equal 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return one == other
