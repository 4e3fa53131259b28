"""`overnight tools`: contracts, and the rule that decides a call."""

from pathlib import Path

import msgspec

from cli_runs import Ran, run

CONTRACT = """
name: refund
version: 2
class: destructive
input: {type: object, required: [usd], properties: {usd: {type: number}}}
key: "{usd}"
"""
RULES = """
rules:
  - {name: large, when: {tool: refund, arguments: {/usd: {gt: 100}}}, do: approve, why: it is much}
  - {name: trials, when: {tool: refund, tenant: "trial-*"}, do: deny, why: trials only read}
"""


def tools(folder: Path, *words: str) -> Ran:
    brain = folder / "brain"
    for name, text in (("routing.yaml", ""), ("tools/refund.yaml", CONTRACT), ("policies/money.yaml", RULES)):
        (brain / name).parent.mkdir(parents=True, exist_ok=True)
        (brain / name).write_text(text or "default_model: gpt-5.4-mini\n")
    return run(folder, {"PATH": "/usr/bin:/bin", "HOME": str(folder)}, "tools", *words)


def test_contracts_are_listed(tmp_path: Path) -> None:
    shown = tools(tmp_path, "list")
    assert (shown.code, shown.err) == (0, "")
    assert "refund@2" in shown.out
    assert "destructive" in shown.out
    listed = msgspec.json.decode(tools(tmp_path, "list", "--json").out)
    assert [each["name"] for each in listed["rules"]] == ["large", "trials"]


def test_deciding_rule_is_explained(tmp_path: Path) -> None:
    shown = tools(tmp_path, "explain", "refund", "--arguments", '{"usd": 250}')
    assert shown.code == 0, shown
    assert "approve" in shown.out
    assert "it is much" in shown.out
    denied = tools(tmp_path, "explain", "refund", "--arguments", '{"usd": 1}', "--tenant", "trial-9", "--json")
    found = msgspec.json.decode(denied.out)
    assert (denied.code, found["verdict"], found["decided_by"]) == (1, "deny", ["trials"])


def test_arguments_that_do_not_fit_are_named(tmp_path: Path) -> None:
    shown = tools(tmp_path, "explain", "refund", "--arguments", '{"usd": "much"}', "--json")
    assert shown.code == 1
    assert msgspec.json.decode(shown.out)["arguments_invalid"][0]["pointer"] == "/usd"
