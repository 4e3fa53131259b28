"""Brain versions in the store: kept before their first job, compared, listed, and changed to by running processes."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cli_runs import run
from overnight.api import Server, application
from overnight.app import App, open_app
from overnight.brain import Brain, load_brain
from overnight.keys import Keys, NewKey
from overnight.ledger import read_brain_files
from overnight.settings import Settings
from overnight.testing import SpawnedProvider
from serving import ROUTING

LIMIT = "budgets: {max_llm_calls_per_job: 1}\n"
PROMPT = "---\ndescription: Sort mail.\n---\nSort the mail of {name}.\n"


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overnight.gateway.brain_reloads.POLL_S", 0.05)


def write(home: Path, routing: str = ROUTING, prompt: str = PROMPT) -> str:
    """Write a brain folder; its version."""
    (home / "brain" / "prompts").mkdir(parents=True, exist_ok=True)
    (home / "brain" / "routing.yaml").write_text(routing)
    (home / "brain" / "prompts" / "triage.md").write_text(prompt)
    return load_brain(home / "brain").version


@asynccontextmanager
async def gateway(store_url: str, home: Path, provider: SpawnedProvider) -> AsyncIterator[tuple[App, Any]]:
    """A gateway with the brain folder of `home`, and a client of it."""
    settings = Settings(home=home, database_url=store_url, brain=home / "brain", brain_named=True)
    async with open_app(settings, offline_base_url=provider.base_url, secrets={}) as app:
        server = Server(application(await app.gateway(), app.ledger))
        _, port = await server.start("127.0.0.1", 0)
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            try:
                yield app, http
            finally:
                await server.stop(0)


async def ask(http: Any, job: str, text: str = "hello") -> int:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    return (await http.post("/v1/chat/completions", json=body, headers={"x-job-id": job})).status_code


async def version_of(http: Any, job: str) -> str:
    return (await http.get(f"/api/v1/jobs/{job}")).json()["brain_version"]


def overnight(home: Path, store_url: str, *words: str, code: int = 0) -> str:
    """Run the command with the brain folder of `home`; its output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OVERNIGHT_")}
    environment = kept | {
        "OVERNIGHT_HOME": str(home),
        "OVERNIGHT_BRAIN": str(home / "brain"),
        "DATABASE_URL": store_url,
    }
    done, out, errors = run(home, environment, *words)
    assert done == code, out + errors
    return out


async def reload(home: Path, store_url: str, **options: Any) -> str:
    return await asyncio.to_thread(overnight, home, store_url, "reload", **options)


async def until(http: Any, status: int, *names: str) -> None:
    """Ask for new jobs until a second call of one has this status."""
    async with asyncio.timeout(10):
        for number in range(1000):
            job = f"{names[0]}-{number}"
            await ask(http, job)
            if await ask(http, job, "again") == status:
                return
            await asyncio.sleep(0.05)


async def test_files_are_stored_before_the_first_job(store_url: str, provider: SpawnedProvider, tmp_path: Path) -> None:
    version = write(tmp_path)
    async with gateway(store_url, tmp_path, provider) as (app, http):
        assert await ask(http, "j") == 200
        assert await version_of(http, "j") == version
        files = await read_brain_files(app.store, version)
        assert Brain.from_files(files).version == version
    (row,) = json.loads(overnight(tmp_path, store_url, "brain", "history", "--json"))
    assert (row["version"], row["jobs"], row["files"]) == (version, 1, 2)


async def test_reload_reaches_every_process_from_the_store(
    store_url: str, provider: SpawnedProvider, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    old = write(here)
    assert write(there) == old
    async with gateway(store_url, here, provider) as (_, http), gateway(store_url, there, provider) as (_, other):
        assert (await ask(http, "running"), await ask(other, "running")) == (200, 200)
        new = write(here, ROUTING + LIMIT, PROMPT.replace("Sort", "Order"))
        assert new[:12] in await reload(here, store_url)
        await until(http, 402, "a")  # the new limit holds
        await until(other, 402, "b")  # its folder is the old one
        assert await ask(http, "fresh") == 200
        assert await version_of(http, "running") == old
        assert await version_of(http, "fresh") == new
        assert await ask(other, "running", "again") == 402  # limits are live, also for running jobs
    rows = json.loads(overnight(here, store_url, "brain", "history", "--json"))
    assert [row["version"] for row in rows] == [new, old]
    assert rows[0]["changed"] == ["prompts/triage.md", "routing.yaml"]


async def test_reload_made_while_a_process_starts_is_followed(
    store_url: str, provider: SpawnedProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write(here)
    write(there)
    settings = Settings(home=here, database_url=store_url, brain=here / "brain", brain_named=True)
    async with open_app(settings, offline_base_url=provider.base_url, secrets={}) as app:
        # After the folder was read, before the gateway starts: the folder is read again.
        new = write(here, ROUTING + LIMIT)
        await reload(here, store_url)
        keep = app.keep_brain

        async def keep_late() -> None:
            """Another host requests a newer version while the gateway starts.

            It replaces a step of the start: a lock that stops this step would also stop the other host's write.
            """
            monkeypatch.setattr(app, "keep_brain", keep)
            assert app.brain.version == new
            newest.append(write(there, prompt=PROMPT.replace("Sort", "Order")))
            await reload(there, store_url)
            await keep()

        newest: list[str] = []
        monkeypatch.setattr(app, "keep_brain", keep_late)
        await app.gateway()
        async with asyncio.timeout(10):
            while app.brain.version != newest[0]:
                await asyncio.sleep(0.02)


async def test_raised_limit_continues_a_stopped_job(store_url: str, provider: SpawnedProvider, tmp_path: Path) -> None:
    write(tmp_path, ROUTING + LIMIT)
    async with gateway(store_url, tmp_path, provider) as (_, http):
        assert (await ask(http, "j"), await ask(http, "j", "again")) == (200, 402)
        write(tmp_path)
        await reload(tmp_path, store_url)
        async with asyncio.timeout(10):
            while await ask(http, "j", "again") != 200:
                await asyncio.sleep(0.05)


async def test_reload_is_refused_with_the_problems_of_the_folder(
    store_url: str, provider: SpawnedProvider, tmp_path: Path
) -> None:
    version = write(tmp_path)
    async with gateway(store_url, tmp_path, provider) as (_, http):
        assert await ask(http, "j") == 200
        (tmp_path / "brain" / "routing.yaml").write_text(ROUTING + "bogus: 1\n")
        out = await reload(tmp_path, store_url, code=1)
        assert "unknown key 'bogus'" in out
        await asyncio.sleep(0.2)
        assert await ask(http, "k") == 200
        assert await version_of(http, "k") == version
    assert len(json.loads(overnight(tmp_path, store_url, "brain", "history", "--json"))) == 1


async def test_diff_compares_versions_and_folders(store_url: str, provider: SpawnedProvider, tmp_path: Path) -> None:
    old = write(tmp_path)
    async with gateway(store_url, tmp_path, provider):
        pass
    assert overnight(tmp_path, store_url, "brain", "diff", old[:8]) == "The versions are equal\n"
    write(tmp_path, prompt=PROMPT.replace("Sort the", "Order \x1b[31m the"))
    (tmp_path / "brain" / "prompts" / "reply.md").write_text("Reply.\n")
    out = overnight(tmp_path, store_url, "brain", "diff", old[:8])
    assert "\n-Sort the mail of {name}.\n+Order �[31m the mail of {name}.\n" in out
    assert "--- /dev/null\n+++ b/prompts/reply.md\n" in out
    found = json.loads(overnight(tmp_path, store_url, "brain", "diff", str(tmp_path / "brain"), old, "--json"))
    assert [(each["path"], each["change"]) for each in found["files"]] == [
        ("prompts/reply.md", "removed"),
        ("prompts/triage.md", "changed"),
    ]
    assert found["after"] == old
    for unknown in ("ffffffff", "no-folder"):
        overnight(tmp_path, store_url, "brain", "diff", unknown, code=1)


async def test_prompts_of_every_version_are_read_over_http(
    store_url: str, provider: SpawnedProvider, tmp_path: Path
) -> None:
    (tmp_path / "brain" / "prompts" / "mail").mkdir(parents=True)
    (tmp_path / "brain" / "prompts" / "mail" / "reply.md").write_text("Reply.\n")
    old = write(tmp_path)
    async with gateway(store_url, tmp_path, provider) as (app, http):
        found = (await http.get("/api/v1/brain/prompts/triage")).json()
        assert (found["text"], found["description"], found["version"]) == (
            "Sort the mail of {name}.",
            "Sort mail.",
            old,
        )
        assert (await http.get("/api/v1/brain/prompts/mail/reply")).json()["text"] == "Reply."
        new = write(tmp_path, prompt="Order the mail.")
        await reload(tmp_path, store_url)
        assert (await http.get("/api/v1/brain/prompts/triage")).json()["version"] == new
        by_prefix = await http.get("/api/v1/brain/prompts/triage", params={"version": old[:10]})
        assert by_prefix.json()["text"] == "Sort the mail of {name}."
        for path, status in (("none", 404), ("triage?version=ffffffffff", 404), ("triage?version=x", 400)):
            assert (await http.get(f"/api/v1/brain/prompts/{path}")).status_code == status
        _, secret = await Keys(app.store).create("acme", NewKey(name="reader", scopes=("jobs.read",)), "ann")
        headers = {"authorization": f"Bearer {secret}"}
        assert (await http.get("/api/v1/brain/prompts/triage", headers=headers)).status_code == 403
        assert (await http.get("/api/v1/brain/prompts/triage")).status_code == 401
