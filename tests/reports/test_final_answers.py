"""Tools that a model asked for and nothing followed, in every client format; claims of the final answer."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

import overnight
from job_runs import run
from overnight.domain import BadInput
from overnight.domain.claim_rules import ClaimRule
from overnight.ledger import KeepBrain, Ledger
from overnight.reports import EffectEntry, load_receipt, public_receipt
from overnight.reports.claims import ClaimChecker, find_statements
from overnight.store import Store
from overnight.story import receipt_head, receipt_lines
from overnight.testing import SpawnedProvider
from serving import ROUTING, Served, serving

RULES = """
rules:
  - name: ends
    match: {user_contains: done}
    answer: "I have refunded pay_7 and refunded pay_9."
  - name: calls
    answer:
      tool_calls: [{name: refund, arguments: {payment: pay_7}}]
"""
SCHEMA = {"type": "object", "properties": {"payment": {"type": "string"}}}
ASSERTED = b'assert:\n  effects:\n    - {text: "(?i)refunded (?P<payment>pay_\\\\w+)", tool: refund}\n'


@pytest.fixture
def provider(spawned_provider: SpawnedProvider) -> SpawnedProvider:
    spawned_provider.set_rules(RULES)
    spawned_provider.reset()
    return spawned_provider


@pytest.fixture
async def served(store: Store, provider: SpawnedProvider) -> AsyncIterator[Served]:
    async with serving(store, provider) as running:
        yield running


def chat(text: str, answer: Any = None) -> tuple[str, Any]:
    messages: list[Any] = [{"role": "user", "content": text}]
    if answer is not None:
        message = answer["choices"][0]["message"]
        result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "ok"}
        messages += [message, result, {"role": "user", "content": "done"}]
    tools = [{"type": "function", "function": {"name": "refund", "parameters": SCHEMA}}]
    return "/v1/chat/completions", {"model": "gpt-5.4-mini", "messages": messages, "tools": tools}


def messages(text: str, answer: Any = None) -> tuple[str, Any]:
    said: list[Any] = [{"role": "user", "content": text}]
    if answer is not None:
        call = next(block for block in answer["content"] if block["type"] == "tool_use")
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": "ok"}
        said += [{"role": "assistant", "content": answer["content"]}]
        said += [{"role": "user", "content": [result, {"type": "text", "text": "done"}]}]
    tools = [{"name": "refund", "input_schema": SCHEMA}]
    return "/v1/messages", {"model": "gpt-5.4-mini", "max_tokens": 100, "messages": said, "tools": tools}


def responses(text: str, answer: Any = None) -> tuple[str, Any]:
    items: list[Any] = [{"role": "user", "content": text}]
    if answer is not None:
        call = next(item for item in answer["output"] if item["type"] == "function_call")
        items += [call, {"type": "function_call_output", "call_id": call["call_id"], "output": "ok"}]
        items += [{"role": "user", "content": "done"}]
    tools = [{"type": "function", "name": "refund", "parameters": SCHEMA}]
    return "/v1/responses", {"model": "gpt-5.4-mini", "input": items, "tools": tools}


def gemini(text: str, answer: Any = None) -> tuple[str, Any]:
    contents: list[Any] = [{"role": "user", "parts": [{"text": text}]}]
    if answer is not None:
        response = {"functionResponse": {"name": "refund", "response": {"ok": True}}}
        contents += [answer["candidates"][0]["content"], {"role": "user", "parts": [response]}]
        contents += [{"role": "user", "parts": [{"text": "done"}]}]
    tools = [{"functionDeclarations": [{"name": "refund", "parameters": SCHEMA}]}]
    return "/v1beta/models/gpt-5.4-mini:generateContent", {"contents": contents, "tools": tools}


async def receipt_of(served: Served, name: str) -> Any:
    job = await served.ledger.job(name)
    return await load_receipt(served.ledger, job)


@pytest.mark.parametrize("client", [chat, messages, responses, gemini])
async def test_tools_that_nothing_followed_are_listed(served: Served, client: Any) -> None:
    headers = {"x-job-id": "night"}
    path, body = client("refund it")
    first = await served.http.post(path, json=body, headers=headers)
    assert first.status_code == 200, first.text
    made = await receipt_of(served, "night")
    assert [call.tool for call in made.unexecuted] == ["refund"]
    assert receipt_head(made).endswith("no effect passed through Overnight; 1 tool asked for was not seen executed")
    (line,) = receipt_lines(made, served.store.clock())
    assert (line.mark, line.text) == ("!", "refund  asked for by the model, not seen executed")
    path, body = client("refund it", first.json())
    second = await served.http.post(path, json=body, headers=headers)
    assert second.status_code == 200, second.text
    made = await receipt_of(served, "night")
    assert made.unexecuted == []
    assert "the program reported 1 tool result to the model" in receipt_head(made)


async def test_a_call_without_tools_asks_for_nothing(served: Served) -> None:
    await served.ask("done", headers={"x-job-id": "night"})
    made = await receipt_of(served, "night")
    assert receipt_head(made).endswith("night running: no effect passed through Overnight")


async def test_final_answer_of_an_agent_is_compared_with_effects(served: Served) -> None:
    """A model's claim without an effect is unsupported: what it says is no evidence."""
    files = {"routing.yaml": ROUTING.encode(), "agents/support.yaml": ASSERTED}
    await served.store.commit(KeepBrain(served.gateway.brain_version or "", files))
    await served.ask("done", headers={"x-job-id": "night", "x-agent-name": "support"})
    made = public_receipt(await receipt_of(served, "night"), with_content=True)
    assert [(claim["text"], claim["verdict"]) for claim in made["claims"]] == [
        ("refunded pay_7", "unsupported"),
        ("refunded pay_9", "unsupported"),
    ]
    bare = public_receipt(await receipt_of(served, "night"), with_content=False)
    assert bare["claims"][0] == {"tool": "refund", "verdict": "unsupported", "effect_id": None, "found_by": None}


# ── claims of job code ──────────────────────────────────────────────────────────────────────────────────────────────


@overnight.effect
async def refund(payment: str, usd: float) -> object:
    return overnight.Done(f"re_{payment}", True)


PAID = {"text": r"(?i)refunded (?P<payment>pay_\w+)(?: with \$(?P<usd>[\d.]+))?", "tool": "refund"}


@overnight.job(assert_effects=[PAID])
async def pays(text: str) -> str:
    await refund("pay_7", 40.0)
    return text


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ("Refunded pay_7.", ["supported"]),
        ("Refunded pay_7 with $40.00, and again: refunded pay_7 with $40.00.", ["supported"]),
        ("Refunded pay_7 with $400.", ["unsupported"]),
        ("Refunded pay_7 and refunded pay_12.", ["supported", "unsupported"]),
        ("All is well.", []),
    ],
)
async def test_each_statement_needs_an_effect_with_its_arguments(store: Store, text: str, verdicts: list[str]) -> None:
    job = await run(store, pays, text)
    made = await load_receipt(Ledger(store), job)
    assert [claim.verdict for claim in made.claims] == verdicts
    for claim in made.claims:
        assert (claim.effect_id == made.effects[0].effect_id) == (claim.verdict == "supported")
    lines = [f"{line.mark} {line.text}" for line in receipt_lines(made, store.clock())]
    if "unsupported" in verdicts:
        assert lines[-1].startswith("! claim ")
        assert lines[-1].endswith(": no such effect")


async def test_rules_are_checked_before_the_job_is_defined() -> None:
    with pytest.raises(BadInput, match=r"assert_effects\[0\].text: not a usable pattern"):
        overnight.job(assert_effects=[{"text": "(", "tool": "refund"}])
    with pytest.raises(BadInput, match="unknown field 'tools'"):
        overnight.job(assert_effects=[{"text": "x", "tools": "refund"}])


@pytest.mark.parametrize(
    ("state", "found_by", "verdict"),
    [
        ("committed", "executed", "supported"),
        ("committed", "reported", "supported"),
        ("unknown", None, "pending"),
        ("waiting", None, "pending"),
        ("rejected", None, "unsupported"),
    ],
)
def test_verdict_follows_the_state_of_the_effect(state: str, found_by: str | None, verdict: str) -> None:
    checker = ClaimChecker(find_statements([ClaimRule(PAID["text"], "refund")], "refunded pay_7"))
    checker.add("key", "refund", {"payment": "pay_7", "usd": 40})
    entry = EffectEntry(job_id="job", tool="refund", state=state, at=0, since=0, effect_id="eff_1", found_by=found_by)
    (claim,) = checker.verdicts({"key": entry})
    assert (claim.verdict, claim.found_by) == (verdict, found_by if verdict == "supported" else None)


def test_an_edit_replaces_the_arguments_that_were_asked() -> None:
    checker = ClaimChecker(find_statements([ClaimRule(PAID["text"], "refund")], "refunded pay_7"))
    checker.add("key", "refund", {"payment": "pay_7"})
    checker.add("key", "refund", {"payment": "pay_8"})
    assert checker.candidates() == []
