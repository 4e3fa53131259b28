"""Routing decisions: the matching rule, the reasons against the others, and the limits of rules."""

import json
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.brain import Brain, Routing, UnknownModel
from overnight.brain.complexity import READ_CHARS, score
from overnight.domain import CallFacts

HOUSES = """
providers:
  frankfurt: {base_url: https://eu.example/v1, models: ["eu-*"], residency: [eu, de]}
  virginia: {base_url: https://us.example/v1, models: ["us-*"], residency: us}
  nowhere: {base_url: https://any.example/v1, models: ["any-*"]}
"""
HARD = "First compare the two designs step by step, then plan the migration, finally prove it.\n" + "word " * 2000


def routing(text: str) -> Routing:
    return Brain.from_files({"routing.yaml": (text + HOUSES).encode()}).routing


def never() -> str:
    raise AssertionError("the prompt was read for a rule that does not weigh it")


# ── conditions ──────────────────────────────────────────────────────────────────────────────────────────────────────

RULES = """
default_model: any-default
routes:
  named: us-named
  gold: {model: us-gold, when: {header: {X-Plan: [gold, platin*]}, agent: "support-*"}}
  flow: {model: us-flow, when: {workflow: nightly, task: [triage, sort-?]}}
  tagged: {model: eu-tagged, when: {tag: [eu, "eu-*"]}}
  big: {model: us-big, when: {model: "us-huge-*"}}
  vectors: {model: any-embedder, when: {format: embeddings, agent: indexer}}
"""


@pytest.mark.parametrize(
    ("facts", "route", "rejected"),
    [
        ({"agent": "support-1", "headers": {"x-plan": "gold"}}, "gold", []),
        ({"agent": "support-1", "headers": {"x-plan": "platinum"}}, "gold", []),
        ({"agent": "sales", "headers": {"x-plan": "gold"}}, "default", ["gold", "flow", "tagged", "big", "vectors"]),
        ({"agent": "support-1", "tags": ("x", "eu-west")}, "tagged", ["gold", "flow"]),
        ({"workflow": "nightly", "task": "sort-2"}, "flow", ["gold"]),
        ({"workflow": "nightly", "task": "sort-22"}, "default", ["gold", "flow", "tagged", "big", "vectors"]),
        ({"workflow": "weekly", "task": "sort-2"}, "default", ["gold", "flow", "tagged", "big", "vectors"]),
        ({"model": "us-huge-3"}, "big", ["gold", "flow", "tagged"]),
        ({"model": "us-small"}, "as_asked", ["gold", "flow", "tagged", "big", "vectors"]),
        ({"task": "named", "agent": "support-1", "headers": {"x-plan": "gold"}}, "named", []),
        ({"model": "named", "tags": ("eu",)}, "named", []),
        ({"task": "gold"}, "gold", []),
        ({"model": "any-embedder", "format": "embeddings", "agent": "indexer"}, "vectors", ["gold", "flow", "tagged", "big"]),
        ({"model": "any-e", "format": "embeddings", "tags": ("eu",)}, "as_asked", ["gold", "flow", "tagged", "big", "vectors"]),
    ],
)  # fmt: skip
def test_first_matching_rule_wins_and_others_have_reasons(facts: dict[str, Any], route: str, rejected: list[str]):
    decision = routing(RULES).decide(CallFacts(**facts, text=never))
    assert decision.route == route
    assert [name for name, _ in decision.rejected] == rejected
    assert all(why.startswith("needs ") for _, why in decision.rejected)


def test_reasons_name_the_conditions():
    said = routing(RULES)
    decision = said.decide(CallFacts(agent="support-1", tags=("eu",)))
    assert decision.rejected == (
        ("gold", "needs header x-plan: gold or platin*"),
        ("flow", "needs task triage or sort-?"),
    )
    assert decision.why == "matched tag eu or eu-*"
    assert said.header_names == {"x-plan"}


def test_chat_route_of_a_task_does_not_apply_to_embeddings():
    said = routing(RULES)
    asked = said.decide(CallFacts(task="named", model="any-embedder", format="embeddings"))
    assert (asked.route, asked.targets) == ("as_asked", ("any-embedder",))
    assert "does not serve embeddings" in asked.why
    assert said.decide(CallFacts(task="named", model="auto", format="embeddings")).route == "named"
    assert said.decide(CallFacts(task="vectors", model="us-small", format="embeddings")).route == "vectors"


def test_embeddings_have_their_own_default_deadline():
    said = routing("routes: {quick: {model: us-a, deadline_ms: 700}, plain: us-b}\ndeadlines: {default_ms: 20000}")
    times = {
        (model, form): said.decide(CallFacts(model=model, format=form)).deadline_ms
        for model in ("quick", "plain", "us-x")
        for form in ("chat", "embeddings")
    }
    assert times == {
        ("quick", "chat"): 700, ("quick", "embeddings"): 700,
        ("plain", "chat"): 20_000, ("plain", "embeddings"): 10_000,
        ("us-x", "chat"): 20_000, ("us-x", "embeddings"): 10_000,
    }  # fmt: skip


def test_decisions_carry_cache_and_degraded_settings():
    said = routing("""
breakers: {when_all_open: fail}
cache:
  exact: {ttl_s: 60}
  semantic: {model: any-embedder, mode: on, agents: {"bot-*": {mode: shadow, threshold: 0.99}}}
  prompt_markers: true
routes:
  plain: us-a
  own:
    model: us-a
    cache: {exact: 0, semantic: off}
    when_all_open: wait
    degraded: {cache: true, answer: "later, please"}
""")
    plain, own = (said.decide(CallFacts(model=name)) for name in ("plain", "own"))
    assert (plain.when_all_open, plain.degraded, plain.cache) == ("fail", None, said.cache)
    assert said.decide(CallFacts()).when_all_open == "fail"
    semantic = plain.cache.semantic
    assert semantic is not None
    assert [(semantic.of(name).mode, semantic.of(name).threshold) for name in (None, "ann", "bot-1")] == [
        ("on", 0.95),
        ("on", 0.95),
        ("shadow", 0.99),
    ]
    assert own.degraded is not None
    assert (own.when_all_open, own.degraded.answer, own.degraded.cache) == ("wait", "later, please", True)
    semantic = own.cache.semantic
    assert semantic is not None
    assert own.cache.exact_ttl_s == 0
    assert {semantic.of(name).mode for name in (None, "bot-1")} == {"off"}
    assert own.cache.prompt_markers


# ── weights ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def split(first: int, second: int) -> Routing:
    return routing(
        f"routes: {{r: {{weights: {{us-a: {first}, us-b: {second}}}}}}}\nfallbacks: [{{from: us-a, to: eu-a}}]"
    )


def test_sessions_are_divided_by_weight_and_sticky():
    said = split(70, 30)
    first = {f"s{n}": said.decide(CallFacts(model="r", session=f"s{n}")).targets for n in range(10_000)}
    again = {f"s{n}": said.decide(CallFacts(model="r", session=f"s{n}", job=f"j{n}")).targets for n in range(10_000)}
    assert first == again
    assert Counter(first.values()) == {
        ("us-a", "eu-a"): pytest.approx(7_000, abs=200),
        ("us-b",): pytest.approx(3_000, abs=200),
    }


def test_changed_weight_moves_only_the_difference_of_sessions():
    before, after = (
        [said.decide(CallFacts(model="r", session=f"s{n}")).targets for n in range(4_000)]
        for said in (split(70, 30), split(60, 40))
    )
    moved = sum(one != other for one, other in zip(before, after, strict=True))
    assert moved == pytest.approx(400, abs=80)
    assert all(other == ("us-b",) for one, other in zip(before, after, strict=True) if one != other)


def test_sticky_selection_uses_session_job_or_none():
    said = routing("""
routes:
  session: {weights: {us-a: 1, us-b: 1}}
  job: {weights: {us-a: 1, us-b: 1}, sticky: job}
  none: {weights: {us-a: 1, us-b: 1}, sticky: none}
""")

    def chosen(route: str, **ids: str) -> set[str]:
        return {said.decide(CallFacts(model=route, **ids)).targets[0] for _ in range(60)}

    assert len(chosen("session", session="s", job="j")) == len(chosen("session", job="j")) == 1
    assert len(chosen("job", session="s", job="j")) == 1
    assert len(chosen("session")) == len(chosen("job", session="s")) == len(chosen("none", session="s", job="j")) == 2
    of_jobs = {said.decide(CallFacts(model="job", session="s", job=f"j{n}")).targets[0] for n in range(60)}
    assert len(of_jobs) == 2, "another job may go another way in the same session"


def test_call_without_an_id_is_selected_by_chance():
    said = split(70, 30)

    def drawn(seed: int) -> list[tuple[str, ...]]:
        chance = random.Random(seed).random
        return [said.decide(CallFacts(model="r"), chance=chance).targets for _ in range(3_000)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert Counter(drawn(1))[("us-b",)] == pytest.approx(900, abs=120)
    assert said.decide(CallFacts(model="r"), chance=lambda: 1.0).targets == ("us-b",)


def test_routes_divide_sessions_independently():
    said = routing("routes: {r: {weights: {us-a: 1, us-b: 1}}, q: {weights: {us-a: 1, us-b: 1}}}")
    alike = sum(
        said.decide(CallFacts(model="r", session=str(n))).targets
        == said.decide(CallFacts(model="q", session=str(n))).targets
        for n in range(2_000)
    )
    assert alike == pytest.approx(1_000, abs=120)


def test_zero_weight_is_never_selected():
    closed = routing("routes: {r: {weights: {us-a: 9, eu-a: 0}, residency: eu}}")
    assert closed.decide(CallFacts(model="r")).targets == (), "not even where it is all that residency leaves"
    assert {split(0, 5).decide(CallFacts(model="r", session=str(n))).targets for n in range(500)} == {("us-b",)}


# ── tiers ───────────────────────────────────────────────────────────────────────────────────────────────────────────

TIERS = """
tiers: {cheap: us-small, standard: [us-mid, eu-mid], strong: us-big}
routes:
  low: {tier: cheap}
  mid: {tier: standard, fallbacks: [any-last]}
  top: {tier: strong}
"""


@pytest.mark.parametrize(
    ("route", "prompt", "tier", "targets"),
    [
        ("low", "hello", "cheap", ("us-small",)),
        ("low", HARD, "standard", ("us-mid", "eu-mid")),
        ("mid", "hello", "standard", ("us-mid", "eu-mid", "any-last")),
        ("mid", HARD, "strong", ("us-big", "any-last")),
    ],
)
def test_complex_prompt_moves_up_one_tier(route: str, prompt: str, tier: str, targets: tuple[str, ...]):
    decision = routing(TIERS).decide(CallFacts(task=route, text=lambda: prompt))
    assert (decision.tier, decision.targets) == (tier, targets)
    assert decision.complexity == score(prompt)
    assert (f": tier {tier}" in decision.why) == (prompt is HARD)


def test_prompt_is_not_read_in_the_highest_tier():
    decision = routing(TIERS).decide(CallFacts(task="top", text=never))
    assert (decision.tier, decision.targets, decision.complexity) == ("strong", ("us-big",), None)


def test_complexity_threshold_comes_from_the_brain():
    said = routing(TIERS + "complexity: {threshold: 1}\n")
    assert said.decide(CallFacts(task="low", text=lambda: HARD)).tier == "cheap"
    assert (
        routing(TIERS + "complexity: {threshold: 0}\n")
        .decide(CallFacts(task="low", text=lambda: "hello there, friend"))
        .tier
        == "standard"
    )


def test_complexity_adds_its_signals():
    code = "```python\nx = 1\n```\n```python\ny = 2\n```\n"
    names = "Ask Berlin, London, Paris, Rome, IBM, SAP, 12.5, 2026-01-31, a@b.example, https://x.example " * 3
    steps = "First read it, then compare, then refactor and finally plan."
    assert score("") == 0
    assert score("Hello, how are you?") < 0.1
    assert 0.3 < score(code) < 0.8
    assert 0.3 < score(names) < 0.8
    assert 0.5 < score(steps) <= 0.8
    assert 0.5 < score("word " * 2000) <= 0.8
    assert score(code + steps) > 0.8
    assert score(steps + "word " * 2000) > 0.8
    assert score("1. read\n2. sort\n3. write\n4. send\n" + names) > 0.8


def test_complexity_of_very_long_prompts_reads_only_the_end():
    assert score("word " * 4_000_000) == score("word " * 2000)
    assert score("x" * READ_CHARS + "first, then, finally, compare") > score(
        "first, then, finally, compare" + "x" * READ_CHARS
    )


@given(st.text(max_size=400), st.text(max_size=400))
def test_complexity_is_a_number_from_0_to_1_and_the_same_each_time(one: str, other: str):
    assert 0 <= score(one) <= 1
    assert score(one) == score(one)
    assert score("a\n" * 4000 + one) >= 0.7 - 0.001, "length alone is worth this much"
    assert score(other) == score(other[:])


# ── residency ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_targets_outside_residency_are_rejected_by_name():
    said = routing("""
tiers: {low: us-a, high: eu-b}
routes:
  chain: {model: us-a, fallbacks: [any-a, eu-a, eu-b], residency: eu}
  none: {model: us-a, residency: [eu]}
  either: {model: us-a, fallbacks: [eu-a], residency: [de, us]}
  split: {weights: {us-a: 90, eu-a: 10}, residency: [eu]}
  tiered: {tier: low, residency: [eu]}
""")
    chain = said.decide(CallFacts(task="chain"))
    assert chain.targets == ("eu-a", "eu-b")
    assert chain.rejected == (
        ("us-a", "provider virginia has residency us, not eu"),
        ("any-a", "provider nowhere has residency none, not eu"),
    )
    none = said.decide(CallFacts(task="none"))
    assert (none.targets, [name for name, _ in none.rejected]) == ((), ["us-a"])
    assert "no target available" in none.why
    assert said.decide(CallFacts(task="either")).targets == ("us-a", "eu-a")
    assert {said.decide(CallFacts(task="split", session=str(n))).targets for n in range(50)} == {("eu-a",)}
    tiered = said.decide(CallFacts(task="tiered", text=never))
    assert (tiered.tier, tiered.targets) == ("high", ("eu-b",))


# ── properties ──────────────────────────────────────────────────────────────────────────────────────────────────────

MODELS = ["us-a", "us-b", "eu-a", "eu-b", "any-a", "odd"]
NAMES = st.sampled_from(["a", "b", "ab", "support-1", "eu"])
GLOBS = st.sampled_from(["a", "b", "a*", "*", "support-?", "[ab]", "eu"])
SOME = st.one_of(GLOBS, st.lists(GLOBS, min_size=1, max_size=3))
WHEN = st.fixed_dictionaries(
    {},
    optional={
        "agent": SOME, "workflow": SOME, "task": SOME, "tag": SOME, "model": SOME,
        "header": st.dictionaries(st.sampled_from(["x-plan", "X-Other"]), SOME, min_size=1, max_size=2),
        "format": st.sampled_from(["chat", "embeddings", ["messages", "chat"]]),
    },
).filter(bool)  # fmt: skip
AIM = st.one_of(
    st.sampled_from(MODELS).map(lambda model: {"model": model}),
    st.sampled_from(["low", "mid", "high"]).map(lambda tier: {"tier": tier}),
    st.dictionaries(st.sampled_from(MODELS), st.integers(0, 9), min_size=1)
    .filter(lambda weights: any(weights.values()))
    .map(lambda weights: {"weights": weights}),
)
ROUTE = st.builds(
    lambda aim, more: aim | more,
    AIM,
    st.fixed_dictionaries(
        {},
        optional={
            "when": WHEN,
            "sticky": st.sampled_from(["session", "job", "none"]),
            "residency": st.sampled_from(["eu", ["us"], ["eu", "us"], ["moon"]]),
            "deadline_ms": st.integers(1, 1000),
            "when_all_open": st.sampled_from(["wait", "fail"]),
        },
    ),
)
FILES = st.fixed_dictionaries(
    {
        "tiers": st.fixed_dictionaries({name: st.sampled_from(MODELS) for name in ("low", "mid", "high")}),
        "routes": st.dictionaries(st.sampled_from(["r1", "r2", "support-1", "a"]), ROUTE, min_size=1),
        "fallbacks": st.sampled_from([[], [{"from": "us-a", "to": "eu-a"}, {"from": "eu-b", "to": "us-b"}]]),
    }
)
MAYBE = st.none() | NAMES
FACTS = st.builds(
    CallFacts,
    model=st.none() | st.sampled_from(["auto", "r1", "us-a", "eu-z", "nobody's"]),
    task=MAYBE | st.just("r2"),
    agent=MAYBE,
    workflow=MAYBE,
    tags=st.lists(NAMES, max_size=3).map(tuple),
    headers=st.dictionaries(st.sampled_from(["x-plan", "x-other"]), NAMES),
    session=MAYBE,
    job=MAYBE,
    format=st.sampled_from(["chat", "responses", "messages", "embeddings"]),
    text=st.sampled_from([lambda: "hello", lambda: HARD]),
)


@settings(max_examples=300, deadline=None)
@given(FILES, FACTS, st.floats(0, 1))
def test_every_decision_stays_within_its_residency(file: dict[str, Any], facts: CallFacts, share: float):
    said = routing("\n".join(f"{key}: {json.dumps(value)}" for key, value in file.items()))
    try:
        decision = said.decide(facts, chance=lambda: share)
    except UnknownModel:
        assert facts.model in ("nobody's", "r1")
        assert facts.model not in file["routes"]
        return
    again = said.decide(facts, chance=lambda: share)
    assert decision == again
    route = file["routes"].get(decision.route)
    if route is None:
        assert decision.route in ("default", "as_asked")
        assert decision.targets
        return
    within = {route["residency"]} if isinstance(route.get("residency"), str) else set(route.get("residency", ()))
    for target in decision.targets:
        provider = said.provider_for(target)
        assert not within or (provider is not None and within & provider.residency)
    assert decision.targets or within, "only residency may leave nothing"
    closed = {name for name, _ in decision.rejected} & set(MODELS)
    assert not closed & set(decision.targets)
    if "weights" in route and decision.targets:
        firsts = {model for model, weight in route["weights"].items() if weight}
        assert decision.targets[0] in firsts or within
        kept = facts.session or facts.job if route.get("sticky", "session") == "session" else facts.job
        if route.get("sticky") != "none" and kept is not None:
            assert said.decide(facts).targets == decision.targets, "whatever the dice say"
    rules = [name for name, each in file["routes"].items() if "when" in each]
    told = [name for name, _ in decision.rejected if name in rules]
    assert told == rules[: len(told)], "rejected in the order of the file"
