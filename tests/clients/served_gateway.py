"""A running gateway with a scripted provider behind it, and a client's run through it."""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.testing import spawn_scripted_provider

from .environments import HERE, NODE_CLIENTS, node, node_packages, python


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


@contextmanager
def served_gateway(rules: Path | str, routing: str | None = None, **environment: str) -> Iterator[Gateway]:
    """Start a scripted provider with the rules of a file or a text, and a gateway in a process of its own."""
    with tempfile.TemporaryDirectory() as home, spawn_scripted_provider(rules) as provider:
        env = {key: value for key, value in os.environ.items() if not key.endswith(("_API_KEY", "_BASE_URL"))}
        env |= {"OVERNIGHT_HOME": home, "OVERNIGHT_OFFLINE_BASE_URL": provider.base_url, **environment}
        if routing is not None:
            brain = Path(home, "brain")
            brain.mkdir()
            (brain / "routing.yaml").write_text(routing)
        command = [sys.executable, "-m", "overnight", "gateway", "--port", "0"]
        process = subprocess.Popen(command, env=env, cwd=home, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            yield Gateway(f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}", provider)
        finally:
            process.terminate()
            process.wait(30)


def command_of(client: str, script: Path, env: dict[str, str]) -> list[str | Path]:
    """Return the command that runs a client; a client on Node.js finds its packages by `env`, which is changed."""
    if client not in NODE_CLIENTS:
        return [python(client), script]
    packages, interpreter = node_packages(client), node() / "bin" / "node"
    env |= {"PACKAGES": str(packages), "NODE": str(interpreter)}
    own = packages / "agent.mjs"
    return [interpreter, own] if own.exists() else [sys.executable, script]


def client_environment(gateway: Gateway, job: str, home: Path) -> dict[str, str]:
    """Return the environment of a client: no keys of the caller, a home of its own, the helpers of this folder."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI_", "ANTHROPIC_", "CLAUDE"))}
    return env | {
        "GATEWAY": gateway.url,
        "JOB": job,
        "FRESH_HOME": str(home),
        "OPENAI_API_KEY": "unused",
        "HOME": str(home),
        "PYTHONPATH": str(HERE),
    }


def check_agent_run(gateway: Gateway, client: str, form: str, way: str, home: Path, scripts: Path = HERE) -> None:
    """Run a weather agent; check its answer, its tool calls, and the calls in the job that it named."""
    job = f"{client}-{form}-{way}"
    before = gateway.provider.stats()["paid_calls"]
    env = client_environment(gateway, job, home)
    command = [*command_of(client, scripts / f"{client}.py", env), form, way]
    done = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    reported = json.loads(done.stdout.strip().splitlines()[-1])
    assert "18 degrees and quiet" in reported["answer"], reported
    assert reported["asked"] == ["Berlin"]
    assert (reported["pieces"] > 0) == (way == "streamed")

    events = gateway.events(job)
    answered = [event for event in events if event["event"] == "model_succeeded"]
    paid = gateway.provider.stats()["paid_calls"] - before
    assert len(answered) == paid >= 2, [event["event"] for event in events]
    assert {event["agent_id"] for event in answered} == {"weather-agent"}
    assert not [event for event in events if event["event"] in {"model_failed", "fallback_taken", "model_lost"}]
