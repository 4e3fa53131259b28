"""Contracts of tools: keys, arguments and results; and the problems of their files."""

import json
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.brain import Brain, BrainError, Problem
from overnight.domain.tools import ToolContract
from overnight.tools import TemplateMismatch, check_arguments, check_result, render_key, told, trim_result

REFUND = """
name: refund
version: 3
class: destructive
input: {type: object, required: [payment, usd], additionalProperties: false,
  properties: {payment: {type: string, pattern: "^pay_"}, usd: {type: number, maximum: 1000}, why: {enum: [fraud, wish]}}}
output: {type: object, required: [id, status]}
key: "{payment}:{usd}"
key_scope: tenant
http:
  method: POST
  url: https://pay.example/payments/{payment}/refunds
  headers: {Authorization: "Bearer {secret.PAY}", Idempotency-Key: "{key}"}
  body: {amount_usd: "{usd}"}
  provider_id: /id
  not_done: [400, 401, 404, 422, 429]
  network: {allow: ["pay.example:443"]}
repeat_safe: true
key_lifetime_ms: 86400000
status:
  http: {url: "https://pay.example/refunds?key={key}", headers: {Authorization: "Bearer {secret.PAY}"}}
  done: /data/0/id
  not_done: {pointer: /data, equals: []}
  settle_after_ms: 30000
timeout_ms: 20000
retry: {rate_limited: {max_attempts: 4}}
limits: {requests_per_minute: 60, max_usd_per_day: 500, amount: /usd}
result: {keep: [/id, /status, /items/1/name]}
assert: [{pointer: /status, in: [succeeded, pending]}, {text: "(?i)captcha", absent: true}]
drift: quarantine
"""


def contract(content: str = REFUND, name: str = "refund") -> ToolContract:
    found = Brain.from_files({f"tools/{name}.yaml": content.encode()}).tools.contract(name)
    assert found is not None
    return found


def problems(**files: str) -> list[Problem]:
    """The problems of files: `tools__refund` is tools/refund.yaml, `_v2` is .v2."""
    named = {f"{name.replace('__', '/').replace('_v2', '.v2')}.yaml": text.encode() for name, text in files.items()}
    try:
        return list(Brain.from_files(named).warnings)
    except BrainError as error:
        return list(error.problems)


def test_every_key_of_a_contract_is_read():
    found = contract()
    assert found.label == "refund@3"
    assert (found.tool_class, found.key, found.key_scope, found.repeat_safe) == (
        "destructive", "{payment}:{usd}", "tenant", True,
    )  # fmt: skip
    assert found.http is not None
    assert (found.http.not_done, found.http.allow) == ((400, 401, 404, 422, 429), ("pay.example:443",))
    assert found.status is not None
    assert found.status.not_done is not None
    assert found.status.not_done.test.equals == []
    assert (found.timeout_ms, found.retry, found.limits.max_usd_per_day_microusd) == (
        20000, {"rate_limited": 4}, 500_000_000,
    )  # fmt: skip
    assert [str(each) for each in found.keep] == ["/id", "/status", "/items/1/name"]
    warned = [(each.line, each.message) for each in problems(tools__refund=REFUND)]
    assert [message for _, message in warned if "not executed by this release" in message] == [
        "http: checked, and not executed by this release",
        "status: checked, and not executed by this release",
    ]


def test_the_highest_version_is_the_usual_one():
    old = REFUND.replace("version: 3", "version: 2")
    tools = Brain.from_files({"tools/refund.yaml": REFUND.encode(), "tools/refund.v2.yaml": old.encode()}).tools
    assert [tools.contract("refund", each) for each in (4, 1)] == [None, None]
    found = [tools.contract("refund"), tools.contract("refund", 2)]
    assert [each and each.version for each in found] == [3, 2]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].digest != found[1].digest


MINIMAL = "name: t\nversion: 1\n"


@pytest.mark.parametrize(
    ("more", "line", "says", "hint"),
    [
        ("clas: read\n", 3, "unknown key 'clas'", "did you mean 'class'?"),
        ("class: raed\n", 3, "class must be one of", "did you mean 'read'?"),
        ("input: {type: objct}\n", 3, "input.type is not a usable JSON Schema", ""),
        ("input: {properties: {a: {pattern: '(?=x)'}}}\n", 3, "input.properties.a.pattern is not", ""),
        ("input: {$ref: 'https://example.com/schema'}\n", 3, "a reference must stay", ""),
        ("input: {properties: {a: {$ref: 'other.json'}}}\n", 3, "a reference must stay", ""),
        ("input: {properties: {a: {$id: 'https://x.example/'}}}\n", 3, "an $id of its own", ""),
        ("input: {$schema: 'http://json-schema.org/draft-07/schema'}\n", 3, "only JSON Schema 2020-12", ""),
        ("input: {$ref: '#/nothing'}\n", 3, "not a usable JSON Schema", ""),
        ("input: yes please\n", 3, "input must be a JSON Schema", ""),
        ("key: constant\n", 3, "it names no argument", ""),
        ("key: '{a}{b}'\n", 3, "need a separator", ""),
        ("key: '{a}-{b}'\n", 3, "need a separator", ""),
        ("key: '{a + 1}'\n", 3, "neither the name of an argument", ""),
        ("key: '{a'\n", 3, "not closed", ""),
        ("drift: retry\n", 3, "only for tools of class read", ""),
        ("assert: [{text: '(a)\\1'}]\n", 3, "not a supported regular expression", ""),
        ("assert: [{pointer: status, equals: 1}]\n", 3, "must be a JSON pointer", "did you mean '/status'?"),
        ("assert: [{pointer: /status}]\n", 3, "has no test", "use one of"),
        ("assert: [{pointer: /status, in: []}]\n", 3, "empty list", ""),
        ("retry: {rate_limitd: {max_attempts: 2}}\n", 3, "unknown failure class", "did you mean 'rate_limited'?"),
        ("shell: {argv: [ls]}\n", 3, "'shell' is not part of this release", "known: http"),
        ("http: {url: 'https://{host}/x'}\n", 3, "no template in scheme, host or port", ""),
        ("http: {url: 'https://me:pw@pay.example/'}\n", 3, "contains credentials", ""),
        ("http: {url: 'https://pay.example/{a|upper}'}\n", 3, "is no argument", "no expressions"),
        (
            "http: {url: 'https://a.example/', headers: {Authorization: Bearer abc}}\n",
            3,
            "(not shown)",
            "{secret.NAME}",
        ),
        ("http: {method: POST}\n", 3, "http needs the key 'url'", ""),
        ("version: 2\n", 3, "appears twice", ""),
    ],
)
def test_a_mistake_in_a_contract_is_reported_with_its_line(more: str, line: int, says: str, hint: str):
    found = [each for each in problems(tools__t=MINIMAL + more) if each.severity == "error"]
    assert [each for each in found if each.line == line and says in each.message and hint in each.hint], found
    assert len(found) == 1


def test_names_of_files_and_versions_must_agree_and_differ():
    said = [each.message for each in problems(tools__other=MINIMAL)]
    assert said == ["name is 't', and the file's name says 'other'"]
    said = [each.message for each in problems(tools__t_v2=MINIMAL)]
    assert said == ["version is 1, and the file's name says v2"]
    said = [each.message for each in problems(tools__a__t=MINIMAL, tools__t=MINIMAL)]
    assert said == ["t@1 is also defined in tools/a/t.yaml"]
    assert [each.message for each in problems(tools__t="")] == ["a contract needs name and version"]


RULE = "rules: [{%s}]"


@pytest.mark.parametrize(
    ("content", "severity", "says"),
    [
        ("rules: [{when: {tol: t}, do: deny}]", "error", "unknown key 'tol' in rules[0].when"),
        ("rules: [{when: {tool: t}}]", "error", "needs the key 'do'"),
        ("rules: [{when: {tool: t}, do: deni}]", "error", "must be one of allow, approve, deny"),
        ("rules: [{when: {tool: t}, do: deny, by: [x]}]", "error", "only for do: approve"),
        ("rules: [{when: {tool: t}, do: approve, by: []}]", "error", "empty list"),
        ("rules: [{when: {tool: t, arguments: {usd: {gt: 1}}}, do: deny}]", "error", "must be a JSON pointer"),
        ("rules: [{when: {tool: t, arguments: {/usd: {gt: '1'}}}, do: deny}]", "error", "must be a number"),
        ("rules: [{when: {tool: t, arguments: {/usd: {gt: .nan}}}, do: deny}]", "error", "must be from"),
        ("rules: [{when: {tool: t, arguments: {/usd: {}}}, do: deny}]", "error", "has no test"),
        ("rules: [{when: {tool: t, arguments: {/a: {matches: '('}}}, do: deny}]", "error", "not a supported regular"),
        ("rules: [{when: {tool: t, arguments: {/a: {present: false, gt: 1}}}, do: deny}]", "error", "nothing to test"),
        ("rules: [{name: a, do: deny}, {name: a, when: {tool: t}, do: approve}]", "error", "is also in"),
        ("rules: [{when: {tool: t, arguments: {/usd: {gt: 5, lt: 5}}}, do: deny}]", "warning", "can never be met"),
        ("rules: [{when: {tool: tt}, do: deny}]", "warning", "has no contract in tools/"),
        ("rules: [{when: {tool: 'x_*'}, do: deny}]", "warning", "no tool with a contract matches"),
        ("rules: [{when: {tool: t, class: read}, do: deny}]", "warning", "its tools are of class write"),
        (
            "rules: [{when: {tool: t, amount: {gt: 1}}, do: deny}]",
            "warning",
            "no contract of its tools names an amount",
        ),
        ("rules: [{when: {tool: t, arguments: {/usdd: {gt: 1}}}, do: deny}]", "warning", "no property for /usdd"),
        ("rules: [{when: {arguments: {/usd: {gt: 1}}}, do: deny}]", "warning", "tests arguments of every tool"),
        ("rules: [{when: {tool: t}, do: allow}]", "warning", "has no effect"),
        ("rules: [{do: deny, name: all}, {when: {tool: t}, do: approve}]", "warning", "all denies all of its calls"),
        (
            "rules: [{when: {tool: t}, do: approve, by: [a]}, {when: {tool: t}, do: approve, by: [b]}]",
            "warning",
            "no name in common",
        ),
        ("sample: {share: 2}", "error", "must be from 0 to 1"),
        ("sample: {share: 0.1}", "warning", "not used by this release"),
        ("notify: [{tol: slack}]", "error", "unknown key 'tol'"),
    ],
)
def test_a_doubtful_rule_is_reported(content: str, severity: str, says: str):
    tool = MINIMAL + "input: {type: object, properties: {usd: {type: number}, a: {type: string}}}\n"
    found = problems(tools__t=tool, policies__p=content)
    assert [(each.file, each.severity) for each in found if says in each.message] == [("policies/p.yaml", severity)], (
        found
    )


def test_two_files_cannot_both_set_the_default():
    found = problems(policies__a="default: deny\n", policies__b="default: allow\n")
    assert [(each.file, each.message) for each in found] == [
        ("policies/b.yaml", "default is also set in policies/a.yaml")
    ]


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_shows_its_values():
    assert render_key("{payment}:{usd}", {"payment": "pay_7", "usd": 40}) == "pay_7:40"
    assert render_key("{payment}:{usd}", {"payment": "pay_7", "usd": 40.0}) == "pay_7:40"
    assert render_key("mail {/to/0} {day}", {"to": ["ann@a.example"], "day": "2026-11-30"}) == (
        'mail ann@a.example "2026-11-30"'
    )
    for arguments in ({"a": 1}, {"a": 1, "b": None}, {"a": 1, "b": float("nan")}, {"a": 1, "b": {"x": float("inf")}}):
        with pytest.raises(TemplateMismatch, match="/b"):
            render_key("{a}:{b}", arguments)


PLAIN = st.one_of(
    st.text(alphabet='ab:%"0 é,{}[]1true', max_size=6),
    st.integers(-20, 20),
    st.booleans(),
    st.sampled_from([0.5, 1.0, "true", "1", "0.5", [], {}, [1], "[1]", "{}", '"a"', "a" * 500, "a" * 501]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(PLAIN, PLAIN), min_size=2, max_size=8))
def test_different_values_never_give_one_key(pairs: list[tuple[Any, Any]]):
    for template in ("{a}:{b}", "x {a}b: {b}"):
        for one, other in combinations(pairs, 2):
            keys = [render_key(template, {"a": each[0], "b": each[1]}) for each in (one, other)]
            same = json.dumps([_number(each) for each in one]) == json.dumps([_number(each) for each in other])
            assert (keys[0] == keys[1]) == same, (template, one, other, keys)


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# ── arguments and results ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"usd": "s3cret"}, "/usd: must be of type number"),
        ({"usd": 1001}, "/usd: must be at most 1000"),
        ({"payment": "s3cret"}, '/payment: must match the pattern "^pay_"'),
        ({"why": "s3cret"}, '/why: must be one of ["fraud","wish"]'),
        ({"usd": float("nan")}, "the value: has a number that is not finite"),
        ({"more": "s3cret"}, "the value: has unknown properties: 'more'"),
        ({"payment": "pay_" + "x" * 300_000}, "the value: is larger than 262,144 bytes"),
    ],
)
def test_arguments_are_checked_without_repeating_values(change: dict[str, Any], says: str):
    found = told(check_arguments(contract(), {"payment": "pay_1", "usd": 5, **change}))
    assert found == says
    assert "s3cret" not in found


def test_missing_arguments_and_deep_ones_do_not_fit():
    assert told(check_arguments(contract(), {"payment": "pay_1"})) == "the value: needs the property 'usd'"
    deep: Any = 1
    for _ in range(70):
        deep = [deep]
    assert told(check_arguments(contract(), deep)) == "the value: is nested deeper than 64 levels"
    assert check_arguments(contract("name: t\nversion: 1\n", "t"), deep) == ()


def test_a_recursive_schema_and_a_slow_pattern_end():
    recursive = contract("name: t\nversion: 1\ninput: {$defs: {a: {$ref: '#/$defs/a'}}, $ref: '#/$defs/a'}\n", "t")
    assert check_arguments(recursive, {"a": 1}) == ()
    slow = contract("name: t\nversion: 1\ninput: {properties: {a: {pattern: '^(a+)+$'}}}\n", "t")
    assert len(check_arguments(slow, {"a": "a" * 100_000 + "b"})) == 1


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ({"id": "re_1", "status": "pending"}, ""),
        ({"id": "re_1"}, "the value: needs the property 'status'; /status: is missing"),
        ({"id": "re_1", "status": "s3cret"}, "/status: has another value"),
        ({"id": "re_1", "status": 5}, "/status: is not of type string"),
        ("Please solve this CAPTCHA", "must be of type object; /status: is missing; the value: contains a text"),
        ({"id": "re_1", "status": "pending", "page": ["Captcha é"]}, "the value: contains a text that must be absent"),
    ],
)
def test_a_result_that_does_not_fit_has_drifted(result: Any, says: str):
    drift = check_result(contract(), result)
    assert (drift is None) == (says == "")
    if drift is not None:
        assert says in drift.why
        assert (drift.action, drift.contract) == ("quarantine", "refund@3")
        assert "s3cret" not in drift.why


def test_callers_see_only_what_the_contract_keeps():
    whole = {"id": "re_1", "card": "4242", "items": [{"name": "a"}, {"name": "b", "price": 5}]}
    assert trim_result(contract(), whole) == {"id": "re_1", "items": [{"name": "b"}]}
    assert trim_result(contract(), "text") is None
    assert trim_result(contract(MINIMAL, "t"), whole) == whole
