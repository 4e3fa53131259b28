"""The further sections of routing.yaml: accepted values, errors and warnings."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.brain import Brain, BrainError, Problem
from overnight.domain.policies import FAILURE_CLASSES
from overnight.providers.error_classes import CLASSES

WHOLE = """\
tiers: {cheap: gpt-5.4-mini, standard: [gpt-5.4, grok-4.20]}
complexity: {threshold: 0.7}
routes:
  support:
    tier: cheap
    when: {agent: "support-*", workflow: x, task: y, tag: [eu, us], header: {X-Plan: gold}, format: [chat, messages]}
    sticky: job
    residency: [eu]
    degraded: {answer: "We are at capacity…", cache: true}
    when_all_open: wait
    cache: {exact: 3600, semantic: on}
  split:
    weights: {gpt-5.4: 70, eu-1: 30}
    deadline_ms: 700
providers:
  house: {base_url: "http://localhost:9/v1", models: ["eu-*"], kind: anthropic, residency: eu}
  other: {base_url: "http://localhost:9/v1", models: [odd], apis: [responses, chat], residency: [eu, de]}
  lib: {kind: library, models: [libby]}
  openai: {residency: [eu], proxy: "http://proxy.internal:3128/", ca: /etc/ca.pem}
  anthropic: {kind: openai, proxy: none, client_cert: /etc/both.pem}
deadlines: {default_ms: 20000, embeddings_ms: 5000}
retries:
  backoff_ms: 100
  by_class: {rate_limited: {max_attempts: 5, backoff_ms: 9000}, timeout: {max_attempts: 1, jitter: none}}
breakers: {failures: 4, window_ms: 1000, cool_down_ms: 2000, max_cool_down_ms: 3000, when_all_open: fail}
budgets:
  max_llm_calls_per_job: 40
  time_zone: Europe/Berlin
  tenants: {acme: {time_zone: America/New_York}}
  limits:
    - {scope: tenant, per: day, max_cost_usd: 50}
    - {scope: agent, only: ["a", "support-*"], per: month, max_tokens: 1, max_llm_calls: 2, max_tool_calls: 0,
       max_wall_clock_s: 4}
rate_limits:
  - {scope: tenant, requests_per_minute: 600, tokens_per_minute: 100000, concurrency: 20, only: acme}
guards: {same_call: 0, no_progress_turns: 9}
alarms: {cost_factor: 2.5, least_jobs: 7}
cache:
  exact: {ttl_s: 60}
  semantic:
    model: text-embedding-3-small
    threshold: 0.9
    mode: shadow
    ttl_s: 30
    tool_turns: true
    agents: {support: {mode: on, threshold: 0.97}, "bot-*": {mode: off}}
  prompt_markers: true
"""


def problems(text: str) -> list[Problem]:
    try:
        return list(Brain.from_files({"routing.yaml": text.encode("utf-8", "surrogatepass")}).warnings)
    except BrainError as error:
        return list(error.problems) or pytest.fail("an error without a problem")


def test_every_further_section_is_read():
    assert problems(WHOLE) == []
    said = Brain.from_files({"routing.yaml": WHOLE.encode()}).routing
    support, split = said.routes["support"], said.routes["split"]
    assert said.tiers == {"cheap": ("gpt-5.4-mini",), "standard": ("gpt-5.4", "grok-4.20")}
    assert (support.kind, [way.name for way in support.variants], said.complexity.threshold) == (
        "tier",
        ["cheap", "standard"],
        0.7,
    )
    assert (support.sticky, support.residency, support.when_all_open) == ("job", ("eu",), "wait")
    assert (split.kind, [(way.name, way.weight) for way in split.variants]) == (
        "weights",
        [("gpt-5.4", 70), ("eu-1", 30)],
    )
    assert (split.deadline_ms, split.embeddings_ms) == (700, 700)
    assert (support.deadline_ms, support.embeddings_ms, said.deadline_ms) == (20_000, 5_000, 20_000)

    served = {name: said.provider_for(name) for name in ("eu-1", "odd", "libby", "gpt-5.4", "claude-x")}
    assert {name: (each.kind, each.apis, each.residency) for name, each in served.items() if each} == {
        "eu-1": ("anthropic", ("messages",), {"eu"}),
        "odd": ("openai", ("responses", "chat"), {"eu", "de"}),
        "libby": ("library", ("chat",), set()),
        "gpt-5.4": ("openai", ("chat", "responses", "embeddings"), {"eu"}),
        "claude-x": ("openai", ("chat", "embeddings"), set()),
    }

    limited, timed_out = said.retries.of("rate_limited"), said.retries.of("timeout")
    assert (limited.max_attempts, limited.backoff_ms, limited.max_backoff_ms, limited.jitter) == (
        5,
        9_000,
        9_000,
        "full",
    )
    assert (timed_out.max_attempts, timed_out.backoff_ms, timed_out.jitter) == (1, 100, "none")
    assert said.retries.of("overloaded") is said.retries
    open_ = said.breakers
    assert (open_.failures, open_.window_ms, open_.cool_down_ms, open_.max_cool_down_ms) == (4, 1_000, 2_000, 3_000)
    assert open_.when_all_open == split.when_all_open == "fail"

    day, month = said.budgets.limits
    assert (day.scope, day.per, day.max_cost_microusd, day.max_tokens, day.place) == (
        "tenant", "day", 50_000_000, None, "budgets.limits[0]",
    )  # fmt: skip
    assert (month.max_tokens, month.max_llm_calls, month.max_tool_calls, month.max_wall_clock_s) == (1, 2, 0, 4)
    assert [month.applies_to(name) for name in ("a", "support-1", "b", None)] == [True, True, False, False]
    assert [day.applies_to(name) for name in ("anybody", None)] == [True, False]
    assert [said.budgets.time_zone_of(name) for name in ("acme", "else")] == ["America/New_York", "Europe/Berlin"]
    (rate,) = said.rate_limits
    assert (rate.requests_per_minute, rate.tokens_per_minute, rate.concurrency) == (600, 100_000, 20)
    assert (rate.applies_to("acme"), rate.applies_to("acme2")) == (True, False)
    assert (said.guards.same_call, said.guards.no_progress_turns) == (0, 9)
    assert (said.alarms.cost_factor, said.alarms.least_jobs) == (2.5, 7)

    semantic = said.cache.semantic
    assert semantic is not None
    assert (said.cache.exact_ttl_s, said.cache.prompt_markers) == (60, True)
    assert (semantic.model, semantic.ttl_s, semantic.tool_turns) == ("text-embedding-3-small", 30, True)
    assert {name: (semantic.of(name).mode, semantic.of(name).threshold) for name in ("support", "bot-9", "ann")} == {
        "support": ("on", 0.97),
        "bot-9": ("off", 0.9),
        "ann": ("shadow", 0.9),
    }
    own = support.cache.semantic
    assert own is not None
    assert (support.cache.exact_ttl_s, own.of("bot-9").mode, own.of("bot-9").threshold) == (3_600, "on", 0.9)


def test_empty_sections_have_defaults():
    names = ["tiers", "complexity", "breakers", "rate_limits", "guards", "alarms", "cache", "retries", "budgets"]
    empty = Brain.from_files({"routing.yaml": "".join(f"{name}:\n" for name in names).encode()})
    assert empty.warnings == ()
    assert empty.routing == Brain.from_files({}).routing
    said = empty.routing
    assert (said.cache.exact_ttl_s, said.cache.semantic, said.cache.prompt_markers) == (0, None, False), (
        "caches are off"
    )
    assert Brain.from_files({"routing.yaml": b"cache: {exact: , semantic: }"}).routing.cache == said.cache


def test_failure_classes_match_the_gateway():
    assert set(FAILURE_CLASSES) == set(CLASSES) - {"circuit_open", "gateway_busy"}, (
        "nothing was tried, so nothing is tried again"
    )


@pytest.mark.parametrize(
    ("text", "line", "column", "says", "hint"),
    [
        ("tiers: {a: }\n", 1, 9, "tiers.a must be text", ""),
        ("tiers: {a: []}\n", 1, 12, "tiers.a is an empty list", "remove the line"),
        ("tiers: {a b: gpt-5}\n", 1, 9, "a tier name must be", ""),
        ("tiers: [a]\n", 1, 8, "tiers must be a mapping", ""),
        ("complexity: {threshold: 1.5}\n", 1, 25, "from 0 to 1", ""),
        ("complexity: {treshold: 1}\n", 1, 14, "unknown key 'treshold'", "'threshold'"),
        ("tiers: {low: gpt-5}\nroutes: {a: {tier: lwo}}\n", 2, 20, "names no tier", "did you mean 'low'?"),
        ("routes: {a: {model: gpt-5, weights: {gpt-5: 1}}}\n", 1, 28, "both 'model' and 'weights'", "keep one"),
        ("routes: {a: {weights: {}}}\n", 1, 23, "no model a weight", "70"),
        ("routes: {a: {weights: {gpt-5: 0}}}\n", 1, 23, "no model a weight", ""),
        ("routes: {a: {weights: {gpt-5: -1}}}\n", 1, 31, "from 0 to", ""),
        ("routes: {a: {weights: [gpt-5]}}\n", 1, 23, "must be a mapping", ""),
        ("routes: {a: {model: gpt-5, sticky: user}}\n", 1, 36, "one of session, job, none", ""),
        ("routes: {a: {model: gpt-5, when: {}}}\n", 1, 34, "has no condition", "task, agent"),
        ("routes: {a: {model: gpt-5, when: {agnet: x}}}\n", 1, 35, "unknown key 'agnet'", "did you mean 'agent'?"),
        ("routes: {a: {model: gpt-5, when: {agent: []}}}\n", 1, 42, "is an empty list", ""),
        ("routes: {a: {model: gpt-5, when: {agent: 4}}}\n", 1, 42, "must be text", "quotes"),
        ("routes: {a: {model: gpt-5, when: {format: soap}}}\n", 1, 43, "one of chat, responses", ""),
        ("routes: {a: {model: gpt-5, when: {header: {Authorization: x}}}}\n", 1, 44, "contains secrets", "x-plan"),
        ("routes: {a: {model: gpt-5, when: {header: {'a b': x}}}}\n", 1, 44, "a header in routes.a.when.header", ""),
        ("routes: {a: {model: gpt-5, degraded: {}}}\n", 1, 38, "is empty", "{cache: true}"),
        ("routes: {a: {model: gpt-5, degraded: {cache: false}}}\n", 1, 38, "is empty", ""),
        ("routes: {a: {model: gpt-5, degraded: {cache: yes}}}\n", 1, 46, "true or false", ""),
        ("routes: {a: {model: gpt-5, residency: EU}}\n", 1, 39, "lower-case", ""),
        ("routes: {a: {model: gpt-5, when_all_open: last_resrt}}\n", 1, 43, "one of wait", "'last_resort'"),
        ("routes: {a: {model: gpt-5, cache: {exact: -1}}}\n", 1, 43, "from 0 to", ""),
        ("routes: {a: {model: gpt-5, cache: {semantic: on}}}\n", 1, 13, "needs the section cache.semantic", "model"),
        ("routes: {embeddings_ms: gpt-5}\n", 1, 10, "is reserved and cannot be a route name", ""),
        ("retries: {by_class: {rate_limit: {max_attempts: 2}}}\n", 1, 22, "unknown failure class", "'rate_limited'"),
        (
            "retries: {by_class: {lost: {backoff_ms: 9, max_backoff_ms: 8}}}\n",
            1,
            28,
            "retries.by_class.lost.backoff_ms",
            "",
        ),
        ("breakers: {cool_down_ms: 9, max_cool_down_ms: 8}\n", 1, 11, "above max_cool_down_ms", ""),
        ("breakers: {window_ms: 0}\n", 1, 23, "from 1 to", ""),
        ("budgets: {time_zone: Europe/Berln}\n", 1, 22, "is not a known time zone", "did you mean 'Europe/Berlin'?"),
        ("budgets: {time_zone: ../etc/passwd}\n", 1, 22, "must be a time zone", ""),
        ("budgets: {tenants: {a: {zone: UTC}}}\n", 1, 25, "unknown key 'zone'", "time_zone"),
        ("budgets: {limits: [{scope: job}]}\n", 1, 20, "has no limit", "max_cost_usd"),
        ("budgets: {limits: [{max_tokens: 1}]}\n", 1, 20, "needs the key 'scope'", ""),
        ("budgets: {limits: [{scope: user, max_tokens: 1}]}\n", 1, 28, "one of job, step", ""),
        ("budgets: {limits: [{scope: job, per: week, max_tokens: 1}]}\n", 1, 38, "one of total, day, month", ""),
        ("budgets: {limits: [{scope: job, max_wall_clock_s: 0}]}\n", 1, 51, "from 1 to", ""),
        ("budgets: {limits: {scope: job}}\n", 1, 19, "must be a list", ""),
        ("rate_limits: [{scope: job, concurrency: 1}]\n", 1, 23, "one of key, agent", ""),
        ("rate_limits: [{scope: key}]\n", 1, 15, "has no limit", "concurrency"),
        ("rate_limits: [{scope: key, concurrency: 0}]\n", 1, 41, "from 1 to", ""),
        ("guards: {same_calls: 1}\n", 1, 10, "unknown key 'same_calls'", "'same_call'"),
        ("alarms: {cost_factor: -1}\n", 1, 23, "from 0 to", ""),
        ("alarms: {cost_factor: .nan}\n", 1, 23, "from 0 to", ""),
        ("alarms: {cost_factor: '3'}\n", 1, 23, "must be a number", "quotes"),
        ("cache: {exact: {}}\n", 1, 16, "needs the key 'ttl_s'", ""),
        ("cache: {exact: 3}\n", 1, 16, "must be a mapping", ""),
        ("cache: {semantic: {threshold: 1}}\n", 1, 19, "needs the key 'model'", ""),
        ("cache: {semantic: {model: gpt-5, mode: yes}}\n", 1, 40, "one of off, shadow, on", ""),
        ("cache: {semantic: {model: gpt-5, agents: {a: {ttl_s: 1}}}}\n", 1, 47, "unknown key 'ttl_s'", "mode"),
        ("cache: {prompt_markers: 1}\n", 1, 25, "true or false", ""),
        ("providers: {openai: {apis: [chats]}}\n", 1, 29, "one of chat", "'chat'"),
        ("providers: {openai: {residency: []}}\n", 1, 33, "is an empty list", ""),
        ("providers: {openai: {proxy: 3128}}\n", 1, 29, "must be such as", ""),
        ("providers: {openai: {proxy: 'socks5://p:1'}}\n", 1, 29, "http or https URL of a proxy", "none"),
        ("providers: {openai: {proxy: 'http://p:1/x'}}\n", 1, 29, "a path, a query", "none"),
        ("providers: {openai: {proxy: 'http://p:99999'}}\n", 1, 29, "not a URL", "none"),
        ("providers: {openai: {proxy: 'http://u:pw@p'}}\n", 1, 29, "holds credentials", "proxy_env"),
        ("providers: {openai: {proxy: none, proxy_env: P}}\n", 1, 13, "both proxy and proxy_env", "one"),
        ("providers: {openai: {ca: ca.pem}}\n", 1, 26, "absolute path", ""),
        ("providers: {openai: {client_key: /k.pem}}\n", 1, 13, "needs client_cert", ""),
        ("providers: {l: {kind: library, models: [a], ca: /c}}\n", 1, 13, "no effect on a provider of kind", ""),
        ("deadlines: {embeddings_ms: 0}\n", 1, 28, "from 1 to", ""),
    ],
)
def test_one_mistake_is_one_problem_with_a_line(text: str, line: int, column: int, says: str, hint: str):
    found = problems(text)
    matching = [problem for problem in found if says in problem.message and hint in problem.hint]
    assert matching, found
    assert (matching[0].line, matching[0].column, matching[0].severity) == (line, column, "error")
    assert len(found) == 1, found


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("tiers: {low: gpt-5}\n", 1, "no route uses these tiers"),
        ("tiers: {low: house-1}\nroutes: {a: {tier: low}}\n", 1, "no provider serves the model 'house-1'"),
        ("routes: {a: {weights: {gpt-5: 1, house-1: 1}}}\n", 1, "no provider serves the model 'house-1'"),
        ("cache: {semantic: {model: house-1}}\n", 1, "no provider serves the model 'house-1'"),
        (
            "routes:\n  a: {model: gpt-5, when: {agent: 's-*'}}\n  b: {model: gpt-5, when: {agent: [s-1, 's-2*'], tag: x}}\n",
            3,
            "routes.a matches all of its calls first",
        ),
        (
            "routes:\n  a: {model: gpt-5, when: {header: {x-plan: '*'}}}\n  b: {model: gpt-5, when: {header: {X-Plan: g}}}\n",
            3,
            "routes.a matches all of its calls first",
        ),
        (
            "routes:\n  a: gpt-5\n  b: {model: gpt-5, when: {task: a}}\n",
            3,
            "task a is a route name, which takes precedence",
        ),
        ("routes:\n  a: gpt-5\n  b: {model: gpt-5, when: {model: [a, b]}}\n", 3, "model a or b is a route name"),
        ("budgets: {limits: [{scope: key, max_tokens: 1}, {scope: key, max_tokens: 2}]}\n", 1, "both limit max_tokens"),
        (
            "budgets: {max_cost_per_job_usd: 1, limits: [{scope: job, max_cost_usd: 1}]}\n",
            1,
            "max_cost_per_job_usd both limit",
        ),
        (
            "budgets: {limits: [{scope: key, max_tokens: 1, per: month}, {scope: key, max_tokens: 2, per: day}]}\n",
            1,
            "budgets.limits[1] and budgets.limits[0]: max_tokens per day is above that per month",
        ),
        ("rate_limits: [{scope: key, concurrency: 1}, {scope: key, concurrency: 2}]\n", 1, "both limit concurrency"),
    ],
)
def test_suspicious_values_are_warnings(text: str, line: int, says: str):
    found = problems(text)
    assert [(problem.severity, problem.line) for problem in found] == [("warning", line)], found
    assert says in found[0].message


def test_unknown_residency_is_a_warning():
    found = problems("providers: {openai: {residency: eu}}\nroutes: {a: {model: claude-x, residency: [eu, us]}}\n")
    assert [(problem.severity, problem.line) for problem in found] == [("warning", 2)] * 2
    assert "no provider has the residency 'us'" in found[0].message
    assert "routes.a has no target in eu or us: its calls are rejected" in found[1].message


@pytest.mark.parametrize(
    "text",
    [
        "routes:\n  a: {model: gpt-5, when: {agent: 's-?'}}\n  b: {model: gpt-5, when: {agent: 's-*'}}\n",
        "routes:\n  a: {model: gpt-5, when: {agent: 's-*'}}\n  b: {model: gpt-5, when: {agent: 't-*'}}\n",
        "routes:\n  a: {model: gpt-5, when: {agent: s, tag: x}}\n  b: {model: gpt-5, when: {agent: s}}\n",
        "routes:\n  a: {model: gpt-5, when: {agent: s}}\n  b: {model: gpt-5, when: {agent: s, format: embeddings}}\n",
        "routes:\n  a: {model: gpt-5, when: {header: {x-a: g}}}\n  b: {model: gpt-5, when: {header: {x-b: g}}}\n",
        "routes:\n  a: gpt-5\n  b: {model: gpt-5, when: {task: [a, c]}}\n",
        "routes:\n  a: gpt-5\n  b: {model: gpt-5, when: {task: a, format: embeddings}}\n",
        "budgets: {limits: [{scope: key, max_tokens: 1, per: day}, {scope: key, max_tokens: 2, per: month}]}\n",
        "budgets: {limits: [{scope: key, max_tokens: 1}, {scope: key, only: a, max_tokens: 2}]}\n",
        "budgets: {limits: [{scope: key, max_tokens: 1}, {scope: key, max_llm_calls: 2}]}\n",
        "tiers: {low: gpt-5, high: gpt-6}\nroutes: {a: {tier: low}}\n",
    ],
)
def test_plausible_values_give_no_warning(text: str):
    assert problems(text) == []


PIECES = st.one_of(
    st.sampled_from(
        [
            *"\n\t :-[]{}&*!|>'\"%@`#?,\\~\x00\x85", "  ", "*a", "&a ", "-1", "0", "1e999", ".nan", "null", "true", "on",
            "when: ", "tier: ", "weights: ", "scope: ", "{}", "[]", "gpt-5.4", "EU", "Europe/Berlin", "  - ", "x: ",
        ]
    ),
    st.text(max_size=4),
)  # fmt: skip
EDITS = st.lists(st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 12), PIECES), min_size=1, max_size=8)


@settings(max_examples=300, deadline=None)
@given(EDITS)
def test_mutations_raise_only_problems(edits: list[tuple[int, int, str]]):
    text = WHOLE
    for at, cut, piece in edits:
        text = text[:at] + piece + text[at + cut :]
    found = problems(text)
    assert found == problems(text)
    assert all(problem.line >= 1 and str(problem).encode().decode().isprintable() for problem in found)


@given(
    st.dictionaries(
        st.sampled_from(["only", "scope", "per"]), st.sampled_from(["", "agent", "job", "day", "*", "[", "a" * 300])
    )
)
def test_limits_are_bounded(entry: dict[str, Any]):
    text = (
        "budgets: {limits: [{max_tokens: 1, " + ", ".join(f"{key}: '{value}'" for key, value in entry.items()) + "}]}"
    )
    assert isinstance(problems(text), list)
