"""`overnight.about`: the record that a branch works on, in the events of the branch and of nothing else."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

import overnight
from job_runs import overnight_decision, rest, working
from overnight.jobs import Operations
from overnight.ledger import Ledger
from overnight.reviews import list_reviews
from overnight.settings import Settings
from overnight.store import Store, open_store


@overnight.effect
def send(to: str) -> str:
    return to


@overnight.step
async def read(number: int) -> int:
    overnight.uuid()
    overnight.about(f"inside-{number}")
    overnight.now()
    return number


@overnight.job
async def child() -> None:
    await overnight.sleep(0)


async def branch(number: int) -> None:
    overnight.about(f"mail-{number}")
    await read(number)
    await send(f"{number}")


@overnight.job
async def mails() -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(2):
            group.create_task(branch(number))
    await read(8)
    with overnight.about("mail-9"):
        await send("nine")
        await child()
        assert (await overnight.approval("Go on?")).approved
        await overnight.sleep(0)
    await send("ten")


async def named(store: Store, job_id: str) -> dict[str, list[str | None]]:
    """The records of the events at each path, by event and name."""
    found: dict[str, list[str | None]] = {}
    for event in await Ledger(store).events(job_id):
        if event.path is not None:
            found.setdefault(event.path, []).append(event.facts.about)
    return found


async def test_each_branch_has_its_own_record(store: Store) -> None:
    job = await Operations(store).create(mails, ())
    async with working(store), asyncio.timeout(15):
        while not (reviews := await list_reviews(store)):
            await asyncio.sleep(0.01)
        await rest(store, job.job_id, "parked")
    await Operations(store).decide(reviews[0].review_id, overnight_decision(answer="approve"))
    async with working(store):
        job = await rest(store, job.job_id, "succeeded", "failed")
    assert job.state == "succeeded", job.error
    events = await Ledger(store).events(job.job_id)
    by_path = await named(store, job.job_id)
    for number in range(2):
        assert set(by_path[f"/{number}"]) == {f"mail-{number}"}
        assert by_path[f"/{number}#0"] == [f"mail-{number}", f"inside-{number}"]
    assert by_path["#0"] == [None, "inside-8"]
    told = {(each.facts.event, each.facts.about) for each in events if each.path == ""}
    assert {about for event, about in told if event == "step_committed"} == {None}
    for name in ("child_started", "review_requested", "timer_set", "timer_fired"):
        assert (name, "mail-9") in told
    sent = [each.facts.about for each in events if each.facts.event == "tool_succeeded" and each.path == ""]
    assert sent == ["mail-9", None]  # the record is the same after the job was parked and replayed


def test_external_program_names_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERNIGHT_HOME", str(tmp_path))
    settings = Settings.from_environment()
    with overnight.attach("night-1", settings=settings) as job:
        assert "x-record" not in job.headers
        with overnight.about("mail-17"):
            assert job.headers["x-record"] == "mail-17"
            asyncio.run(_send())
        assert "x-record" not in job.headers
        asyncio.run(_send())
    with open_store(settings.database_url) as store:
        events = asyncio.run(Ledger(store).events(job.job_id))
    tools: list[Any] = [each.facts.about for each in events if each.facts.event.startswith("tool_")]
    assert tools == ["mail-17", "mail-17", None, None]


async def _send() -> None:
    await send("you")


def test_record_is_an_identifier() -> None:
    with pytest.raises(overnight.BadInput, match=r"about\(\)"):
        overnight.about("a\nb")
