"""Clients that do an effect over HTTP, are killed while the vendor works, and are started again: once at the vendor."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vendor_client import VendorClient, spawn_vendor

from .environments import HERE, python
from .served_gateway import Gateway, client_environment, served_gateway

RULES = """
rules:
  - match: {tool_result: true}
    answer: "The vendor says: {tool_result}"
  - match: {tool_result: false}
    answer: {tool_calls: [{name: refund, arguments: {order: order-7}}]}
"""
WAITS_FOR_PERSON = 75


def _command(client: str) -> list[str | Path]:
    if client == "curl":
        return ["sh", HERE / "effect_curl.sh"]
    return [python(client), HERE / f"effect_{client}.py"]


def _overnight(home: Path, *words: str) -> Any:
    command = [sys.executable, "-m", "overnight", *words, "--json"]
    done = subprocess.run(
        command, env=os.environ | {"OVERNIGHT_HOME": str(home)}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def _kill_at_the_vendor(command: list[str | Path], env: dict[str, str], folder: Path, vendor: VendorClient) -> None:
    process = subprocess.Popen(command, env=env, cwd=folder, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while not vendor.asked("order-7"):
            assert time.monotonic() < until, "it does not come to its effect"
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("client", ["curl", "openai_agents"])
def test_killed_client_is_once_at_the_vendor(tmp_path: Path, client: str) -> None:
    home = tmp_path / "home"
    with served_gateway(RULES, OVERNIGHT_HOME=str(home)) as gateway, spawn_vendor(tmp_path) as vendor:
        vendor.plan(**{"order-7": ["hangs_after"]})
        env = client_environment(gateway, client, tmp_path) | {"VENDOR": vendor.address}
        env["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent / "support")])
        command = _command(client)
        _kill_at_the_vendor(command, env, tmp_path, vendor)
        parked = _run(command, env, tmp_path)
        assert parked.returncode == WAITS_FOR_PERSON, parked.stdout + parked.stderr
        (card,) = _overnight(home, "reviews")
        provider_id = vendor.done("order-7")[0]["id"]
        _overnight(home, "reviews", "done", card["review_id"], "--provider-id", provider_id, "--by", "ann")
        again = _run(command, env, tmp_path)
        assert again.returncode == 0, again.stderr
        assert "order-7" in again.stdout
        assert len(vendor.asked("order-7")) == len(vendor.done("order-7")) == 1
        _check_receipt(gateway, client, provider_id)


def _run(command: list[str | Path], env: dict[str, str], folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def _check_receipt(gateway: Gateway, external_id: str, provider_id: str) -> None:
    (job,) = [each for each in gateway.get("/api/v1/jobs")["jobs"] if each["external_id"] == external_id]
    (effect,) = gateway.get(f"/api/v1/jobs/{job['job_id']}/receipt")["effects"]
    assert (effect["state"], effect["found_by"], effect["provider_id"]) == ("committed", "confirmed", provider_id)
