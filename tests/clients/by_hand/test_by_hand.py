"""Further clients, run by hand: they take longer to install, or judge by suites of their own.

make clients-all        all clients; the report of a run stands in `by_hand/REPORT.md`
"""

import re
import subprocess
from pathlib import Path

import pytest

from ..environments import HERE, python
from ..served_gateway import check_agent_run, client_environment, served_gateway

BY_HAND = Path(__file__).parent
STANDARD = ["-q", "--noconftest", "-c", "/dev/null", "--rootdir", ".", "-p", "no:cacheprovider"]
STANDARD += ["-o", "asyncio_mode=auto", "-o", "asyncio_default_test_loop_scope=session"]
STANDARD += ["-o", "asyncio_default_fixture_loop_scope=session"]


RUNS = [
    ("litellm_agent", "chat", "plain"),
    ("litellm_agent", "chat", "streamed"),
    ("litellm_agent", "messages", "plain"),
    ("litellm_agent", "messages", "streamed"),
    ("n8n", "chat", "plain"),
    ("gemini_cli", "gemini", "streamed"),
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("client", "form", "way"), RUNS)
def test_agent_runs_through_the_gateway(tmp_path: Path, client: str, form: str, way: str) -> None:
    with served_gateway(HERE / "rules.yaml") as gateway:
        check_agent_run(gateway, client, form, way, tmp_path, BY_HAND)


@pytest.mark.timeout(900)
def test_openclaw_runs_through_the_gateway(tmp_path: Path) -> None:
    with served_gateway(BY_HAND / "openclaw_rules.yaml") as gateway:
        check_agent_run(gateway, "openclaw_agent", "chat", "streamed", tmp_path, BY_HAND)


@pytest.mark.timeout(900)
def test_standard_tests_of_langchain_pass(tmp_path: Path) -> None:
    with served_gateway(BY_HAND / "langchain_rules.yaml") as gateway:
        env = client_environment(gateway, "langchain", tmp_path)
        command = [python("langchain_standard"), "-m", "pytest", *STANDARD, BY_HAND / "langchain_standard.py"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout[-6000:]
        print(done.stdout.splitlines()[-1])
        passed = re.search(r"(\d+) passed", done.stdout)
        assert passed
        assert int(passed[1]) > 100
        events = gateway.events("langchain")
        ended_badly = {"model_failed", "fallback_taken", "model_lost"}
        failed = [event.get("error", {}).get("message", "") for event in events if event["event"] in ended_badly]
        # One test sends a thinking block with a signature of its own, and accepts that it is refused.
        assert [words for words in failed if "Invalid `signature`" not in words] == []
