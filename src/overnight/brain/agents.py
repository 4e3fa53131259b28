"""`agents/*.yaml`: what is asserted about the final answer of an agent. Pure."""

import msgspec

from overnight.brain.fields import Reader, as_node, text
from overnight.brain.nodes import Node, parse_yaml
from overnight.brain.problems import Problem
from overnight.domain.claim_rules import MAX_RULES, ClaimRule, pattern_problem

_FIELDS = {"assert": ("assertions", as_node)}
_ASSERTIONS = {"effects": ("effects", as_node)}
_RULE = {
    "text": ("text", text(r"(?s).{1,1000}", "a regular expression of at most 1,000 characters")),
    "tool": ("tool", text(r"[!-~]{1,200}", "the name of a tool")),
}


class AgentDefinition(msgspec.Struct, frozen=True):
    """One file of `agents/`. `claims` are its rules for statements about effects."""

    name: str
    claims: tuple[ClaimRule, ...] = ()


def read_agent(file: str, name: str, content: str) -> tuple[AgentDefinition | None, list[Problem]]:
    """Read a file of `agents/`. Returns None for the agent if one of the problems is an error."""
    root, problems = parse_yaml(file, content)
    if any(problem.severity == "error" for problem in problems):
        return None, problems
    reader = Reader(file)
    sections = reader.section(root, "", _FIELDS)
    assertions = reader.section(sections.get("assertions"), "assert", _ASSERTIONS)
    items = reader.items(assertions.get("effects"), "assert.effects")
    if len(items) > MAX_RULES:
        reader.problem(items[MAX_RULES], f"assert.effects has {len(items):,} rules, the maximum is {MAX_RULES}")
    claims = [_rule(reader, item, f"assert.effects[{at}]") for at, item in enumerate(items[:MAX_RULES])]
    found = [*problems, *reader.problems]
    if any(problem.severity == "error" for problem in found):
        return None, found
    return AgentDefinition(name, tuple(claim for claim in claims if claim is not None)), found


def _rule(reader: Reader, node: Node, name: str) -> ClaimRule | None:
    values = reader.section(node, name, _RULE, required=("text", "tool"))
    if len(values) < len(_RULE):
        return None
    if (problem := pattern_problem(values["text"])) is not None:
        reader.problem(node, f"{name}.text is {problem}")
        return None
    return ClaimRule(values["text"], values["tool"])
