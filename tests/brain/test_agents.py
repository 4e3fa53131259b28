"""`agents/*.yaml`: rules for statements of the final answer; unknown keys are errors."""

import pytest

from overnight.brain import Brain, BrainError, read_agent
from overnight.domain.claim_rules import ClaimRule

GOOD = """
assert:
  effects:
    - {text: '(?i)refunded (?P<payment>pay_\\w+)', tool: refund}
"""


def test_rules_are_read() -> None:
    agent, problems = read_agent("agents/support.yaml", "support", GOOD)
    assert problems == []
    assert agent is not None
    assert agent.claims == (ClaimRule(r"(?i)refunded (?P<payment>pay_\w+)", "refund"),)


def test_an_empty_file_has_no_rules() -> None:
    agent, problems = read_agent("agents/support.yaml", "support", "")
    assert (problems, agent and agent.claims) == ([], ())


@pytest.mark.parametrize(
    ("content", "problem", "line"),
    [
        ("asert: {}", "unknown key 'asert'", 1),
        ("assert: {effect: []}", "unknown key 'effect' in assert", 1),
        ("assert:\n  effects:\n    - {text: a}", "needs the key 'tool'", 3),
        ("assert:\n  effects:\n    - {text: '(', tool: t}", "not a usable pattern", 3),
        ("assert:\n  effects:\n    - {text: '(a)\\1', tool: t}", "linear time", 3),
        ("assert:\n  effects:\n    - {text: a, tool: t, tools: u}", "unknown key 'tools'", 3),
        ("assert: {effects: {}}", "must be a list", 1),
    ],
)
def test_mistakes_are_errors_with_their_line(content: str, problem: str, line: int) -> None:
    with pytest.raises(BrainError) as raised:
        Brain.from_files({"agents/support.yaml": content.encode()})
    (found,) = raised.value.problems
    assert problem in found.message
    assert (found.file, found.line) == ("agents/support.yaml", line)


def test_agents_are_acted_on() -> None:
    assert Brain.from_files({"agents/support.yaml": GOOD.encode()}).warnings == ()
