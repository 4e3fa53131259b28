"""Real agent frameworks and programs, each in its own environment and process, run a tool-calling agent.

    make clients            all of them; the first run installs them

Each answers with the tool's result, and its calls are recorded in the job that it names, each paid once.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .environments import HERE
from .served_gateway import Gateway, check_agent_run, served_gateway

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


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with served_gateway(HERE / "rules.yaml") as served:
        yield served


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("client", "form", "way"), RUNS)
def test_agent_runs_through_the_gateway(gateway: Gateway, tmp_path: Path, client: str, form: str, way: str) -> None:
    check_agent_run(gateway, client, form, way, tmp_path)
