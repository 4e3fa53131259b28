"""The TypeScript client of effects, on Node.js, which strips its types."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .environments import HERE, PROJECT, node
from .served_gateway import Gateway, served_gateway

CLIENT = PROJECT / "clients" / "typescript" / "overnight-effects.ts"


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with served_gateway(HERE / "rules.yaml") as served:
        yield served


def start(gateway: Gateway, vendor: Path, how: str, attempt: int = 1) -> subprocess.Popen[str]:
    command = [node() / "bin" / "node", HERE / "effect_client.mjs", gateway.url, "nightly", str(attempt), how, vendor]
    return subprocess.Popen(command, env={**os.environ, "CLIENT": str(CLIENT)}, stdout=subprocess.PIPE, text=True)


def run(gateway: Gateway, vendor: Path, how: str = "work", attempt: int = 1) -> Any:
    return json.loads(start(gateway, vendor, how, attempt).communicate(timeout=60)[0].splitlines()[-1])


def states(gateway: Gateway) -> list[str]:
    return [effect["state"] for effect in gateway.get("/api/v1/effects")["effects"]]


def test_effect_is_done_once(gateway: Gateway, tmp_path: Path) -> None:
    for attempt in (1, 2):
        assert run(gateway, tmp_path / "vendor", attempt=attempt) == {"result": {"id": "re_81"}}
    assert len((tmp_path / "vendor").read_text().splitlines()) == 1
    assert states(gateway) == ["committed"]


def test_claim_is_extended_while_the_function_runs(gateway: Gateway, tmp_path: Path) -> None:
    assert run(gateway, tmp_path / "vendor", "slow") == {"result": {"id": "re_81"}}
    assert states(gateway) == ["committed"]


@pytest.mark.parametrize(("how", "code", "state"), [("refuse", "not_done", "failed"), ("fail", "unknown", "unknown")])
def test_errors_are_reported(gateway: Gateway, tmp_path: Path, how: str, code: str, state: str) -> None:
    assert run(gateway, tmp_path / "vendor", how)["code"] == code
    assert states(gateway) == [state]


def test_killed_program_leaves_an_unknown_effect(gateway: Gateway, tmp_path: Path) -> None:
    program = start(gateway, tmp_path / "vendor", "hang")
    assert program.stdout is not None
    assert program.stdout.readline() == "called\n"
    program.kill()
    program.wait()
    assert run(gateway, tmp_path / "vendor", attempt=2)["code"] == "unknown"
    assert len((tmp_path / "vendor").read_text().splitlines()) == 1
    assert [review["kind"] for review in gateway.get("/api/v1/reviews")["reviews"]] == ["quarantine"]


def test_approval_stops_the_program(tmp_path: Path) -> None:
    brain = tmp_path / "brain"
    (brain / "policies").mkdir(parents=True)
    (brain / "routing.yaml").write_text("default_model: gpt-5.4-mini\n")
    (brain / "policies" / "money.yaml").write_text("rules:\n  - {name: held, when: {tool: refund}, do: approve}\n")
    with served_gateway(HERE / "rules.yaml", OVERNIGHT_BRAIN=str(brain)) as gateway:
        assert run(gateway, tmp_path / "vendor")["code"] == "waiting"
        assert states(gateway) == ["waiting"]
    assert not (tmp_path / "vendor").exists()
