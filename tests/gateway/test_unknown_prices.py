"""Models of unknown price are rejected by the check and the call, and are never free."""

import re
from pathlib import Path
from typing import Any

import openai
import pytest

from command_line import Shell
from overnight.brain import Price, Problem, check_brain
from overnight.gateway import PriceBook
from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import routed, serving

HOUSE = """\
default_model: gpt-5.4-mini
routes:
  low: house-1
  high: {weights: {house-2: 1, gpt-5.4: 1}, fallbacks: [house-3]}
tiers: {cheap: [gpt-5.4-mini, house-4]}
fallbacks:
  - {from: gpt-5.4, to: house-5}
cache: {semantic: {model: house-6}}
providers:
  house: {base_url: "http://127.0.0.1:9/v1", KEYmodels: [house-7, "house-*"]}
"""


def checked(folder: Path, routing: str) -> list[Problem]:
    (folder / "routing.yaml").write_text(routing)
    return [each for each in check_brain(folder, PriceBook) if "tiers" not in each.message]


# ── the check ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", ["api_key_env: HOUSE_KEY, ", ""], ids=["with a key", "without"])
def test_check_names_each_model_without_a_price(tmp_path: Path, key: str) -> None:
    found = checked(tmp_path, HOUSE.replace("KEY", key))
    assert [(each.line, each.severity, re.findall("house-.", each.message)) for each in found] == [
        (3, "error", ["house-1"]),
        (4, "error", ["house-2"]),
        (4, "error", ["house-3"]),
        (5, "error", ["house-4"]),
        (7, "error", ["house-5"]),
        (8, "error", ["house-6"]),
        (10, "error", ["house-7"]),
    ]
    assert all("unknown price" in each.message and "at house" in each.message for each in found)
    entry = found[0].hint.partition("prices: ")[2]
    assert len(checked(tmp_path, HOUSE.replace("KEY", key) + f"prices: {entry}")) == 6
    for every in ("house/*", "house-*"):
        assert checked(tmp_path, HOUSE.replace("KEY", key) + f"prices: {entry.replace('house-1', every)}") == []


def test_check_accepts_listed_prices_and_unserved_models(tmp_path: Path) -> None:
    assert checked(tmp_path, "default_model: claude-opus-4.6\nroutes: {a: gpt-5.4, b: grok-4.20}\n") == []
    assert [each.severity for each in checked(tmp_path, "default_model: nobodys-1\n")] == ["warning"]


def test_a_glob_that_would_price_every_model_is_an_error(tmp_path: Path) -> None:
    (found,) = checked(tmp_path, "prices: {'*': {input_usd_per_mtok: 0, output_usd_per_mtok: 0}}\n")
    assert (found.line, found.severity, "house/*" in found.hint) == (1, "error", True)


def test_unknown_prices_are_reported_on_the_command_line(tmp_path: Path, provider: SpawnedProvider) -> None:
    shell = Shell(tmp_path, provider.base_url)
    (tmp_path / "brain" / "routing.yaml").write_text(HOUSE.replace("KEY", ""))
    shown = shell("check", code=1)
    assert "routing.yaml:3:8: error: unknown price of model 'house-1' at house: its calls are rejected" in shown
    assert "prices: {'house-1': {input_usd_per_mtok: 0, output_usd_per_mtok: 0}}" in shown
    assert "not called: unknown price" in shell("route", "explain", "--task", "low")


# ── the call ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", ["api_key_env: HOUSE_KEY, ", ""], ids=["with a key", "without"])
async def test_unpriced_model_error_shows_the_missing_entry(store: Store, provider: SpawnedProvider, key: str) -> None:
    brain = routed(f"providers: {{house: {{base_url: '{provider.base_url}', {key}models: ['house-*']}}}}\n")
    options: dict[str, Any] = {"environment": {"HOUSE_KEY": "k"}, "offline_base_url": None}
    async with serving(store, provider, brain, **options) as served:
        answer = await served.ask(model="house-1", headers={"x-job-id": "j"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], answer.headers["x-should-retry"]) == (
            404,
            "model_not_found",
            "false",
        )
        assert "unknown price of model 'house-1' at 'house'" in error["message"]
    assert provider.stats()["requests"] == 0
    said = error["message"].partition("prices: ")[2]
    entry = said[: said.index("}}") + 2]
    for priced in (entry, entry.replace("house-1", "house/*"), entry.replace("house-1", "house-*")):
        async with serving(store, provider, brain + f"prices: {priced}", **options) as served:
            answer = await served.ask(model="house-1", headers={"x-job-id": "j"})
            assert (answer.status_code, answer.headers["x-overnight-cost-usd"]) == (200, "0.000000"), answer.text


async def test_offline_calls_use_listed_prices_or_zero(store: Store, provider: SpawnedProvider) -> None:
    house = "{base_url: 'https://house.example/v1', api_key_env: HOUSE_KEY, models: [house-1]}"
    async with serving(store, provider, routed(f"providers: {{house: {house}}}")) as served:
        answer = await served.ask(model="house-1", headers={"x-job-id": "j"})
        assert (answer.status_code, answer.headers["x-overnight-cost-usd"]) == (200, "0.000000"), answer.text
        assert {each.facts.provider for each in await served.events("j")} == {None, "scripted"}
        assert float((await served.ask(model="gpt-5.4")).headers["x-overnight-cost-usd"]) > 0


@pytest.mark.parametrize(
    ("model", "similar"), [("claude-sonet-4-6", "claude-sonnet-4-6"), ("gpt-9-turbo", "gpt-4-turbo"), ("groq/lama", "")]
)
async def test_misspelt_model_is_404_with_similar_names(
    store: Store, provider: SpawnedProvider, model: str, similar: str
) -> None:
    keys = {"ANTHROPIC_API_KEY": "k", "OPENAI_API_KEY": "k", "GROQ_API_KEY": "k"}
    async with serving(store, provider, routed(), environment=keys, offline_base_url=None) as served:
        said = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
        for path, fields in (("chat/completions", {}), ("messages", {}), ("responses", {"input": "x"})):
            for stream in (False, True):
                body = {**said, **fields, "stream": stream}
                answer = await served.http.post(f"/v1/{path}", json=body, headers={"x-job-id": "j"})
                assert (answer.status_code, answer.headers["x-should-retry"]) == (404, "false"), answer.text
                assert similar in answer.text
                assert model in answer.text
        with pytest.raises(openai.NotFoundError, match=similar or "unknown model"):
            await served.openai.models.retrieve(model)
        assert (await served.openai.models.retrieve("deep_thought")).id == "deep_thought"
        with pytest.raises(openai.NotFoundError) as refused:
            await served.openai.chat.completions.create(model=model, messages=said["messages"])  # type: ignore[arg-type]
        assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


async def test_model_of_the_brain_without_a_price_is_503(store: Store, provider: SpawnedProvider) -> None:
    brain = routed(f"providers: {{house: {{base_url: '{provider.base_url}', models: [house-1]}}}}\n")
    async with serving(store, provider, brain, environment={"X": "k"}, offline_base_url=None) as served:
        answer = await served.ask(model="house-1")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_target")


# ── the book ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_first_matching_price_glob_applies():
    one, two, three = Price(1, 1, 1), Price(2, 2, 2), Price(0, 0, 0)
    prices = PriceBook({"here/*": one, "gpt-5.4-m*": two, "gpt-5.4-mini": three, "*": one})
    sources = {
        ("anything", "here"): "own/here/*",
        ("gpt-5.4-mini", "here"): "own/gpt-5.4-mini",
        ("gpt-5.4-mega", "here"): "own/here/*",
        ("gpt-5.4-mega", "openai"): "own/gpt-5.4-m*",
        ("gpt-5.4", "openai"): "own/*",
        ("anything", None): "own/*",
    }
    for _ in range(2):
        assert {named: prices.price(*named).source for named in sources} == sources
    assert prices.price("gpt-5.4-mini", "here").cost_microusd(1_000_000, 0, 1_000_000) == 0
