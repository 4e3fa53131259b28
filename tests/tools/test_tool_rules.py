"""Rules about tool calls: deny beats approve beats allow, and no odd argument makes a rule weaker."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.brain import Brain
from overnight.domain.tools import Allowed, Denied, NeedsApproval, ToolCallFacts
from overnight.tools import ToolPolicy, policy_of

REFUND = """
name: refund
version: 3
class: destructive
input: {type: object, required: [payment, usd], properties: {payment: {type: string}, usd: {type: number}}}
limits: {amount: /usd}
"""


def policy(rules: str, tools: str = REFUND) -> ToolPolicy:
    files = {"policies/p.yaml": rules.encode()}
    if tools:
        files["tools/refund.yaml"] = tools.encode()
    return policy_of(Brain.from_files(files).tools)


def facts(tool: str = "refund", /, arguments: Any = None, **more: Any) -> ToolCallFacts:
    given_ = {"tenant_id": "acme", "agent_id": "support-7", "workflow": None, "arguments": arguments or {}}
    return ToolCallFacts(tool=tool, **{**given_, **more})


ABOVE_100 = "rules: [{when: {tool: refund, arguments: {/usd: {gt: 100}}}, do: approve, by: [reviewer]}]"


@pytest.mark.parametrize(
    ("usd", "asks"),
    [(100, False), (100.01, True), (99.99, False), (-5, False), pytest.param(10**400, True, id="huge"),
     ("1000", True), ("5", True), (None, True),
     ([5], True), ({"a": 5}, True), (True, True), (math.nan, True), (math.inf, True), (-math.inf, True)],
)  # fmt: skip
def test_an_amount_that_is_no_finite_number_needs_approval(usd: Any, asks: bool):
    verdict = policy(ABOVE_100).decide(facts(arguments={"usd": usd}))
    assert isinstance(verdict, NeedsApproval) == asks


def test_a_missing_amount_needs_approval_unless_the_rule_wants_it_present():
    assert isinstance(policy(ABOVE_100).decide(facts()), NeedsApproval)
    present = policy(ABOVE_100.replace("{gt: 100}", "{gt: 100, present: true}"))
    assert present.decide(facts()) == Allowed()
    assert isinstance(present.decide(facts(arguments={"usd": None})), NeedsApproval)


@pytest.mark.parametrize(
    ("test", "value", "outcome"),
    [
        ("equals: EUR", "EUR", True),
        ("equals: EUR", "USD", False),
        ("equals: 1", 1.0, True),
        ("equals: 1", True, None),
        ("equals: true", 1, None),
        ("equals: null", None, True),
        ("equals: null", "x", None),
        ("equals: []", [], True),
        ("equals: {a: [1]}", {"a": [1.0]}, True),
        ("equals: {a: [1]}", {"a": [2]}, False),
        ("in: [EUR, USD]", "GBP", False),
        ("in: [EUR, USD]", "USD", True),
        ("in: [EUR, USD]", 5, None),
        ("matches: '@evil[.]'", "a@evil.example", True),
        ("matches: '@evil[.]'", "a@good.example", False),
        ("matches: '^ok$'", "ok\n", False),
        ("matches: 'x'", ["x"], None),
        ("matches: 'x'", "\ud800", False),
        ("present: true", None, True),
        ("present: false", None, False),
        ("ge: 5, lt: 10", 5, True),
        ("ge: 5, lt: 10", 10, False),
    ],
)
def test_tests_of_values_judge_by_type(test: str, value: Any, outcome: bool | None):
    """None: a rule that restricts counts it as met, one that allows does not."""
    rule = "default: %s\nrules: [{when: {tool: refund, arguments: {/v: {%s}}}, do: %s}]"
    denied = policy(rule % ("allow", test, "deny")).decide(facts(arguments={"v": value}))
    allowed = policy(rule % ("deny", test, "allow")).decide(facts(arguments={"v": value}))
    assert isinstance(denied, Denied) == (outcome is not False)
    assert isinstance(allowed, Allowed) == (outcome is True)


def test_pointers_reach_into_lists_and_escaped_names():
    rule = "rules: [{when: {tool: send, arguments: {%s: {equals: x, present: true}}}, do: deny}]"
    for pointer, arguments in (
        ("/to/1", {"to": ["a", "x"]}),
        ("/a~1b/c~0d", {"a/b": {"c~d": "x"}}),
        ("/0", {"0": "x"}),
    ):
        assert isinstance(policy(rule % pointer).decide(facts("send", arguments)), Denied), pointer
    for pointer, arguments in (("/to/01", {"to": ["a", "x"]}), ("/to/-1", {"to": ["x"]}), ("/to/9", {"to": ["x"]})):
        assert policy(rule % pointer).decide(facts("send", arguments)) == Allowed(), pointer


def test_a_pattern_takes_linear_time():
    rule = "rules: [{when: {tool: send, arguments: {/text: {matches: '^(a+)+$'}}}, do: deny}]"
    assert policy(rule).decide(facts("send", {"text": "a" * 200_000 + "b"})) == Allowed()
    assert isinstance(policy(rule).decide(facts("send", {"text": "a" * 300_000})), Denied)  # too long to be searched


def test_names_classes_amount_and_first_use_are_conditions():
    trial = policy("rules: [{when: {tenant: 'trial-*', class: [write, destructive]}, do: deny, why: trials only read}]")
    assert trial.decide(facts(tenant_id="trial-9")) == Denied("p.rules[0]", "trials only read")
    assert trial.decide(facts(tenant_id="acme")) == Allowed()
    # The class of a contract counts, not the caller's own word.
    assert isinstance(trial.decide(facts(tenant_id="trial-9", tool_class="read")), Denied)
    assert trial.decide(facts("look", tenant_id="trial-9", tool_class="read")) == Allowed()

    money = policy("rules: [{when: {amount: {gt: 100}}, do: approve}]")
    assert isinstance(money.decide(facts(arguments={"usd": 101})), NeedsApproval)
    assert money.decide(facts(arguments={"usd": 5})) == Allowed()
    assert money.decide(facts("look", {"usd": 500})) == Allowed()  # no contract names its amount

    first = policy("rules: [{when: {tool: refund, first_use: true}, do: approve}]")
    assert first.needs_first_use
    assert isinstance(first.decide(facts(first_use=True)), NeedsApproval)
    assert first.decide(facts(first_use=False)) == Allowed()
    assert isinstance(first.decide(facts(first_use=None)), NeedsApproval)


def test_several_approvals_need_a_common_decider_in_the_shortest_time():
    rules = """rules:
      - {name: usual, when: {tool: refund}, do: approve, by: [reviewer, lead], expires_ms: 5000, why: money}
      - {name: large, when: {tool: refund, arguments: {/usd: {gt: 100}}}, do: approve, by: [lead], expires_ms: 2000}
    """
    small, large = (policy(rules).decide(facts(arguments={"usd": usd})) for usd in (5, 500))
    assert isinstance(small, NeedsApproval)
    assert isinstance(large, NeedsApproval)
    assert (small.by, small.expires_ms, small.rule_name) == (("reviewer", "lead"), 5000, "usual")
    assert (large.by, large.expires_ms, large.rule_name) == (("lead",), 2000, "usual, large")
    assert small.rule_digest != large.rule_digest
    nobody = policy(rules.replace("by: [lead]", "by: [board]")).decide(facts(arguments={"usd": 500}))
    assert isinstance(nobody, Denied)
    assert "nobody could approve" in nobody.why


def test_the_digest_changes_with_rule_and_contract_only():
    def digest(rules: str, tools: str = REFUND) -> str:
        verdict = policy(rules, tools).decide(facts(arguments={"usd": 500}))
        assert isinstance(verdict, NeedsApproval)
        return verdict.rule_digest

    usual = digest(ABOVE_100)
    other_rule = "- {when: {tool: other}, do: deny}"
    assert digest(f"rules:\n- {ABOVE_100[8:-1]}\n{other_rule}\n") == usual
    assert digest(f"rules:\n{other_rule}\n- {ABOVE_100[8:-1]}\n") == usual  # its place does not matter
    assert digest(ABOVE_100.replace("gt: 100", "gt: 50")) != usual
    assert digest(ABOVE_100.replace("by: [reviewer]", "by: [lead]")) != usual
    assert digest(ABOVE_100, REFUND + "drift: quarantine\n") == usual
    assert digest(ABOVE_100, REFUND + "timeout_ms: 5\n") != usual


def test_a_default_decides_where_no_rule_matches():
    only = policy("default: deny\nrules: [{when: {tool: 'get_*'}, do: allow}]")
    assert only.decide(facts("get_mail")) == Allowed("p.rules[0]")
    assert isinstance(only.decide(facts("send_mail")), Denied)
    asks = policy("default: approve\n")
    assert asks.decides
    assert isinstance(asks.decide(facts()), NeedsApproval)
    assert not policy("rules: []\n").decides


def test_a_job_keeps_its_contracts_while_rules_are_live():
    old = policy("rules: []", REFUND.replace("version: 3", "version: 2").replace("destructive", "read"))
    new = policy("rules: [{when: {class: destructive, amount: {gt: 100}}, do: deny}]")
    pinned = new.pinned(old)
    contract = pinned.contract("refund")
    assert contract is not None
    assert contract.label == "refund@2"
    assert pinned.contract("refund", 3) is None
    assert isinstance(pinned.decide(facts(arguments={"usd": 500})), Denied)


def test_explain_names_what_decided_and_why_others_did_not():
    rules = """rules:
      - {name: trials, when: {tenant: "trial-*"}, do: deny}
      - {name: large, when: {tool: refund, arguments: {/usd: {gt: 100}}}, do: approve}
    """
    found = policy(rules).explain(facts(arguments={"usd": "secret"}))
    assert found.decisive == ("large",)
    assert [each.skipped for each in found.outcomes] == ["needs tenant trial-*", None]
    assert found.outcomes[1].unsure == ("argument /usd is not a number",)
    assert "secret" not in repr(found.outcomes)


# ── against a trivial model ──────────────────────────────────────────────────────────────────────────────────────────

RULES = st.lists(
    st.tuples(
        st.sampled_from(["*", "a", "b", "a*"]),
        st.sampled_from([None, ("gt", 5), ("lt", 5)]),
        st.sampled_from(["allow", "approve", "deny"]),
    ),
    max_size=6,
)
VALUES = st.one_of(st.integers(0, 10), st.sampled_from(["7", None, "missing", [7], True, math.nan]))


def model(rules: list[tuple[str, Any, str]], default: str, tool: str, value: Any) -> str:
    def holds(rule: tuple[str, Any, str]) -> bool:
        glob, test, do = rule
        if not (glob == "*" or glob == tool or (glob == "a*" and tool.startswith("a"))):
            return False
        if test is None:
            return True
        if not isinstance(value, int) or isinstance(value, bool):
            return do != "allow"
        return value > 5 if test[0] == "gt" else value < 5

    done = [rule[2] for rule in rules if holds(rule)]
    return next((each for each in ("deny", "approve", "allow") if each in done), default)


@settings(max_examples=150, deadline=None)
@given(RULES, st.sampled_from(["allow", "approve", "deny"]), st.sampled_from(["a", "ab", "b"]), VALUES)
def test_decisions_equal_those_of_a_simple_model(rules: list[Any], default: str, tool: str, value: Any):
    lines = [f"default: {default}", "rules:"] if rules else [f"default: {default}"]
    for glob, test, do in rules:
        tests = f", arguments: {{/v: {{{test[0]}: {test[1]}}}}}" if test else ""
        lines.append(f"  - {{when: {{tool: '{glob}'{tests}}}, do: {do}}}")
    arguments = {} if value == "missing" else {"v": value}
    verdict = policy("\n".join(lines), "").decide(facts(tool, arguments))
    kinds = {"deny": Denied, "approve": NeedsApproval, "allow": Allowed}
    assert type(verdict) is kinds[model(rules, default, tool, value)]
