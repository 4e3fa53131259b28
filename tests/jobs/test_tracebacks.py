"""Failed jobs keep the files, lines and functions of their own code, without values."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

import overnight
from command_line import Shell
from job_runs import run
from overnight.ledger import Ledger
from overnight.settings import Settings
from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider
from serving import serving

HERE = __file__


def charge(card: str) -> None:
    raise ConnectionError(f"the bank did not answer for {card}")


@overnight.step
async def pay(card: str) -> None:
    charge(card)


@overnight.job
async def shops(card: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(pay(card))


@overnight.effect(timeout_s=1)
def transfer(card: str) -> None:
    charge(card)


@overnight.job
async def transfers(card: str) -> None:
    await transfer(card)


def frames(trace: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """(exception, functions); every file is this one, and every line one of its own."""
    lines = len(Path(HERE).read_text().splitlines())
    for each in (frame for error in trace for frame in error["frames"]):
        assert set(each) == {"file", "line", "function"}
        assert each["file"] == HERE
        assert 0 < each["line"] <= lines
    return [(error["class"], [frame["function"] for frame in error["frames"]]) for error in trace]


async def test_the_api_shows_where_a_job_failed(store: Store, provider: SpawnedProvider) -> None:
    job = await run(store, shops, "4111-secret")
    assert job.state == "failed"
    async with serving(store, provider) as served:
        shown = (await served.http.get(f"/api/v1/jobs/{job.job_id}")).json()
        listed = (await served.http.get("/api/v1/jobs")).json()["jobs"][0]
    assert frames(shown["traceback"]) == [
        ("ExceptionGroup", ["shops"]),
        ("ConnectionError", ["pay", "charge"]),
    ]
    assert "secret" not in str(shown["traceback"])
    assert "traceback" not in listed


async def test_failed_step_and_unknown_effect_keep_tracebacks(store: Store) -> None:
    await run(store, shops, "4111-secret")
    parked = await run(store, transfers, "4111-secret")
    ledger = Ledger(store)
    for job in await ledger.jobs():
        for event in await ledger.events(job.job_id):
            if event.facts.event in {"step_failed", "tool_unknown"}:
                assert b'"charge"' in (event.content or b"")
                assert b"secret" not in (event.content or b"")
    assert parked.state == "parked"


async def test_external_program_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERNIGHT_HOME", str(tmp_path))
    settings = Settings.from_environment()
    with pytest.raises(ConnectionError), overnight.attach("night-1", settings=settings):
        charge("4111-secret")
    with open_store(settings.database_url) as store:
        (job,) = await Ledger(store).jobs()
        failed = (await Ledger(store).events(job.job_id))[-1]
    assert (failed.facts.event, job.state) == ("failed", "failed")
    assert b'"charge"' in (failed.content or b"")


def test_explain_shows_it_as_text_and_as_json(shell: Shell) -> None:
    (shell.folder / "broken.py").write_text(
        "import overnight\n"
        "def inner(secret):\n"
        "    raise ValueError('no')\n"
        "@overnight.job\n"
        "async def breaks() -> None:\n"
        "    inner('s3cret')\n"
    )
    shell("run", "broken.py:breaks", code=1)
    file = shell.folder / "broken.py"
    story = " ".join(shell("explain", "last").split())
    assert f"raised at: {file}:3 in inner ← {file}:6 in breaks" in story
    told = shell.json("explain", "last")
    places = [(frame["line"], frame["function"]) for frame in told["job"]["traceback"][0]["frames"]]
    assert places == [(6, "breaks"), (3, "inner")]
    assert "s3cret" not in str(told)


@pytest.fixture
def shell(tmp_path: Path, provider: SpawnedProvider) -> Shell:
    return Shell(tmp_path, provider.base_url)
