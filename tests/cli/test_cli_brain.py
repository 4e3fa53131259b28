"""The command line with a missing, empty or invalid brain folder."""

from pathlib import Path

import pytest

from cli_runs import run
from command_line import JOBS

LOADS = [
    ["up", "--port", "1"],
    ["gateway", "--port", "0"],
    ["worker"],
    ["run", "night.py:fails"],
    ["budget"],
    ["route", "explain", "--task", "x"],
    ["keys", "provider", "set", "openai", "--from-env", "HOME"],
]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "night.py").write_text(JOBS)
    return {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "USER": "zoe"}


@pytest.mark.parametrize("words", LOADS, ids=" ".join)
def test_missing_brain_stops_commands_that_need_it(
    words: list[str], tmp_path: Path, environment: dict[str, str]
) -> None:
    missing = run(tmp_path, environment | {"OVERNIGHT_BRAIN": "brian"}, *words)
    assert missing.code == 1
    assert "brian" in missing.err
    assert "does not exist" in missing.err
    (tmp_path / "brain").mkdir()
    for named in ({}, {"OVERNIGHT_BRAIN": "brain"}):
        empty = run(tmp_path, environment | named, *words)
        assert empty.code == 1
        assert "routing.yaml not found" in empty.err
        assert len(empty.err.splitlines()) == 1


def test_commands_without_brain_ignore_a_missing_one(tmp_path: Path, environment: dict[str, str]) -> None:
    assert "no budgets and no limits" in run(tmp_path, environment, "budget").out
    job = run(tmp_path, environment, "run", "night.py:asks", "--detach").out.strip()
    lost = environment | {"OVERNIGHT_BRAIN": "brian"}
    for words in (["jobs"], ["explain", job], ["events", job], ["reviews"], ["cancel", job]):
        assert run(tmp_path, lost, *words).code == 0, words


def test_check_reports_all_problems_at_once(tmp_path: Path, environment: dict[str, str]) -> None:
    faults = {
        "default_model: gpt-5.4-minii": "did you mean 'gpt-5.4-mini'?",
        "routes: {b: {tier: nope}, c: {model: gpt-5.4, deadlin_ms: 3}, d: gtp-5.4}": "did you mean 'deadline_ms'?",
        "budgets: {max_cost_per_job_usd: many}": "max_cost_per_job_usd must be an amount",
        "budgetz: 1": "did you mean 'budgets'?",
        "fallbacks: [{from: gpt-5.4, to: gpt-5.4-mni}]": "unknown price of model 'gpt-5.4-mni'",
        "prices: {gpt-5.4: {input_usd_per_mtok: x, output_usd_per_mtok: 1}}": "prices.gpt-5.4.input_usd_per_mtok",
    }
    folder = tmp_path / "brain"
    folder.mkdir()
    for line, said in faults.items():
        (folder / "routing.yaml").write_text(line + "\n")
        assert said in run(tmp_path, environment, "check").out, line
    (folder / "routing.yaml").write_text("\n".join(faults))
    (folder / "schedules.yaml").write_text("a: [1\n")
    (folder / "tools").mkdir()
    (folder / "tools" / "x.yaml").write_text("a: b: c\n")
    (folder / "prompts").mkdir()
    (folder / "prompts" / "p.txt").write_text("x")
    checked = run(tmp_path, environment, "check")
    assert checked.code == 1
    for said in [
        *faults.values(),
        "names no tier",
        "did you mean 'gpt-5.4'?",
        "schedules.yaml:2:1: error",
        "x.yaml:1:5: error",
    ]:
        assert said in checked.out, said
    assert "input_usd_per_mtok: 0" not in checked.out, "a mistyped name is no model without a bill"
