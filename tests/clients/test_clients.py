"""Real agent frameworks and programs, each in its own environment and process, run a tool-calling agent.

    make clients            all of them; the first run installs them

Each answers with the tool's result, and its calls are recorded in the job that it names, each paid once.
"""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from overnight.testing import spawn_scripted_provider

from .environments import NODE_CLIENTS, node, node_packages, python

HERE = Path(__file__).parent
RUNS = [
    ("openai_agents", "responses", "plain"),
    ("openai_agents", "responses", "streamed"),
    ("openai_agents", "chat", "plain"),
    ("openai_agents", "chat", "streamed"),
    ("pydantic_ai_agent", "chat", "plain"),
    ("pydantic_ai_agent", "chat", "streamed"),
    ("pydantic_ai_agent", "responses", "plain"),
    ("pydantic_ai_agent", "responses", "streamed"),
    ("pydantic_ai_agent", "messages", "plain"),
    ("pydantic_ai_agent", "messages", "streamed"),
    ("autogen_agent", "chat", "plain"),
    ("autogen_agent", "chat", "streamed"),
    ("claude_agent", "messages", "streamed"),
    ("crewai_agent", "chat", "plain"),
    ("crewai_agent", "chat", "streamed"),
    ("claude_code", "messages", "streamed"),
    ("codex", "responses", "streamed"),
    ("vercel_ai", "chat", "plain"),
    ("vercel_ai", "chat", "streamed"),
    ("vercel_ai", "responses", "plain"),
    ("vercel_ai", "responses", "streamed"),
    ("vercel_ai", "messages", "plain"),
    ("vercel_ai", "messages", "streamed"),
    ("anthropic_typescript", "messages", "plain"),
    ("anthropic_typescript", "messages", "streamed"),
]


@dataclass
class Gateway:
    """A running gateway and the provider behind it."""

    url: str
    provider: Any

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path) as answer:
            return json.loads(answer.read())

    def events(self, external_id: str) -> list[dict[str, Any]]:
        jobs = self.get("/api/v1/jobs?limit=200")["jobs"]
        (job,) = [job for job in jobs if job.get("external_id") == external_id]
        return self.get(f"/api/v1/jobs/{job['job_id']}/events")["events"]


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with (
        tempfile.TemporaryDirectory() as home,
        spawn_scripted_provider(HERE / "rules.yaml") as provider,
    ):
        env = {key: value for key, value in os.environ.items() if not key.endswith(("_API_KEY", "_BASE_URL"))}
        env |= {
            "OVERNIGHT_HOME": home,
            "OVERNIGHT_OFFLINE_BASE_URL": provider.base_url,
        }
        command = [sys.executable, "-m", "overnight", "gateway", "--port", "0"]
        process = subprocess.Popen(command, env=env, cwd=home, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            yield Gateway(f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}", provider)
        finally:
            process.terminate()
            process.wait(30)


def command_of(client: str, env: dict[str, str]) -> list[str | Path]:
    """Return the command that runs a client; a client on Node.js finds its packages by `env`, which is changed."""
    if client not in NODE_CLIENTS:
        return [python(client), HERE / f"{client}.py"]
    packages, interpreter = node_packages(client), node() / "bin" / "node"
    env |= {"PACKAGES": str(packages), "NODE": str(interpreter)}
    script = packages / "agent.mjs"
    return [interpreter, script] if script.exists() else [sys.executable, HERE / f"{client}.py"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("client", "form", "way"), RUNS)
def test_framework_agent_runs_through_the_gateway(
    gateway: Gateway, tmp_path: Path, client: str, form: str, way: str
) -> None:
    job = f"{client}-{form}-{way}"
    before = gateway.provider.stats()["paid_calls"]
    env = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI_", "ANTHROPIC_", "CLAUDE"))}
    env |= {
        "GATEWAY": gateway.url,
        "JOB": job,
        "FRESH_HOME": str(tmp_path),
        "OPENAI_API_KEY": "unused",
        "HOME": str(tmp_path),
    }
    command = command_of(client, env)
    done = subprocess.run(
        [*command, form, way], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert "18 degrees and quiet" in told["answer"], told
    assert told["asked"] == ["Berlin"]
    assert (told["pieces"] > 0) == (way == "streamed")

    events = gateway.events(job)
    answered = [event for event in events if event["event"] == "model_succeeded"]
    paid = gateway.provider.stats()["paid_calls"] - before
    assert len(answered) == paid >= 2, [event["event"] for event in events]
    assert {event["agent_id"] for event in answered} == {"weather-agent"}
    assert not [event for event in events if event["event"] in {"model_failed", "fallback_taken", "model_lost"}]
