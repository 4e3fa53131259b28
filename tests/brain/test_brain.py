"""The brain folder: valid files, problems with their places, and no unexpected exceptions."""

import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.brain import (
    Brain,
    BrainError,
    Breakers,
    Guards,
    Price,
    Problem,
    UnknownModel,
    check_brain,
    load_brain,
    write_starter,
)
from overnight.domain import CallFacts

PRINTED = """\
default_model: gpt-5.4-mini
routes:
  heartbeat_check: gpt-5.4-mini
  browser_automation: claude-opus-4.6
  fallback_reasoning: grok-4.20
budgets:
  max_cost_per_job_usd: 0.75
  max_llm_calls_per_job: 40
fallbacks:
  - from: claude-opus-4.6
    to: gpt-5.4
"""


def brain(routing: str, **files: bytes) -> Brain:
    return Brain.from_files({"routing.yaml": routing.encode(), **files})


def problems(routing: str | bytes, path: str = "routing.yaml") -> list[Problem]:
    """What is wrong with one file, through the door a worker uses."""
    content = routing if isinstance(routing, bytes) else routing.encode("utf-8", "surrogatepass")
    try:
        return list(Brain.from_files({path: content}).warnings)
    except BrainError as error:
        return list(error.problems) or pytest.fail("an error without a problem")


def one(routing: str | bytes, path: str = "routing.yaml") -> Problem:
    (found,) = problems(routing, path)
    return found


# ── what works ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_documented_routing_file_loads():
    routing = brain(PRINTED).routing
    assert problems(PRINTED) == []
    assert routing.default_model == "gpt-5.4-mini"
    assert routing.budgets.max_cost_per_job_microusd == 750_000
    assert routing.budgets.max_llm_calls_per_job == 40
    assert {name: route.targets for name, route in routing.routes.items()} == {
        "heartbeat_check": ("gpt-5.4-mini",),
        "browser_automation": ("claude-opus-4.6", "gpt-5.4"),
        "fallback_reasoning": ("grok-4.20",),
    }
    assert routing.known_models() == ["claude-opus-4.6", "gpt-5.4", "gpt-5.4-mini", "grok-4.20"]


def test_every_optional_section_is_read():
    routing = brain("""\
default_model: house-1
routes:
  quick: house-1
  slow: {model: claude-x, deadline_ms: 90000, max_output_tokens: 100, fallbacks: [gpt-y, house-1]}
  alone: {model: claude-x, fallbacks: []}
fallbacks:
  - {from: house-1, to: gpt-y}
  - {from: claude-x, to: house-1}
providers:
  house: {base_url: "http://localhost:9/v1/", api_key_env: HOUSE_KEY, models: ["house-*"], kind: openai}
prices:
  house-1: {input_usd_per_mtok: 0.25, cached_input_usd_per_mtok: 0.025, output_usd_per_mtok: 2}
  house-2: {input_usd_per_mtok: 1e-6, output_usd_per_mtok: 0}
deadlines: {default_ms: 1000, quick: 50}
retries: {max_attempts: 5, backoff_ms: 1, max_backoff_ms: 2, jitter: none}
limits: {max_body_bytes: 1000, default_max_output_tokens: 77}
""").routing
    quick, slow, alone = (routing.routes[name] for name in ("quick", "slow", "alone"))
    assert (quick.deadline_ms, slow.deadline_ms, alone.deadline_ms) == (50, 90_000, 1_000)
    assert (quick.max_output_tokens, slow.max_output_tokens) == (77, 100)
    assert quick.targets == ("house-1", "gpt-y")
    assert slow.targets == ("claude-x", "gpt-y", "house-1")
    assert alone.targets == ("claude-x",), "a route's own empty list says: no fallback"
    assert routing.chains["claude-x"] == ("claude-x", "house-1", "gpt-y"), "chains are followed"
    assert routing.prices == {"house-1": Price(250_000, 25_000, 2_000_000), "house-2": Price(1, 1, 0)}
    assert (routing.retries.max_attempts, routing.retries.jitter) == (5, "none")
    assert (routing.limits.max_body_bytes, routing.limits.default_max_output_tokens) == (1_000, 77)
    house = routing.provider_for("house-1")
    assert house is not None
    assert (house.base_url, house.api_key_env, house.kind) == ("http://localhost:9/v1", "HOUSE_KEY", "openai")


def test_missing_routing_file_uses_built_in_routing():
    routing = Brain.from_files({}).routing
    assert routing.decide(CallFacts()).targets == (routing.default_model,)
    assert routing.provider_for(routing.default_model) is not None
    assert problems("# only a comment\n") == problems("routes:\nbudgets:\n") == []


@pytest.mark.parametrize(
    ("model", "provider", "upstream"),
    [
        ("gpt-5.4", "openai", "gpt-5.4"),
        ("o3-mini", "openai", "o3-mini"),
        ("chatgpt-4o-latest", "openai", "chatgpt-4o-latest"),
        ("claude-opus-4.6", "anthropic", "claude-opus-4.6"),
        ("grok-4.20", "xai", "grok-4.20"),
        ("gemini-3-pro", "google", "gemini-3-pro"),
        ("mistral-large-latest", "mistral", "mistral-large-latest"),
        ("deepseek-chat", "deepseek", "deepseek-chat"),
        ("openrouter/qwen/qwen3-max", "openrouter", "qwen/qwen3-max"),
        ("groq/llama-3.3-70b", "groq", "llama-3.3-70b"),
    ],
)
def test_known_providers_are_found_by_model_name(model: str, provider: str, upstream: str):
    found = brain(PRINTED).routing.provider_for(model)
    assert found is not None
    assert (found.name, found.upstream_name(model)) == (provider, upstream)


@pytest.mark.parametrize(
    "model", ["olmo-2", "opus", "GPT-5", "llama", "gpt-5\r\nx-evil: 1", "gpt- 5", "gpt-" + "5" * 300]
)
def test_unknown_model_name_has_no_provider(model: str):
    assert brain(PRINTED).routing.provider_for(model) is None


def test_configured_providers_precede_known_ones():
    routing = brain("""\
providers:
  first: {base_url: https://a.example/v1, models: ["gpt-*"]}
  second: {base_url: https://b.example/v1, models: [gpt-5.4]}
  anthropic: {base_url: https://proxy.example/v1}
""").routing
    served = {model: routing.provider_for(model) for model in ("gpt-9", "gpt-5.4", "claude-x")}
    assert {model: found.name for model, found in served.items() if found} == {
        "gpt-9": "first",
        "gpt-5.4": "second",  # listed by name: closer than a glob
        "claude-x": "anthropic",
    }
    changed = served["claude-x"]
    assert changed is not None
    assert (changed.base_url, changed.api_key_env) == ("https://proxy.example/v1", "ANTHROPIC_API_KEY")


# ── decisions ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model", "task", "route", "targets"),
    [
        ("gpt-5.4", "browser_automation", "browser_automation", ("claude-opus-4.6", "gpt-5.4")),
        ("made-up", "heartbeat_check", "heartbeat_check", ("gpt-5.4-mini",)),
        ("fallback_reasoning", None, "fallback_reasoning", ("grok-4.20",)),
        ("claude-opus-4.6", None, "as_asked", ("claude-opus-4.6", "gpt-5.4")),
        ("gemini-3-pro", "", "as_asked", ("gemini-3-pro",)),
        ("auto", None, "default", ("gpt-5.4-mini",)),
        ("default", None, "default", ("gpt-5.4-mini",)),
        ("", None, "default", ("gpt-5.4-mini",)),
        (None, None, "default", ("gpt-5.4-mini",)),
        ("grok-4.20", "unheard_of", "as_asked", ("grok-4.20",)),
        (None, "unheard_of", "default", ("gpt-5.4-mini",)),
    ],
)
def test_decisions_follow_the_rules(model: str | None, task: str | None, route: str, targets: tuple[str, ...]):
    decision = brain(PRINTED).routing.decide(CallFacts(model=model, task=task))
    assert (decision.route, decision.targets, decision.requested_model) == (route, targets, model or "")
    assert ("'unheard_of' matches no route" in decision.why) == (task == "unheard_of")


def test_unknown_model_error_names_nearest_models():
    with pytest.raises(UnknownModel) as raised:
        brain(PRINTED).routing.decide(CallFacts(model="gtp-5.4"))
    assert raised.value.nearest[0] == "gpt-5.4"
    assert "gpt-5.4" in str(raised.value)
    assert "routing.yaml" in str(raised.value)


@pytest.mark.parametrize("model", ["x" * 1_000_000, "gpt-\r\nx", "gpt-\ud800", "\x1b[2J"])
def test_external_names_are_bounded_and_printable(model: str):
    with pytest.raises(UnknownModel) as raised:
        brain(PRINTED).routing.decide(CallFacts(model=model))
    said = str(raised.value)
    assert len(said) < 500
    assert said.encode().decode().isprintable()


def test_explicit_models_of_a_provider_and_priced_models_are_known():
    routing = brain("""\
providers:
  house: {base_url: https://a.example/v1, models: [house-1, "wide-*"]}
prices:
  odd: {input_usd_per_mtok: 1, output_usd_per_mtok: 1}
""").routing
    assert [routing.decide(CallFacts(model=model)).route for model in ("house-1", "wide-9", "odd")] == ["as_asked"] * 3
    assert {"house-1", "odd"} <= set(routing.known_models())


# ── what is refused, and where ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "line", "column", "says", "hint"),
    [
        ("budgts:\n  a: 1\n", 1, 1, "unknown key 'budgts'", "did you mean 'budgets'?"),
        ("budgets:\n  max_cost_per_job: 1\n", 2, 3, "unknown key 'max_cost_per_job' in budgets", "_per_job_usd"),
        ("budgets:\n  max_cost_per_job_usd: -0.5\n", 2, 25, "from 0 to", ""),
        ("budgets:\n  max_cost_per_job_usd: .inf\n", 2, 25, "finite", ""),
        ("budgets:\n  max_cost_per_job_usd: .nan\n", 2, 25, "finite", ""),
        ("budgets:\n  max_cost_per_job_usd: 0.0000001\n", 2, 25, "finer than a micro-dollar", "six"),
        ("budgets:\n  max_cost_per_job_usd: 1e99\n", 2, 25, "from 0 to", ""),
        ("budgets:\n  max_cost_per_job_usd: 1e-999999999\n", 2, 25, "finite", ""),
        ("budgets:\n  max_cost_per_job_usd: '0.75'\n", 2, 25, "found the text '0.75'", "remove the quotes"),
        ("budgets:\n  max_cost_per_job_usd:\n", 2, 3, "found nothing", ""),
        ("budgets:\n  max_cost_per_job_usd: true\n", 2, 25, "found true", ""),
        ("budgets:\n  max_llm_calls_per_job: -1\n", 2, 26, "from 0 to", ""),
        ("budgets:\n  max_llm_calls_per_job: 40.0\n", 2, 26, "a whole number", ""),
        ("budgets:\n  max_llm_calls_per_job: 0x10\n", 2, 26, "a whole number", ""),
        ("budgets:\n  max_llm_calls_per_job: " + "9" * 5000, 2, 26, "from 0 to", ""),
        ("budgets: 3\n", 1, 10, "budgets must be a mapping", ""),
        ("- a\n", 1, 1, "the file must be a mapping", ""),
        ("default_model: 4.20\n", 1, 16, "must be text", "put it in quotes"),
        ("default_model: two words\n", 1, 16, "no spaces", ""),
        ("default_model: gpt-5\ndefault_model: gpt-6\n", 2, 1, "'default_model' appears twice", "first on line 1"),
        ("routes:\n  default: gpt-5\n", 2, 3, "'default' is reserved and cannot be a route name", ""),
        ("routes:\n  two words: gpt-5\n", 2, 3, "a route name must be", ""),
        ("routes:\n  a: {deadline_ms: 5}\n", 2, 6, "routes.a needs the key 'model'", ""),
        ("routes:\n  a: {model: gpt-5, deadline: 5}\n", 2, 21, "unknown key 'deadline' in routes.a", "'deadline_ms'"),
        ("routes:\n  a: {model: gpt-5, fallbacks: [gpt-6, nope]}\n", 2, 40, "unknown model 'nope'", ""),
        ("routes:\n  a: {model: gpt-5, fallbacks: [gpt-5]}\n", 2, 33, "its own model", ""),
        ("fallbacks:\n  - from: gpt-5\n    to: gpt-5\n", 2, 5, "to itself", ""),
        ("fallbacks:\n  - from: gpt-5\n    to: nope\n", 3, 9, "unknown model 'nope'", ""),
        ("fallbacks:\n  - from: gqt-5.4-mini\n    to: gpt-5\n", 2, 11, "unknown model", "did you mean 'gpt-5.4-mini'?"),
        ("fallbacks:\n  - from: gpt-5\n", 2, 5, "needs the key 'to'", ""),
        ("fallbacks:\n  a: b\n", 2, 3, "fallbacks must be a list", ""),
        ("fallbacks:\n- {from: gpt-1, to: gpt-2}\n- {from: gpt-1, to: gpt-2}\n", 3, 3, "repeats", ""),
        ("deadlines: {nobody: 5}\n", 1, 13, "neither a time limit nor a route", ""),
        ("routes: {a: {model: gpt-5, deadline_ms: 5}}\ndeadlines: {a: 5}\n", 2, 13, "also set in routes.a", "keep one"),
        ("deadlines: {default_ms: 0}\n", 1, 25, "from 1 to", ""),
        ("deadlines: {total_ms: 5, default_ms: 6}\n", 1, 13, "deadlines.default_ms (6) is longer", "raise total_ms"),
        ("deadlines: {total_ms: 5, embeddings_ms: 6}\n", 1, 13, "embeddings_ms (6) is longer", "lower embeddings_ms"),
        ("routes: {a: gpt-5}\ndeadlines: {total_ms: 5, a: 6}\n", 2, 13, "deadlines.a (6) is longer", "lower a"),
        (
            "routes: {a: {model: gpt-5, deadline_ms: 6}}\ndeadlines: {total_ms: 5}\n",
            2,
            13,
            "routes.a.deadline_ms (6) is longer",
            "lower deadline_ms",
        ),
        ("retries: {backoff_ms: 9, max_backoff_ms: 8}\n", 1, 10, "is above max_backoff_ms", ""),
        ("retries: {jitter: ful}\n", 1, 19, "one of full, none", "did you mean 'full'?"),
        ("limits: {max_body_bytes: 0}\n", 1, 26, "from 1 to", ""),
        ("prices: {gpt-5: {input_usd_per_mtok: 1}}\n", 1, 17, "needs the key 'output_usd_per_mtok'", ""),
        ("providers: {a: {models: [b]}}\n", 1, 13, "needs the key 'base_url'", "well-known"),
        ("providers: {openai: {base_url: 'ftp://x'}}\n", 1, 32, "http or https", ""),
        ("providers: {openai: {base_url: 'http://[x'}}\n", 1, 32, "not a URL", ""),
        ("providers: {openai: {base_url: 'https://x/v1?a=b'}}\n", 1, 32, "query", ""),
        ("providers: {openai: {kind: soap}}\n", 1, 28, "one of openai", ""),
        ("a: [1,\n", 2, 1, "not valid YAML", ""),
        ('a: "\\UFFFFFFFF"', 1, 1, "not valid YAML", ""),
        ('default_model: "\\uD800"', 1, 16, "surrogate", ""),
        ("a: 1\n---\nb: 2\n", 2, 1, "second document", ""),
        ("default_model: !!str gpt-5\n", 1, 16, "tags such as", ""),
        ("default_model: *gone\n", 1, 16, "alias", ""),
        ("routes: &r\n  a: *r\n", 2, 6, "alias", ""),
        ("x\x00y", 1, 2, "not valid YAML", ""),
        (b"default_model: gpt-5\n# caf\xe9\n", 2, 6, "not UTF-8", ""),
        (b"#" * ((1 << 20) + 1), 1, 1, "larger than", ""),
        ("[" * 100_000, 1, 66, "nested deeper", ""),
        ("[" + "a," * 100_000, 1, 100_000, "more than 50,000 values", ""),
        ("limits: {? [a] : 1}\n", 1, 12, "a key must be", ""),
    ],
)
def test_one_mistake_is_one_problem_with_a_line(text: str | bytes, line: int, column: int, says: str, hint: str):
    found = problems(text)
    matching = [problem for problem in found if says in problem.message and hint in problem.hint]
    assert matching, found
    assert (matching[0].file, matching[0].line, matching[0].column) == ("routing.yaml", line, column)
    assert matching[0].severity == "error"
    assert len(found) == 1, found


def test_fallback_cycle_is_reported_at_its_end():
    text = "fallbacks:\n- {from: gpt-1, to: gpt-2}\n- {from: gpt-2, to: gpt-3}\n- {from: gpt-3, to: gpt-1}\n"
    found = one(text)
    assert (found.line, found.severity) == (4, "error")
    assert "cycle" in found.message


def test_all_problems_are_reported_at_once(tmp_path: Path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "tools").mkdir()
    (tmp_path / "routing.yaml").write_text(
        PRINTED.replace("budgets:", "budgts:").replace("    to: gpt-5.4", "    to: gtp-5.4") + "limits: {a: 1}\n"
    )
    (tmp_path / "prompts/p.md").write_text("---\ndescripton: x\n---\nhello\n")
    (tmp_path / "tools/t.yaml").write_text("name: t\nversion: 1\nclass: wirte\n")
    (tmp_path / "memory-schema.json").write_text('{"a": 1,\n  "b": }')
    found = [(problem.file, problem.line) for problem in check_brain(tmp_path) if problem.severity == "error"]
    assert found == [
        ("memory-schema.json", 2),
        ("prompts/p.md", 2),
        ("routing.yaml", 6),
        ("routing.yaml", 11),
        ("routing.yaml", 12),
        ("tools/t.yaml", 3),
    ]
    with pytest.raises(BrainError) as raised:
        load_brain(tmp_path)
    assert all(f"{file}:{line}:" in str(raised.value) for file, line in found)


def test_possible_secrets_are_not_quoted():
    secret = "sk-live-0123456789"
    for text in (
        f"providers: {{openai: {{api_key_env: {secret}}}}}",
        f"providers: {{openai: {{api_key: {secret}}}}}",
        f"providers: {{openai: {{base_url: 'https://me:{secret}@x.example/v1'}}}}",
        f"providers: {{openai: {{base_url: 'https://x.example/v1?key={secret}'}}}}",
        f"providers:\n  openai:\n    api_key_env: {secret}\n  oops\n",
    ):
        found = problems(text)
        assert any(problem.severity == "error" for problem in found)
        assert secret not in " ".join(map(str, found))


def test_model_without_provider_is_a_warning():
    found = one("default_model: house-1\n")
    assert (found.line, found.severity) == (1, "warning")
    assert "providers.<name>.models" in found.hint
    assert one("routes: {a: gtp-5.4-mini}\n").hint == "did you mean 'gpt-5.4-mini'?"
    assert one("providers: {x: {base_url: 'http://models.example/v1', models: [m]}}\n").severity == "warning"


def test_yaml_aliases_are_bounded():
    assert brain("routes: {a: &m gpt-5, b: *m}\n").routing.routes["b"].model == "gpt-5"
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    assert "more than 50,000 values" in problems("\n".join(lines), "evals/bomb.yaml")[-1].message


def test_problem_messages_are_bounded_and_printable():
    assert one('routes: {"a\u2028\x85": [x]}\n'.replace("[x]", "gpt-5")).message.isprintable()
    found = problems('prices: {"\\u2028\\e[2J' + "k" * 900 + '": {input_usd_per_mtok: x}}\n')
    assert len(found) == 3
    assert all(str(problem).isprintable() and len(str(problem)) < 1_000 for problem in found)


def test_report_of_many_problems_is_bounded():
    found = problems("".join(f"k{number}: 1\n" for number in range(900)))
    assert len(found) == 101
    assert "more than 100 problems" in found[-1].message


# ── prompts and the other folders ───────────────────────────────────────────────────────────────────────────────────


def test_prompts_have_front_matter_and_text():
    prompts = Brain.from_files(
        {
            "prompts/a.md": b"---\ndescription: Sorts mail\r\ntags: [x, y]\n---\n\nHello\n---\nWorld\n",
            "prompts/team/b.md": "\ufeffSchön\n".encode(),
        }
    ).prompts
    assert (prompts["a"].description, prompts["a"].tags, prompts["a"].text) == (
        "Sorts mail",
        ("x", "y"),
        "Hello\n---\nWorld",
    )
    assert (prompts["team/b"].description, prompts["team/b"].text) == ("", "Schön")


@pytest.mark.parametrize(
    ("content", "line", "says", "severity"),
    [
        ("---\ntags: x\n---\nhi", 2, "must be a list", "error"),
        ("---\n\ndescription: [\n---\nhi", 4, "not valid YAML", "error"),
        ("---\ndescription: x\n", 1, "not closed", "error"),
        ("", 1, "no text", "warning"),
    ],
)
def test_prompt_problems_have_a_line(content: str, line: int, says: str, severity: str):
    found = one(content, "prompts/p.md")
    assert (found.line, found.severity) == (line, severity)
    assert says in found.message


@pytest.mark.parametrize(
    ("path", "content", "says", "severity"),
    [
        ("routing.yml", "", "is ignored", "error"),
        ("tools/t.yml", "", "is ignored", "error"),
        ("tools/t.py", "", "only *.yaml files", "warning"),
        ("promts/a.md", "", "is unknown", "warning"),
        ("notes.txt", "", "is unknown", "warning"),
        ("evals/t.yaml", "name: x\n", "not used by this release", "warning"),
        ("memory-schema.json", '{"a": {"b": 1, "b": 2}}', "'b' appears twice", "error"),
        ("memory-schema.json", '{"a": NaN}', "NaN is not JSON", "error"),
        ("memory-schema.json", "[" * 100_000, "not valid JSON", "error"),
        ("memory-schema.json", '{"a": ' + "9" * 5000 + "}", "not valid JSON", "error"),
    ],
)
def test_files_of_unused_sections_are_checked(path: str, content: str, says: str, severity: str):
    found = [problem for problem in problems(content, path) if says in problem.message]
    assert [problem.severity for problem in found] == [severity]


def test_unknown_folder_is_reported_once_readmes_never():
    files = {"src/a.py": b"", "src/b.py": b"", "README.md": b"", "prompts/README.md": b""}
    told = Brain.from_files(files)
    assert [problem.file for problem in told.warnings] == ["src/a.py"]
    assert told.prompts == {}


# ── the folder and its version ──────────────────────────────────────────────────────────────────────────────────────


def test_starter_is_valid_and_never_overwrites(tmp_path: Path):
    folder = tmp_path / "brain"
    written = write_starter(folder)
    assert check_brain(folder) == []
    loaded = load_brain(folder)
    assert {str(path.relative_to(folder)) for path in written} == set(loaded.files)
    assert loaded.prompts["triage"].description
    printed, starter = brain(PRINTED).routing, loaded.routing
    assert (starter.budgets, starter.fallbacks, starter.routes.keys()) == (
        printed.budgets,
        printed.fallbacks,
        printed.routes.keys(),
    )
    assert (starter.retries, starter.limits) == (printed.retries, printed.limits), "it shows the built-in values"

    *others, last = written
    for path in others:
        path.unlink()
    last.write_text("mine")
    with pytest.raises(FileExistsError, match=re.escape(f"{last}: already exists, so nothing was written")):
        write_starter(folder)
    assert last.read_text() == "mine"
    assert not any(path.exists() for path in others)


def test_examples_in_starter_comments_are_valid(tmp_path: Path):
    written = {path.name: path for path in write_starter(tmp_path)}
    lines = written["routing.yaml"].read_text().splitlines()
    examples = [line.removeprefix("#   ") for line in lines if line.startswith("#   ")]
    at = next(number for number, line in enumerate(examples) if line.startswith("tiers:"))
    route = ["  " + line for line in examples[:at]]
    text = "\n".join([*examples[at:], "routes:", *route, "fallbacks: []", "deadlines: {}"])
    routing = brain(text).routing
    assert problems(text) == []
    assert routing.routes["summarize"].targets == ("gpt-5.4-mini", "claude-opus-4.6")
    assert routing.prices["in-house-large"].output_microusd_per_mtok == 2_000_000
    assert (routing.routes["support"].kind, routing.routes["letters"].kind) == ("tier", "weights")
    assert len(routing.budgets.limits) == len(routing.rate_limits) == 1
    said = (routing.guards, routing.breakers, routing.tiers.keys())
    assert said == (Guards(), Breakers(), {"cheap", "standard", "strong"}), "they show the built-in values"


def test_missing_folder_error_has_instructions(tmp_path: Path):
    missing = tmp_path / "nowhere"
    with pytest.raises(BrainError, match="overnight init"):
        load_brain(missing)
    (found,) = check_brain(missing)
    assert "overnight init" in found.message


def test_a_folder_and_its_stored_files_are_the_same_brain(tmp_path: Path):
    write_starter(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/config").write_text("hidden")
    loaded = load_brain(tmp_path)
    assert loaded == load_brain(tmp_path) == Brain.from_files(loaded.files)
    assert ".git/config" not in loaded.files


def test_links_outside_and_special_files_are_reported(tmp_path: Path):
    folder = tmp_path / "brain"
    data = folder / "..data"  # as mounted configuration is laid out
    (data / "prompts").mkdir(parents=True)
    (data / "routing.yaml").write_text(PRINTED)
    (data / "prompts/a.md").write_text("hi")
    (folder / "routing.yaml").symlink_to("..data/routing.yaml")
    (folder / "prompts").symlink_to("..data/prompts")
    assert set(load_brain(folder).files) == {"routing.yaml", "prompts/a.md"}

    (tmp_path / "outside.md").write_text("not reviewed")
    (data / "prompts/b.md").symlink_to(tmp_path / "outside.md")
    (data / "prompts/gone.md").symlink_to("nowhere")
    (data / "prompts/round").symlink_to(".")
    os.mkfifo(data / "prompts/pipe.md")
    (folder / "big.md").write_bytes(b"x" * ((1 << 20) + 1))
    os.close(os.open(bytes(folder) + b"/caf\xe9.md", os.O_CREAT | os.O_WRONLY))
    found = {problem.file: problem for problem in check_brain(folder)}
    assert {file: problem.severity for file, problem in found.items()} == {
        "big.md": "error",
        "caf\\udce9.md": "error",
        "prompts/b.md": "error",
        "prompts/gone.md": "error",
        "prompts/pipe.md": "error",
        "prompts/round": "error",
    }
    assert all(str(problem).encode() for problem in found.values())


def test_too_many_files_are_rejected(tmp_path: Path):
    for number in range(2_001):
        (tmp_path / f"{number}.txt").touch()
    assert any("more than 2,000 files" in problem.message for problem in check_brain(tmp_path))


# ── properties ──────────────────────────────────────────────────────────────────────────────────────────────────────

FOLDERS = st.dictionaries(st.text(st.sampled_from("ab/.é"), min_size=1, max_size=6), st.binary(max_size=6), max_size=4)


@given(FOLDERS, FOLDERS)
def test_version_depends_on_paths_and_bytes(one_folder: dict[str, bytes], other: dict[str, bytes]):
    one_version, again, other_version = (
        Brain.from_files(files).version for files in (one_folder, dict(reversed(one_folder.items())), other)
    )
    assert one_version == again
    assert (one_version == other_version) == (one_folder == other)


def test_bytes_cannot_move_between_path_and_content():
    assert Brain.from_files({"ab": b"c"}).version != Brain.from_files({"a": b"bc"}).version


PIECES = st.one_of(
    st.sampled_from(
        [
            *"\n\t :-[]{}&*!|>'\"%@`#?,\\~\x00\x85\u2028\ufeff", "---\n", "...\n", "%YAML 1.1\n", "&a ", "*a", "<<: ", "!!int ",
            ".inf", ".nan", "-1", "1e999", "null", "true", "0o7", "2020-01-01", "- from: a\n", "  ", "? ", '"\\uD800"',
            "providers:\n", "prices:\n", "deadlines:\n", "retries:\n", "limits:\n", "model: ", "gpt-5.4", "base_url: ",
        ]
    ),
    st.text(max_size=4),
)  # fmt: skip
EDITS = st.lists(st.tuples(st.integers(0, len(PRINTED)), st.integers(0, 12), PIECES), min_size=1, max_size=8)


@settings(max_examples=400, deadline=None)
@given(EDITS)
def test_mutated_routing_files_raise_only_problems(edits: list[tuple[int, int, str]]):
    text = PRINTED
    for at, cut, piece in edits:
        text = text[:at] + piece + text[at + cut :]
    content = text.encode("utf-8", "surrogatepass")
    found = problems(content)
    assert found == problems(content)
    for problem in found:
        assert problem.message
        assert problem.line >= 1
        assert problem.column >= 1
        assert str(problem).encode().decode().isprintable()
    try:
        loaded = Brain.from_files({"routing.yaml": content})
    except BrainError:
        assert any(problem.severity == "error" for problem in found)
    else:
        assert loaded == Brain.from_files({"routing.yaml": content})
        assert loaded.routing.decide(CallFacts()).targets
        for name, route in loaded.routing.routes.items():
            assert loaded.routing.decide(CallFacts(model="anything", task=name)).targets == route.targets


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=60)
    | st.lists(PIECES, max_size=20).map(lambda pieces: "".join(pieces).encode("utf-8", "replace"))
)
def test_any_file_content_raises_only_problems(content: bytes):
    for path in ("routing.yaml", "prompts/p.md", "tools/t.yaml", "memory-schema.json"):
        assert all(str(problem).encode() for problem in problems(content, path))


@given(st.integers(0, 10**15))
def test_money_is_exact_to_the_micro_dollar(microusd: int):
    amount = f"{Decimal(microusd) / 1_000_000:f}"
    routing = brain(f"budgets: {{max_cost_per_job_usd: {amount}}}").routing
    assert routing.budgets.max_cost_per_job_microusd == microusd


def test_importing_brain_loads_no_yaml_parser():
    code = "import sys, overnight.brain; print([m for m in ('ruamel.yaml', 'difflib', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
