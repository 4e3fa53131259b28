"""The rules about tool calls: deny beats approve beats allow. Pure: the same facts give the same verdict.

A condition that cannot be judged (an amount that is text, missing or not finite) counts as met by a rule that restricts, and
as not met by a rule that allows. So no odd argument makes a rule weaker.
"""

from functools import lru_cache

import msgspec

from overnight.domain.tools import (
    ALLOW,
    APPROVE,
    DEFAULT_EXPIRES_MS,
    DENY,
    Allowed,
    Denied,
    NeedsApproval,
    ToolCallFacts,
    ToolContract,
    ToolDefinitions,
    ToolRule,
    ToolWhen,
    Verdict,
    digest_of,
)
from overnight.domain.value_tests import ValueOutcome, run_test

DEFAULT_RULE = "default"


class RuleOutcome(msgspec.Struct, frozen=True):
    """A rule, and why it does not match. `unsure` names the conditions that could not be judged, which a matching rule counted as
    met."""

    rule: ToolRule
    skipped: str | None = None
    unsure: tuple[str, ...] = ()


class Explanation(msgspec.Struct, frozen=True):
    """The verdict on a call, the rules that led to it, and all rules with their outcomes in order."""

    verdict: Verdict
    decisive: tuple[str, ...]
    outcomes: tuple[RuleOutcome, ...]


class ToolPolicy(msgspec.Struct, frozen=True):
    """The rules of one brain version, and the contracts of the same or of another one.

    Rules are live, and so are the class and the amount that they ask for. A job keeps the contracts of the brain version that it
    began with: `policy.pinned(the policy of that version)`.
    """

    live: ToolDefinitions = ToolDefinitions()
    older: ToolDefinitions | None = None

    @property
    def decides(self) -> bool:
        """Whether any call could be stopped. Without rules, nothing has to be asked."""
        return bool(self.live.rules) or self.live.default != ALLOW

    @property
    def rules(self) -> tuple[ToolRule, ...]:
        """All rules, in the order of files and lines."""
        return self.live.rules

    @property
    def needs_first_use(self) -> bool:
        """Whether a rule asks for the first use of a key."""
        return any(rule.when.first_use is not None for rule in self.live.rules)

    @property
    def contracts(self) -> list[ToolContract]:
        """Every contract, by name, the highest version first."""
        listed = (self.older or self.live).contracts
        return [listed[name][version] for name in sorted(listed) for version in sorted(listed[name], reverse=True)]

    def pinned(self, older: "ToolPolicy") -> "ToolPolicy":
        """The same rules with the contracts of another version. A contract that it lacks is missing: there is no newer one."""
        return ToolPolicy(self.live, older.older or older.live)

    def contract(self, tool: str, version: int | None = None) -> ToolContract | None:
        """The contract of a tool: this version, or the highest."""
        return (self.older or self.live).contract(tool, version)

    def decide(self, facts: ToolCallFacts) -> Verdict:
        """Whether the call may be made."""
        return self.explain(facts).verdict

    def explain(self, facts: ToolCallFacts) -> Explanation:
        """The verdict with its reasons: which rules match, and why the others do not."""
        contract = self.contract(facts.tool, facts.version)
        live = self.live.contract(facts.tool, facts.version) or self.live.contract(facts.tool) or contract
        outcomes = tuple(_outcome(rule, facts, live) for rule in self.live.rules)
        matching = [each.rule for each in outcomes if each.skipped is None]
        verdict, decisive = self._verdict(matching, contract)
        return Explanation(verdict, tuple(rule.name for rule in decisive), outcomes)

    def _verdict(self, matching: list[ToolRule], contract: ToolContract | None) -> tuple[Verdict, list[ToolRule]]:
        for rule in matching:
            if rule.do == DENY:
                return Denied(rule.name, rule.why or f"rule {rule.name} denies it"), [rule]
        approvals = [rule for rule in matching if rule.do == APPROVE]
        if approvals:
            return _approval(approvals, contract), approvals
        for rule in matching:
            if rule.do == ALLOW:
                return Allowed(rule.name), [rule]
        default = self.live.default
        if default == DENY:
            return Denied(DEFAULT_RULE, "no rule allows it, and the default is to deny"), []
        if default == APPROVE:
            why = "no rule allows it, and the default is to ask"
            digest = digest_of([DEFAULT_RULE, contract.digest if contract is not None else None])
            return NeedsApproval(DEFAULT_RULE, why, (), DEFAULT_EXPIRES_MS, digest), []
        return Allowed(), []


def _approval(rules: list[ToolRule], contract: ToolContract | None) -> Verdict:
    """The strictest of several rules: who may decide has to be permitted by each of them, within the shortest time."""
    name = ", ".join(rule.name for rule in rules)
    limited = [rule for rule in rules if rule.by]
    deciders = tuple(who for who in limited[0].by if all(who in rule.by for rule in limited)) if limited else ()
    if limited and not deciders:
        return Denied(name, f"the rules {name} have no name in common under `by`, so nobody could approve it")
    digest = digest_of([sorted({rule.digest for rule in rules}), contract.digest if contract is not None else None])
    why = next((rule.why for rule in rules if rule.why), "") or f"rule {name} asks for approval"
    return NeedsApproval(name, why, deciders, min(rule.expires_ms for rule in rules), digest)


def _outcome(rule: ToolRule, facts: ToolCallFacts, contract: ToolContract | None) -> RuleOutcome:
    skipped = _unmet_name(rule.when, facts, contract)
    if skipped is not None:
        return RuleOutcome(rule, skipped)
    unsure: list[str] = []
    for place, outcome, why in _value_tests(rule.when, facts, contract):
        if outcome is ValueOutcome.NO or (outcome is ValueOutcome.UNSURE and rule.do == ALLOW):
            return RuleOutcome(rule, f"{place} {why}")
        if outcome is ValueOutcome.UNSURE:
            unsure.append(f"{place} {why}")
    return RuleOutcome(rule, None, tuple(unsure))


def _unmet_name(when: ToolWhen, facts: ToolCallFacts, contract: ToolContract | None) -> str | None:
    for word, names, value in (
        ("tool", when.tool, facts.tool),
        ("tenant", when.tenant, facts.tenant_id),
        ("agent", when.agent, facts.agent_id),
        ("workflow", when.workflow, facts.workflow),
    ):
        if names is not None and not names.matches(value):
            return f"needs {word} {names}"
    # The caller's own word counts only where there is no contract.
    tool_class = contract.tool_class if contract is not None else facts.tool_class
    if when.tool_class and tool_class not in when.tool_class:
        return f"needs class {' or '.join(when.tool_class)}, and the tool is {tool_class}"
    return None


def _value_tests(
    when: ToolWhen, facts: ToolCallFacts, contract: ToolContract | None
) -> list[tuple[str, ValueOutcome, str]]:
    found: list[tuple[str, ValueOutcome, str]] = []
    if when.first_use is not None:
        if facts.first_use is None:
            found.append(("first_use", ValueOutcome.UNSURE, "is unknown"))
        else:
            outcome = ValueOutcome.YES if facts.first_use == when.first_use else ValueOutcome.NO
            found.append(("first_use", outcome, f"is {str(facts.first_use).lower()}"))
    if when.amount is not None:
        pointer = contract.limits.amount if contract is not None else None
        if pointer is None:
            found.append(("amount", ValueOutcome.NO, "is named by no contract of this tool"))
        else:
            found.append((f"amount {pointer}", *run_test(when.amount, pointer.find(facts.arguments))))
    found.extend(
        (f"argument {each.pointer}", *run_test(each.test, each.pointer.find(facts.arguments)))
        for each in when.arguments
    )
    return found


@lru_cache(maxsize=16)
def policy_of(definitions: ToolDefinitions) -> ToolPolicy:
    """The policy of one version of the brain."""
    return ToolPolicy(definitions)
