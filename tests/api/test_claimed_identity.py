"""An agent or workflow that a header claims, but the key is not bound to, makes rules stricter and never looser."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

import overnight
from overnight.brain import Brain
from overnight.domain import CallFacts
from overnight.gateway import recorded_calls
from overnight.jobs import Operations
from overnight.keys import Keys, NewKey
from overnight.store import Store
from overnight.testing import SpawnedProvider
from served_jobs import rest, working
from serving import Served, serving

RULES = """
default_model: gpt-5.4-nano
providers:
  eu: {base_url: "https://eu.example", models: [eu-small, eu-large], residency: [eu]}
  us: {base_url: "https://us.example", models: [us-large]}
routes:
  vip: {model: us-large, fallbacks: [eu-large], when: {agent: vip}, deadline_ms: 90000}
  night: {model: us-large, when: {workflow: night}}
  boss: {model: us-large, when: {header: {x-agent-name: boss}}}
  thrifty: {model: eu-small, when: {agent: "thrifty-*"}, max_output_tokens: 10}
  large: {model: eu-large, when: {model: eu-large}, residency: [eu], max_output_tokens: 500, deadline_ms: 30000}
  strict: {model: eu-small, when: {format: [chat, messages, responses]}, residency: [eu], max_output_tokens: 100}
"""
OPEN = """
default_model: gpt-5.4-nano
routes:
  vip: {model: gpt-5.4, when: {agent: vip}}
  cheap: {model: gpt-5.4-mini, when: {agent: cheap, workflow: w}}
"""


def decided(rules: str, **facts: Any) -> Any:
    found = Brain.from_files({"routing.yaml": rules.encode()}).routing.decide(CallFacts(**{"has_key": True, **facts}))
    return found.route, found.targets, found.output_cap


STRICT = ("strict", ("eu-small",), 100)


@pytest.mark.parametrize(
    "facts",
    [
        {"workflow": "night"},
        {"headers": {"x-agent-name": "boss"}, "agent": "boss"},
        {"task": "night"},
        {"model": "night"},
        {"model": "boss"},
        {"workflow": "night", "key_agent": "other", "agent": "other"},
    ],
)
def test_claim_or_name_selects_no_looser_rule(facts: dict[str, Any]) -> None:
    assert decided(RULES, **facts) == STRICT
    assert decided(RULES, **facts, has_key=False)[0] != "strict"  # without keys, headers are all there is


def test_claim_keeps_what_the_call_can_reach_without_it() -> None:
    """The American model is out of reach; the European one is within, with its own cap and deadline."""
    routing = Brain.from_files({"routing.yaml": RULES.encode()}).routing
    found = routing.decide(CallFacts(agent="vip", has_key=True))
    assert (found.route, found.targets, found.output_cap, found.deadline_ms) == ("vip", ("eu-large",), 500, 30_000)
    assert ("us-large", "the key is not bound to agent vip") in found.rejected
    own = routing.decide(CallFacts(agent="vip", has_key=True, key_agent="vip"))
    assert (own.targets, own.output_cap, own.deadline_ms) == (("us-large", "eu-large"), None, 90_000)


def test_claim_selects_a_stricter_rule() -> None:
    assert decided(RULES, agent="thrifty-1") == ("thrifty", ("eu-small",), 10)


def test_claim_selects_a_rule_where_no_other_restricts_the_call() -> None:
    """Any caller could name the model."""
    assert decided(OPEN, agent="vip") == ("vip", ("gpt-5.4",), None)
    assert decided(OPEN, model="vip") == ("vip", ("gpt-5.4",), None)
    assert decided(OPEN, agent="cheap", workflow="w", key_agent="cheap")[0] == "cheap"


def test_refused_claim_names_its_reason() -> None:
    routing = Brain.from_files({"routing.yaml": RULES.encode()}).routing
    found = routing.decide(CallFacts(workflow="night", has_key=True))
    assert found.rejected[-1] == ("night", "the key is not bound to workflow night")


# ── over HTTP ────────────────────────────────────────────────────────────────────────────────────────────────────────

LIMITED = """
default_model: gpt-5.4-nano
routes:
  vip: {model: gpt-5.4, when: {agent: vip}}
  everyone: {model: gpt-5.4-mini, when: {format: [chat]}}
"""
AGENT = (
    "budgets: {limits: [{scope: agent, only: poor, max_llm_calls: 1}, {scope: agent, only: rich, max_llm_calls: 3}]}"
)
WORKFLOW = "budgets: {limits: [{scope: workflow, only: poor, max_llm_calls: 1}, {scope: workflow, only: rich, max_llm_calls: 3}]}"
JOB = "budgets: {max_llm_calls_per_job: 1, limits: [{scope: job, only: rich, max_llm_calls: 9}]}"
SESSION = "budgets: {limits: [{scope: session, max_llm_calls: 1}, {scope: session, only: rich, max_llm_calls: 3}]}"
STEP = "budgets: {limits: [{scope: step, max_llm_calls: 1}, {scope: step, only: rich, max_llm_calls: 3}]}"
TENANT = "budgets: {limits: [{scope: tenant, max_llm_calls: 1}, {scope: agent, only: rich, max_llm_calls: 9}]}"
KEY = "budgets: {limits: [{scope: key, max_llm_calls: 1}, {scope: agent, only: rich, max_llm_calls: 9}]}"


async def key(served: Served, name: str, **fields: Any) -> dict[str, str]:
    _, secret = await Keys(served.store).create("acme", NewKey(name=name, scopes=("calls",), **fields), "ann")
    return {"authorization": f"Bearer {secret}"}


@pytest.fixture
async def served(store: Store, provider: SpawnedProvider) -> AsyncIterator[Served]:
    async with serving(store, provider, LIMITED, hosts=None) as running:
        yield running


async def test_claims_in_headers_baggage_and_metadata_select_no_looser_model(served: Served) -> None:
    anyone, vip = await key(served, "anyone"), await key(served, "vip", agent_id="vip")
    claims: list[dict[str, Any]] = [
        {"headers": anyone | {"x-agent-name": "vip"}},
        {"headers": anyone | {"baggage": "agent=vip"}},
        {"headers": anyone | {"x-task": "vip"}},
        {"headers": anyone, "metadata": {"agent_name": "vip"}},
        {"headers": anyone, "model": "vip"},
    ]
    for claim in claims:
        answer = await served.ask(**claim)
        assert (answer.status_code, answer.headers["x-overnight-model"]) == (200, "gpt-5.4-mini"), claim
    assert (await served.ask(headers=vip)).headers["x-overnight-model"] == "gpt-5.4"


async def test_events_keep_claims_for_repeated_decisions(served: Served) -> None:
    """`route replay` decides the call as it was decided."""
    anyone, vip = await key(served, "anyone"), await key(served, "vip", agent_id="vip")
    await served.ask(headers=anyone | {"x-agent-name": "vip", "x-job-id": "a", "x-workflow": "w"})
    await served.ask(headers=vip | {"x-job-id": "b"})
    for name, route, claimed in (("a", "everyone", ["agent", "workflow"]), ("b", "vip", None)):
        job = await served.ledger.job(name, "acme")
        events = await served.ledger.events(job.job_id)
        (called,) = [each.facts for each in events if each.facts.event == "model_called"]
        assert ((called.detail or {}).get("claimed"), called.agent_id) == (claimed, "vip")
        (call,) = recorded_calls(job, events)
        assert served.gateway.routing.decide(call.facts).route == route == called.route


@pytest.mark.parametrize(
    ("budgets", "header"),
    [
        (AGENT, "x-agent-name"),
        (WORKFLOW, "x-workflow"),
        (JOB, "x-workflow"),
        (SESSION, "x-session-id"),
        (STEP, "x-step"),
        (TENANT, "x-agent-name"),
        (KEY, "x-agent-name"),
    ],
    ids=["agent", "workflow", "job", "session", "step", "tenant", "key"],
)
async def test_no_header_reaches_a_bigger_budget(
    store: Store, provider: SpawnedProvider, budgets: str, header: str
) -> None:
    """Of each kind of budget: what the identity of the key, or the scope itself, is limited to holds under any name."""
    async with serving(store, provider, f"default_model: gpt-5.4\n{budgets}", hosts=None) as served:
        bound: dict[str, Any] = {"agent_id": "poor", "workflow": "poor"}
        caller = await key(served, "poor", **(bound if budgets in (AGENT, WORKFLOW) else {}))
        job = {"x-job-id": "j", "x-session-id": "rich", "x-step": "rich"}
        named = [{"x-job-id": "j"}, {"x-job-id": "j", header: "rich"}, {"baggage": "agent=rich", "x-job-id": "j"}]
        if budgets in (SESSION, STEP):  # names of the caller: each has the limit that holds for all
            named = [job, job, job]
        codes = [(await served.ask(f"{n}", headers=caller | more)).status_code for n, more in enumerate(named)]
        assert codes[0] == 200
        assert set(codes[1:]) <= {402, 403}, codes


async def test_no_header_reaches_a_higher_rate(store: Store, provider: SpawnedProvider) -> None:
    rules = """
default_model: gpt-5.4
deadlines: {queue_ms: 2000}
rate_limits:
  - {scope: agent, only: poor, requests_per_minute: 1}
  - {scope: agent, only: rich, requests_per_minute: 100}
"""
    async with serving(store, provider, rules, hosts=None) as served:
        poor = await key(served, "poor", agent_id="poor")
        assert (await served.ask("1", headers=poor)).status_code == 200
        for n, more in enumerate(({}, {"x-agent-name": "rich"}, {"baggage": "agent=rich"})):
            assert (await served.ask(f"again {n}", headers=poor | more)).status_code in (403, 429)


async def test_header_does_not_leave_the_limits_of_a_confirmed_job(store: Store, provider: SpawnedProvider) -> None:
    rules = f"default_model: gpt-5.4\n{AGENT}\nrate_limits: [{{scope: agent, only: slow, requests_per_minute: 1}}]"
    async with serving(store, provider, rules, hosts=None) as served:
        poor, anyone = await key(served, "poor", agent_id="poor"), await key(served, "anyone")
        assert (await served.ask("1", headers=poor | {"x-job-id": "j"})).status_code == 200
        for more in ({}, {"x-agent-name": "rich"}, {"x-agent-name": "new"}):
            answer = await served.ask("2", headers=anyone | {"x-job-id": "j"} | more)
            assert (answer.status_code, "agent poor" in answer.text) == (402, True)
        # A job of several agents under a key of none: each pays for itself.
        for name, code in (("poor-1", 200), ("poor", 402), ("rich", 200)):
            headers = anyone | {"x-job-id": "shared", "x-agent-name": name}
            assert (await served.ask(name, headers=headers)).status_code == code


@overnight.job(agent="poor")
async def waits() -> None:
    await overnight.chat("hello")
    await overnight.approval("Go on?")


async def test_header_does_not_leave_the_limits_of_job_code(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, f"default_model: gpt-5.4\n{AGENT}") as served, working(served):
        job = await Operations(served.store).create(waits, ())
        await rest(served, job.job_id, "parked")
        answer = await served.ask(headers={"x-job-id": job.job_id, "x-agent-name": "rich"})
        assert (answer.status_code, "agent poor" in answer.text) == (402, True)


async def test_models_and_routes_of_a_key_hold_under_any_name(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, OPEN, hosts=None) as served:
        small = await key(served, "small", models=("*-mini", "*-nano"))
        for more in ({"x-agent-name": "vip"}, {"x-task": "vip"}, {"baggage": "agent=vip"}):
            assert (await served.ask(headers=small | more)).status_code == 403, more
        routes = await key(served, "routes", routes=("cheap",))
        for more in ({"x-agent-name": "vip"}, {"x-task": "vip"}):
            assert (await served.ask(headers=routes | more)).status_code == 403, json.dumps(more)
