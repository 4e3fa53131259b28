"""Routing in calls, and in `overnight route explain` and `overnight route replay`."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from overnight.brain import Brain, Routing
from overnight.cli.output import console
from overnight.cli.program import program
from overnight.domain import CallFacts, Event, Recorded
from overnight.gateway import PriceBook, RecordedCall, RoutingSimulation, recorded_calls
from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider
from serving import Served, serving

ROUTING = """
default_model: gpt-5.4-mini
tiers: {cheap: gpt-5.4-mini, standard: gpt-5.4}
routes:
  low: {tier: cheap}
  gold: {model: gpt-5.4, when: {header: {x-plan: gold}}}
  eu: {model: eu-1, fallbacks: [gpt-5.4], when: {tag: eu}, residency: [eu]}
  moon: {model: gpt-5.4, residency: [moon]}
  deep: claude-opus-4.6
fallbacks: [{from: claude-opus-4.6, to: gpt-5.4}]
retries: {max_attempts: 1}
providers:
  house: {base_url: "https://eu.example/v1", api_key_env: HOUSE_KEY, models: ["eu-*"], residency: [eu]}
prices:
  eu-1: {input_usd_per_mtok: 1, output_usd_per_mtok: 2}
"""
HARD = "First compare the two designs step by step, then plan the migration, finally prove it.\n" + "word " * 2000


@pytest.fixture
async def served(store: Store, provider: SpawnedProvider) -> AsyncIterator[Served]:
    async with serving(store, provider, ROUTING) as running:
        yield running


def named(response: httpx2.Response) -> str:
    assert response.status_code == 200, response.text
    return response.headers["x-overnight-model"]


# ── where it acts ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_headers_tags_and_prompt_select_the_model(served: Served) -> None:
    job = {"x-job-id": "night"}
    assert named(await served.ask(headers=job | {"X-Plan": "gold", "x-secret": "s"})) == "gpt-5.4"
    assert named(await served.ask(headers=job | {"x-tags": "beta, eu", "x-plan": "none"})) == "eu-1"
    assert named(await served.ask(headers=job | {"x-task": "low"})) == "gpt-5.4-mini"
    assert named(await served.ask(HARD, headers=job | {"x-task": "low"})) == "gpt-5.4"
    assert named(await served.ask(metadata={"tags": "eu"}, headers=job)) == "eu-1"
    gold, eu, low, high, _ = [each.facts for each in await served.events("night") if each.facts.event == "model_called"]
    assert (gold.detail["headers"], "tags" in gold.detail) == ({"x-plan": "gold"}, False)
    assert (eu.detail["tags"], eu.detail["headers"]) == (["beta", "eu"], {"x-plan": "none"})
    assert eu.decision["rejected"] == [
        {"name": "gold", "why": "needs header x-plan: gold"},
        {"name": "gpt-5.4", "why": "provider openai has residency none, not eu"},
    ]
    assert (low.decision["tier"], high.decision["tier"]) == ("cheap", "standard")
    assert low.decision["complexity"] < 0.8 < high.decision["complexity"]
    assert ": tier standard" in high.decision["why"]
    assert "x-secret" not in str([gold, eu, low, high]), "what no rule looks at is not recorded"


async def test_tool_turns_keep_the_tier(served: Served) -> None:
    asked = [{"role": "user", "content": [{"type": "text", "text": HARD}]}]
    called = {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}},
    ]}  # fmt: skip
    turns = [called, {"role": "tool", "tool_call_id": "c1", "content": "found"}]
    answers = [
        await served.http.post("/v1/chat/completions", json={"model": "low", "messages": asked + more})
        for more in ([], turns, [*turns, {"role": "user", "content": "thanks"}])
    ]
    assert [named(each) for each in answers] == ["gpt-5.4", "gpt-5.4", "gpt-5.4-mini"]


async def test_residency_without_target_is_rejected_with_reasons(served: Served, provider: SpawnedProvider) -> None:
    answer = await served.ask(headers={"x-task": "moon"})
    assert answer.status_code == 503
    message = answer.json()["error"]["message"]
    assert "route moon has no target left" in message
    assert "provider openai has residency none, not moon" in message
    assert provider.calls() == []
    assert answer.headers["x-should-retry"] == "false"


async def test_too_many_or_invalid_tags_are_rejected(served: Served) -> None:
    many = await served.ask(headers={"x-tags": ",".join(f"t{n}" for n in range(17))})
    odd = await served.ask(headers={"x-tags": "a;b"})
    assert (many.status_code, odd.status_code) == (400, 400)
    assert "17 tags; the maximum is 16" in many.text
    assert "x-tags" in odd.text


# ── what other rules would cost ─────────────────────────────────────────────────────────────────────────────────────


def routing(text: str) -> Routing:
    return Brain.from_files({"routing.yaml": text.encode()}).routing


async def replayed(served: Served, text: str) -> RoutingSimulation:
    other, ledger = routing(text), served.ledger
    present: Any = served.gateway.routing
    book = PriceBook(present.prices)
    found = RoutingSimulation(ledger, other, PriceBook(other.prices), present=present, present_prices=book)
    for job in await ledger.jobs():
        for call in recorded_calls(job, await ledger.events(job.job_id)):
            await found.take(call)
    return found


def ways(found: RoutingSimulation) -> dict[tuple[str, str], int]:
    return {(move.model_then, move.model_now): move.calls for move in found.moves()}


async def calls_of(served: Served, job: str) -> list[RecordedCall]:
    row = await served.ledger.job(job)
    return recorded_calls(row, await served.ledger.events(row.job_id))


async def test_same_rules_change_nothing(served: Served, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{match: {model: claude-opus-4.6}, fault: {status: 503, code: overloaded, message: m}}]")
    job = {"x-job-id": "night", "x-session-id": "s"}
    for more in ({"x-task": "low"}, {"x-task": "deep"}, {"x-plan": "gold"}, {"x-tags": "eu"}):
        assert (await served.ask(headers=job | more)).status_code == 200
    assert (await served.ask(HARD, headers=job | {"x-task": "low"})).status_code == 200
    assert (await served.ask("alone", model="gpt-5.4-mini")).status_code == 200
    found = await replayed(served, ROUTING)
    moves = list(found.moves())
    assert not any(move.moved for move in moves)
    assert sum(move.calls for move in moves) == 6
    assert all(move.now_microusd == move.then_microusd > 0 for move in moves)
    costs = await served.ledger.costs([job.job_id for job in await served.ledger.jobs()])
    assert sum(move.then_microusd for move in moves) == sum(cost for _, cost, _ in costs.values())
    assert (found.left_out(), found.unpriced, found.erased) == ([], {}, 0)


async def test_attempts_belong_to_calls_and_failed_targets_are_skipped(
    served: Served, provider: SpawnedProvider
) -> None:
    provider.set_rules("rules: [{match: {model: claude-opus-4.6}, fault: {status: 503, code: overloaded, message: m}}]")
    assert named(await served.ask(headers={"x-job-id": "night", "x-task": "deep"})) == "gpt-5.4"
    (call,) = await calls_of(served, "night")
    assert (call.tries, call.model, call.passed_over()) == (2, "gpt-5.4", ("claude-opus-4.6",))
    same_first = await replayed(
        served, "routes: {deep: claude-opus-4.6}\nfallbacks: [{from: claude-opus-4.6, to: gpt-5.4-mini}]"
    )
    assert ways(same_first) == {("gpt-5.4", "gpt-5.4-mini"): 1}, "the one that had failed would have failed again"
    without = await replayed(served, "routes: {deep: claude-opus-4.6}")
    assert (ways(without), [left.why for left in without.left_out()]) == ({}, ["route deep has no target left now"])


async def test_changed_calls_are_priced_with_their_tokens(served: Served) -> None:
    for _ in range(3):
        await served.ask(headers={"x-job-id": "night", "x-task": "low"})
    calls = await calls_of(served, "night")
    other = """
routes: {low: eu-9}
providers: {house: {base_url: "https://eu.example/v1", api_key_env: HOUSE_KEY, models: ["eu-*"]}}
prices: {eu-9: {input_usd_per_mtok: 7, output_usd_per_mtok: 11}}
"""
    found = await replayed(served, other)
    (move,) = found.moves()
    assert (move.route_then, move.model_then, move.route_now, move.model_now) == ("low", "gpt-5.4-mini", "low", "eu-9")
    assert move.now_microusd == sum(call.input_tokens * 7 + call.output_tokens * 11 for call in calls) > 0
    assert move.then_microusd == sum(call.cost_microusd for call in calls) > 0


async def test_changed_price_applies_to_unchanged_routes(served: Served) -> None:
    await served.ask(headers={"x-job-id": "night"})
    (call,) = await calls_of(served, "night")
    found = await replayed(served, "prices: {gpt-5.4-mini: {input_usd_per_mtok: 100, output_usd_per_mtok: 0}}")
    (move,) = found.moves()
    assert not move.moved
    assert (move.then_microusd, move.now_microusd) == (call.cost_microusd, call.input_tokens * 100)


async def test_unknown_price_is_named_and_never_zero(served: Served) -> None:
    await served.ask(headers={"x-job-id": "night", "x-task": "low"})
    await served.ask(headers={"x-job-id": "night", "x-plan": "gold"})
    provider = (
        'providers: {{own: {{base_url: "http://127.0.0.1:9/v1", {key} models: [house-1]}}}}\nroutes: {{low: house-1}}\n'
    )
    for key in ("api_key_env: OWN_KEY,", ""):
        unknown = await replayed(served, provider.format(key=key))
        assert unknown.unpriced == {"house-1": 1}
        assert {move.model_now: move.now_microusd is None for move in unknown.moves()} == {
            "house-1": True,
            "gpt-5.4-mini": False,
        }
    priced = "prices: {own/*: {input_usd_per_mtok: 0, output_usd_per_mtok: 0}}"
    free = await replayed(served, provider.format(key="") + priced)
    assert free.unpriced == {}
    assert {move.model_now: move.now_microusd for move in free.moves()}["house-1"] == 0, "nobody sends a bill"


async def test_unanswered_calls_are_excluded_with_their_cost(served: Served, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{match: {model: gpt-5.4}, fault: {status: 503, code: overloaded, message: m}}]")
    assert (await served.ask(headers={"x-job-id": "night", "x-plan": "gold"})).status_code == 503
    await served.ask(model="eu-1", headers={"x-job-id": "night"})
    found = await replayed(served, "default_model: gpt-5.4-mini")
    assert ways(found) == {}
    assert [(left.why.split(":")[0], left.calls) for left in found.left_out()] == [
        ("failed", 1),
        ("refused now", 1),
    ]


async def test_tiers_use_stored_prompts(served: Served) -> None:
    await served.ask("hello", headers={"x-job-id": "night", "x-task": "deep"})
    await served.ask(HARD, headers={"x-job-id": "night", "x-task": "deep"})
    found = await replayed(served, "tiers: {low: gpt-5.4-mini, high: gpt-5.4}\nroutes: {deep: {tier: low}}")
    assert ways(found) == {("claude-opus-4.6", "gpt-5.4-mini"): 1, ("claude-opus-4.6", "gpt-5.4"): 1}
    assert found.erased == 0


async def test_erased_prompt_counts_as_simple(served: Served) -> None:
    await served.ask(HARD, headers={"x-job-id": "night", "x-task": "deep"})
    (call,) = await calls_of(served, "night")
    call.input_ref = (call.input_ref or "")[:-6] + "000000"
    other = routing("tiers: {low: gpt-5.4-mini, high: gpt-5.4}\nroutes: {deep: {tier: low}}")
    present: Any = served.gateway.routing
    found = RoutingSimulation(served.ledger, other, PriceBook(), present=present, present_prices=PriceBook())
    await found.take(call)
    assert (ways(found), found.erased) == ({("claude-opus-4.6", "gpt-5.4-mini"): 1}, 1)


async def test_parallel_calls_keep_their_attempts(served: Served, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{match: {model: claude-opus-4.6}, fault: {status: 503, code: overloaded, message: m}}]")
    headers = {"x-job-id": "night", "x-task": "deep"}
    answers = await asyncio.gather(*(served.ask(f"q{n}", headers=headers) for n in range(12)))
    assert {named(each) for each in answers} == {"gpt-5.4"}
    calls = await calls_of(served, "night")
    assert [(call.tries, call.model, call.left_out) for call in calls] == [(2, "gpt-5.4", "")] * 12


async def test_simulation_keeps_sticky_weighted_choices(store: Store, provider: SpawnedProvider) -> None:
    even = "weights: {gpt-5.4: 1, gpt-5.4-mini: 1}"
    text = f"routes: {{split: {{{even}}}, jobs: {{{even}, sticky: job}}}}"
    async with serving(store, provider, text) as served:
        for n in range(6):
            await served.ask(model="split", headers={"x-session-id": f"s{n}"})
            await served.ask(model="jobs", headers={"x-job-id": f"j{n}"})
        found = await replayed(served, text)
    assert {then for then, _ in ways(found)} == {"gpt-5.4", "gpt-5.4-mini"}
    assert all(then == now for then, now in ways(found)), "each is hashed by the same id as then"


async def test_attempts_are_grouped_by_name_and_summed(served: Served) -> None:
    await served.ask(headers={"x-job-id": "night"})
    row = await served.ledger.job("night")
    events: list[Recorded] = []

    def happened(event: str, name: str, number: int, cost: int = 0) -> None:
        facts = Event(event, name=name, route="default", call_id=f"{name}{number}", cost_microusd=cost, model="m")
        facts.detail = {"try": number}
        events.append(Recorded(row.job_id, len(events) + 1, 1, facts))

    for name in "ab":
        happened("model_called", name, 1)
    for name, cost in (("a", 5), ("b", 7)):
        happened("model_failed", name, 1, cost)
    happened("model_called", "a", 2)
    happened("model_lost", "a", 2, 11)
    happened("model_called", "b", 2)
    happened("model_succeeded", "b", 2, 13)
    happened("model_called", "c", 1)
    found = recorded_calls(row, events)
    assert [(call.name, call.tries, call.cost_microusd, call.bound_microusd, call.left_out) for call in found] == [
        ("a", 2, 5, 11, "lost"),
        ("b", 2, 20, 0, ""),
        ("c", 1, 0, 0, "in flight"),
    ]


async def test_unchanged_call_keeps_its_recorded_cost(served: Served) -> None:
    await served.ask(headers={"x-job-id": "night"})
    (call,) = await calls_of(served, "night")
    call.cost_microusd += 1_000  # written to the provider's cache, or a failed try that was billed
    present: Any = served.gateway.routing
    found = RoutingSimulation(served.ledger, routing(ROUTING), PriceBook(), present=present, present_prices=PriceBook())
    await found.take(call)
    (move,) = found.moves()
    assert move.now_microusd == move.then_microusd == call.cost_microusd


# ── the commands ────────────────────────────────────────────────────────────────────────────────────────────────────


class Commands:
    def __init__(self, folder: Path) -> None:
        (folder / "brain").mkdir()
        (folder / "brain" / "routing.yaml").write_text(ROUTING)
        self.folder = folder
        self.environment = {
            "OVERNIGHT_BRAIN": str(folder / "brain"),
            "OVERNIGHT_HOME": str(folder),
            "OVERNIGHT_DATABASE_URL": "",
            "DATABASE_URL": str(folder / "ledger.db"),
        }

    def __call__(self, *words: str, code: int = 0) -> str:
        console.cache_clear()  # it is made once for a process' standard output; each call here has one of its own
        result = CliRunner().invoke(program, ["route", *words], env=self.environment)
        assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
        return result.output if code == 0 or result.output else str(result.exception)


@pytest.fixture
def command(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


def test_explain_shows_the_rules_and_targets(command: Commands) -> None:
    out = command("explain", "--tag", "eu", "--header", "X-Plan=none", "--agent", "a")
    lines = {line[:10].strip(): line[10:] for line in out.splitlines() if line[:10].strip()}
    assert lines["route"] == "eu"
    assert lines["reason"] == "matched tag eu"
    assert lines["targets"].startswith(
        "1. eu-1  house · chat/embeddings · $1 in, $1 cached, $2 out per million tokens · in eu"
    )
    assert "gold: needs header x-plan: gold" in out
    assert "gpt-5.4: provider openai has residency none, not eu" in out
    assert lines["limits"] == "deadline 10 min, 8,192 output tokens unless the call sets a limit"
    assert lines["cache"] == "off"


def test_explain_agrees_with_the_gateway(command: Commands) -> None:
    said = json.loads(command("explain", "--task", "low", "--prompt", HARD, "--json"))
    lived = routing(ROUTING).decide(CallFacts(task="low", text=lambda: HARD))
    assert [target["model"] for target in said["targets"]] == list(lived.targets)
    assert (said["tier"], said["complexity"], said["why"]) == (lived.tier, lived.complexity, lived.why)
    assert said["targets"][0]["price"]["input_usd_per_mtok"] > 0
    assert said["rejected"] == []


def test_explain_reads_a_body_with_its_metadata(command: Commands) -> None:
    body = {"model": "low", "messages": [{"role": "user", "content": HARD}]}
    file = command.folder / "body.json"
    file.write_text(json.dumps(body))
    assert json.loads(command("explain", "-f", str(file), "--json"))["tier"] == "standard"
    assert json.loads(command("explain", "-f", str(file), "--prompt", "hi", "--json"))["tier"] == "cheap"
    file.write_text(json.dumps(body | {"model": "auto", "metadata": {"tags": "eu"}}))
    assert json.loads(command("explain", "-f", str(file), "--json"))["route"] == "eu"
    assert json.loads(command("explain", "-f", str(file), "--model", "deep", "--json"))["route"] == "deep"
    file.write_text("{}")
    assert "`messages` is missing" in command("explain", "-f", str(file), code=1)
    assert "cannot read" in command("explain", "-f", str(command.folder / "none.json"), code=1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "gtp-5.4"], "Similar: gpt-5.4"),
        (["--format", "soap"], "one of chat, "),
        (["--header", "x-plan"], "expected NAME=VALUE"),
        (["--tag", "a;b"], "--tag"),
        (["--task", "moon"], "none: the call is rejected"),
        (["--routing", "/nowhere.yaml"], "cannot be read"),
    ],
)
def test_explain_errors_have_instructions(command: Commands, words: list[str], says: str) -> None:
    assert says in command("explain", *words, code=1)


def test_invalid_routing_file_is_named(command: Commands) -> None:
    other = command.folder / "other.yaml"
    other.write_text("routes: {a: 3}\nbudgts: 1\n")
    said = command("explain", "--routing", str(other), code=1)
    assert f"{other}:1:13: error" in said
    assert f"{other}:2:1: error" in said


async def test_replay_prints_changed_and_excluded_calls(tmp_path: Path, provider: SpawnedProvider) -> None:
    command = Commands(tmp_path)
    with open_store(command.environment["DATABASE_URL"]) as store:
        async with serving(store, provider, ROUTING) as served:
            for more in ({"x-task": "low"}, {"x-task": "deep"}, {"x-plan": "gold"}):
                await served.ask(headers={"x-job-id": "night"} | more)
            await served.ask(headers={"x-job-id": "other", "x-tags": "eu"})
    other = tmp_path / "cheaper.yaml"
    other.write_text(
        "routes:\n  deep: gpt-5.4-mini\n  blue: {model: gpt-5.4, when: {header: {x-colour: blue}}}\n  low: house-1\n"
        "providers: {own: {base_url: 'https://own.example/v1', api_key_env: OWN_KEY, models: [house-1]}}\n"
    )

    def run(*words: str) -> str:
        return command("replay", "--routing", str(other), *words)

    said = json.loads(await asyncio.to_thread(run, "--json"))
    assert (said["calls"], said["moved"]) == (4, 4)
    assert said["cost_now_usd"] < said["cost_then_usd"]
    assert said["difference_usd"] == pytest.approx(said["cost_now_usd"] - said["cost_then_usd"])
    assert said["unknown_prices"] == {"house-1": 1}
    assert said["headers_not_recorded"] == ["x-colour"]
    rows = {(row["model_then"], row["model_now"]): row for row in said["rows"]}
    assert rows["gpt-5.4-mini", "house-1"]["cost_now_usd"] is None
    assert rows["claude-opus-4.6", "gpt-5.4-mini"]["cost_now_usd"] > 0
    summed = sum(row["cost_then_usd"] for row in said["rows"] if row["cost_now_usd"] is not None)
    assert said["cost_then_usd"] == pytest.approx(summed)

    shown = await asyncio.to_thread(run)
    assert "4 of 4 calls would change target" in shown
    assert "deep · claude-opus-4.6" in shown
    assert "unknown price of house-1: 1 call not in the sums" in shown
    assert "header x-colour is not recorded" in shown
    one = json.loads(await asyncio.to_thread(run, "--job", "other", "--json"))
    assert one["calls"] == 1
    assert json.loads(await asyncio.to_thread(run, "--since", "1h", "--json"))["calls"] == 4
    assert json.loads(await asyncio.to_thread(run, "--since", "2999-01-31", "--json"))["calls"] == 0
    assert json.loads(await asyncio.to_thread(run, "--tenant", "nobody", "--json"))["calls"] == 0
    assert "expected 7d" in await asyncio.to_thread(
        lambda: command("replay", "--routing", str(other), "--since", "soon", code=1)
    )
