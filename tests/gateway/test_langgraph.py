"""A LangGraph program is killed and restarted: no call is paid twice, no effect runs twice."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from overnight.jobs import Operations
from overnight.ledger import Ledger
from overnight.reports import load_receipt
from overnight.reviews import Decision, list_reviews
from overnight.store import open_store
from overnight.testing import spawn_scripted_provider
from vendor_client import VendorClient, spawn_vendor

AGENT = Path(__file__).parents[1] / "support" / "langgraph_agent.py"
RULES = """
rules:
  - match: {tool_result: false}
    answer: {tool_calls: [{name: send_report, arguments: {to: ann, text: first}}]}
  - match: {tool_result: true, times: 1}
    answer: {tool_calls: [{name: send_report, arguments: {to: bob, text: second}}]}
  - match: {tool_result: true, times: 1}
    answer: {tool_calls: [{name: send_report, arguments: {to: cy, text: third}}]}
  - answer: "all reports are out: {tool_result}"
"""


@contextmanager
def gateway(environment: dict[str, str], provider_url: str) -> Iterator[str]:
    """`overnight gateway` as its own process; its base URL."""
    command = [sys.executable, "-m", "overnight", "gateway", "--port", "0", "--offline-base-url", provider_url]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment | {"OVERNIGHT_CHILD": "1"}
    )
    assert process.stdout is not None
    try:
        ready = json.loads(process.stdout.readline())
        yield f"http://127.0.0.1:{ready['port']}/v1"
    finally:
        process.terminate()
        process.wait(10)


def run_agent(
    environment: dict[str, str], record: Path, *options: str, crash_at: str = ""
) -> subprocess.CompletedProcess[str]:
    env = environment | ({"OVERNIGHT_CRASH_AT": crash_at} if crash_at else {})
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, str(AGENT), str(record), *options],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("options", [(), ("--stream",)], ids=["plain", "streamed"])
@pytest.mark.parametrize("crash_at", ["effect_called:2", "effect_claimed:3", "effect_committed:2"])
async def test_killed_agent_resumes_without_repetition(
    store_url: str, tmp_path: Path, crash_at: str, options: tuple[str, ...]
) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_API_KEY")}
    environment |= {"OVERNIGHT_HOME": str(tmp_path / "home"), "OVERNIGHT_DATABASE_URL": store_url}
    record = tmp_path / "world"
    with spawn_scripted_provider(RULES) as provider, gateway(environment, provider.base_url) as base_url:
        environment["OPENAI_BASE_URL"] = base_url
        killed = run_agent(environment, record, *options, crash_at=crash_at)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        paid_before = provider.stats()["paid_calls"]
        assert paid_before >= 2
        again = run_agent(environment, record, *options)
        assert again.returncode == 0, again.stderr
        assert again.stdout.strip() == "attempt 2: all reports are out: delivered to cy"
        assert all(call["paid"] == 1 for call in provider.calls())
        assert provider.stats()["paid_calls"] == 4
    lines = record.read_text().splitlines()
    assert [line.split(" ")[1] for line in lines] == ["ann", "bob", "cy"]
    assert len({line.split(" ")[0] for line in lines}) == 3
    with open_store(store_url) as store:
        ledger = Ledger(store)
        job = await ledger.job("nightly-reports", "default")
        names = [event.facts.event for event in await ledger.events(job.job_id)]
    assert (job.state, job.attempt) == ("succeeded", 2)
    assert names.count("model_succeeded") == 4
    assert names.count("model_replayed") == paid_before
    assert "attempt_started" in names


async def test_killed_agent_is_once_at_the_vendor_over_http(tmp_path: Path) -> None:
    """The program has no database: claims and reports go to the gateway. It is killed once the vendor has the second mail.

    The storm of effects does the same on both stores.
    """
    store_url = str(tmp_path / "ledger.db")
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_API_KEY")}
    environment |= {"OVERNIGHT_HOME": str(tmp_path / "home"), "OVERNIGHT_DATABASE_URL": store_url}
    with (
        spawn_scripted_provider(RULES) as provider,
        spawn_vendor(tmp_path) as vendor,
        gateway(environment, provider.base_url) as base_url,
    ):
        del environment["OVERNIGHT_DATABASE_URL"]
        root = base_url.removesuffix("/v1")
        environment |= {"OPENAI_BASE_URL": base_url, "OVERNIGHT_BASE_URL": root, "VENDOR": vendor.address}
        vendor.plan(bob=["hangs_after"])
        command = [sys.executable, str(AGENT), str(tmp_path / "unused")]
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            async with asyncio.timeout(60):
                while not await asyncio.to_thread(vendor.asked, "bob"):
                    await asyncio.sleep(0.01)
        finally:
            process.kill()
            process.wait()
        parked = run_agent(environment, tmp_path / "unused")
        assert "JobParked" in parked.stderr, parked.stderr
        assert len(vendor.asked("bob")) == 1
        await _answer_by(vendor, store_url)
        again = run_agent(environment, tmp_path / "unused")
        assert again.returncode == 0, again.stderr
        assert again.stdout.strip() == "attempt 3: all reports are out: delivered to cy"
        assert {to: len(vendor.done(to)) for to in ("ann", "bob", "cy")} == {"ann": 1, "bob": 1, "cy": 1}
        assert all(call["paid"] == 1 for call in provider.calls())
    with open_store(store_url) as store:
        receipt = await load_receipt(Ledger(store), await Ledger(store).job("nightly-reports", "default"))
    assert [entry.found_by for entry in receipt.effects] == ["reported", "confirmed", "reported"]


async def _answer_by(vendor: VendorClient, store_url: str) -> None:
    """A person decides the one card by what the vendor knows."""
    with open_store(store_url) as store:
        (card,) = await list_reviews(store)
        (done,) = vendor.done("bob")
        decision = Decision("done", "ann", provider_id=done["id"], result=b'"delivered to bob"')
        await Operations(store).decide(card.review_id, decision)
