"""`overnight.prompt`: the prompts of the brain version with which a job began, on every worker."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import overnight
from caching import SEMANTIC
from cli_runs import run
from overnight.app import App, open_app
from overnight.brain import Brain, load_brain
from overnight.domain import FINISHED, BadInput
from overnight.jobs import Operations
from overnight.ledger import JobRow
from overnight.reviews import list_reviews
from overnight.settings import Settings
from overnight.store import Statement
from overnight.testing import SpawnedProvider
from serving import ROUTING

OLD, NEW = "Sort the mail of {{ name }}.\n", "Order the mail of {{ name }} by {{ key }}.\n"


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overnight.gateway.brain_reloads.POLL_S", 0.05)


@overnight.job
async def sorts(person: str) -> list[str]:
    first = await overnight.prompt("mail/triage", name=person)
    await overnight.chat(first)
    assert (await overnight.approval("Go on?")).approved
    second = await overnight.prompt("mail/triage", name=7)
    messages = [{"role": "system", "content": second}, {"role": "user", "content": [{"type": "text", "text": first}]}]
    await overnight.chat(messages)
    await overnight.chat("no prompt")
    return [first, second]


@overnight.job
async def parents(person: str) -> list[str]:
    return await sorts(person)


@overnight.job
async def fails(name: str, variables: dict[str, Any]) -> str:
    return await overnight.prompt(name, **variables)


@overnight.job
async def branches() -> list[str]:
    async def one(number: int) -> str:
        text = await overnight.prompt("mail/triage", name=number)
        overnight.uuid()
        await overnight.sleep(0)
        return text

    texts = await asyncio.gather(*(one(number) for number in range(4)))
    assert (await overnight.approval("Go on?")).approved
    return texts


@overnight.job
async def asks(question: str) -> str:
    return (await overnight.chat(question)).text


def write(home: Path, prompt: str = OLD, routing: str = ROUTING) -> str:
    """Write a brain folder; its version."""
    (home / "brain" / "prompts" / "mail").mkdir(parents=True, exist_ok=True)
    (home / "brain" / "routing.yaml").write_text(routing)
    (home / "brain" / "prompts" / "mail" / "triage.md").write_text(prompt)
    return load_brain(home / "brain").version


@asynccontextmanager
async def worker(store_url: str, home: Path, provider: SpawnedProvider) -> AsyncIterator[App]:
    """A worker with the brain folder of `home`."""
    settings = Settings(home=home, database_url=store_url, brain=home / "brain", brain_named=True)
    async with open_app(settings, offline_base_url=provider.base_url, secrets={}) as app, app.working():
        yield app


async def start(app: App, function: Any, *args: Any) -> str:
    return (await Operations(app.store).create(function, args, brain_version=app.brain.version)).job_id


async def rest(app: App, job_id: str, *states: str) -> JobRow:
    async with asyncio.timeout(20):
        while (job := await app.ledger.job(job_id)).state not in (states or {*FINISHED, "parked"}):
            await asyncio.sleep(0.01)
        return job


async def approve(app: App) -> None:
    for review in await list_reviews(app.store):
        await app.operations.decide_review(review.review_id, "approve", by="ann")


async def change(app: App, home: Path, store_url: str, routing: str = ROUTING) -> str:
    """Change the folder, and the running processes to it; the new version."""
    new = write(home, NEW, routing)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OVERNIGHT_")}
    places = {"OVERNIGHT_HOME": str(home), "OVERNIGHT_BRAIN": str(home / "brain"), "DATABASE_URL": store_url}
    done, out, errors = await asyncio.to_thread(run, home, kept | places, "reload")
    assert done == 0, out + errors
    async with asyncio.timeout(10):
        while app.brain.version != new:
            await asyncio.sleep(0.01)
    return new


async def forget(app: App, version: str) -> None:
    """Lose the files of a version, as by hand."""
    sql = "DELETE FROM brain_file WHERE version = :version RETURNING version"

    class Delete:
        def locks(self) -> list[Any]:
            return []

        def decide(self, unit: Any) -> None:
            unit.query(Statement("forget", {"sqlite": sql, "postgres": sql}), {"version": version})

    await app.store.commit(Delete())


async def named(app: App, job_id: str) -> list[Any]:
    events = await app.ledger.events(job_id)
    return [(each.facts.detail or {}).get("prompts") for each in events if each.facts.event == "model_called"]


@pytest.mark.parametrize("function", [sorts, parents])
async def test_resumed_job_keeps_its_prompts_on_the_same_worker(
    store_url: str, provider: SpawnedProvider, tmp_path: Path, function: Any
) -> None:
    old = write(tmp_path)
    async with worker(store_url, tmp_path, provider) as app:
        job_id = await start(app, function, "ann")
        await rest(app, job_id, "parked")
        while not await list_reviews(app.store):  # of the child
            await asyncio.sleep(0.01)
        new = await change(app, tmp_path, store_url)
        await approve(app)
        job = await rest(app, job_id, *FINISHED)
        assert (job.state, job.brain_version) == ("succeeded", old)
        assert job.result == b'["Sort the mail of ann.","Sort the mail of 7."]'
        later = await start(app, sorts, "ann")
        assert (await rest(app, later)).state == "failed"  # the new prompt has one more variable
        error = (await app.ledger.job(later)).error or ""
        assert "prompt mail/triage: missing key" in error
        assert (await app.ledger.job(later)).brain_version == new


async def test_other_worker_with_a_newer_folder_loads_the_version(
    store_url: str, provider: SpawnedProvider, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    old = write(here)
    write(there, NEW)
    async with worker(store_url, here, provider) as app:
        jobs = [await start(app, function, *args) for function, args in ((sorts, ("ann",)), (branches, ()))]
        for job_id in jobs:
            await rest(app, job_id, "parked")
    async with worker(store_url, there, provider) as app:
        assert app.brain.version != old
        await approve(app)
        one, several = [await rest(app, job_id) for job_id in jobs]
        assert (one.state, one.result) == ("succeeded", b'["Sort the mail of ann.","Sort the mail of 7."]')
        assert several.state == "succeeded"
        assert [b"mail of %d." % number in (several.result or b"") for number in range(4)] == [True] * 4
        entry = {"name": "mail/triage", "version": old}
        assert await named(app, jobs[0]) == [[entry], [entry], None]
        for job_id in jobs:
            assert "diverged" not in [each.facts.event for each in await app.ledger.events(job_id)]


async def test_job_parks_while_the_files_of_its_version_are_lost(
    store_url: str, provider: SpawnedProvider, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    old = write(here)
    write(there, NEW)
    async with worker(store_url, here, provider) as app:
        job_id = await start(app, branches)
        await rest(app, job_id, "parked")
        await forget(app, old)
    async with worker(store_url, there, provider) as app:
        await approve(app)
        async with asyncio.timeout(10):
            while (job := await app.ledger.job(job_id)).waits[:1] == [] or job.waits[0]["for"] != "quarantine":
                await asyncio.sleep(0.01)
        (wait,) = job.waits
        assert f"lacks the files of brain version {old[:12]}" in wait["why"]
        assert "OVERNIGHT_BRAIN" in wait["why"]
    async with worker(store_url, here, provider) as app:  # stores them again
        await app.operations.resume(job_id, "ann")
        assert (await rest(app, job_id, *FINISHED)).state == "succeeded"


async def test_job_without_a_version_parks(store_url: str, provider: SpawnedProvider, tmp_path: Path) -> None:
    write(tmp_path)
    async with worker(store_url, tmp_path, provider) as app:
        job = await Operations(app.store).create(branches, ())
        (wait,) = (await rest(app, job.job_id)).waits
        assert (wait["for"], "without a brain version" in wait["why"]) == ("quarantine", True)


@pytest.mark.parametrize(
    ("name", "variables", "told"),
    [
        ("mail/triag", {"name": "ann"}, "prompt 'mail/triag' is unknown in brain version {version}; did you mean"),
        ("mail/triage", {}, "prompt mail/triage: missing name; pass each variable of its text by name"),
        ("mail/triage", {"name": "a", "nam": "b"}, "prompt mail/triage: unknown variable 'nam'; did you mean 'name'?"),
        ("mail/triage", {"name": ["a"]}, "prompt mail/triage: variable name is of type list; pass text or a number"),
        ("mail/triage", {"name": None}, "prompt mail/triage: variable name is of type NoneType"),
    ],
)
async def test_wrong_name_or_variable_is_one_error(
    provider: SpawnedProvider, tmp_path: Path, name: str, variables: dict[str, Any], told: str
) -> None:
    version = write(tmp_path)
    async with worker(str(tmp_path / "ledger.db"), tmp_path, provider) as app:
        job = await rest(app, await start(app, fails, name, variables))
        assert job.state == "failed"
        assert f"BadInput: {told.format(version=version[:12])}"[10:] in (job.error or "")


async def test_prompt_outside_a_job_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"prompt\(\) needs a running job"):
        await overnight.prompt("triage")


def test_variables_are_replaced_once_and_other_braces_stay() -> None:
    text = 'Say {{greeting}} to {{ who }}, {{ who }}, as {"json": {"a": 1}} and {single}.'
    files = {
        "prompts/a.md": text.encode(),
        "prompts/b.md": b"{{ a-b }} {{ x | upper }} {{}}",
        "prompts/README.md": b"{{",
    }
    brain = Brain.from_files(files)
    prompt = brain.prompts["a"]
    assert prompt.variables == ("greeting", "who")
    filled = prompt.fill({"greeting": "{{ who }}", "who": 1.5})
    assert filled == 'Say {{ who }} to 1.5, 1.5, as {"json": {"a": 1}} and {single}.'
    assert brain.prompts["b"].fill({}) == "{{ a-b }} {{ x | upper }} {{}}"
    with pytest.raises(BadInput, match="unknown variable 'x'; its text has none"):
        brain.prompts["b"].fill({"x": 1})
    warnings = [str(problem) for problem in brain.warnings]
    assert len(warnings) == 3
    assert "'{{ a-b }}' is no variable and stays as it is" in warnings[0]


async def test_semantic_cache_is_keyed_on_the_version_that_the_call_used(
    store_url: str, provider: SpawnedProvider, tmp_path: Path
) -> None:
    asked, like = "How do I reset the password of my account?", "How do I reset the password of my account please?"
    write(tmp_path, OLD, ROUTING + SEMANTIC)
    provider.set_rules("rules: [{answer: 'answer {count}'}]")

    async def answer(app: App, version: str, question: str) -> bytes | None:
        job = await Operations(app.store).create(asks, (question,), brain_version=version)
        return (await rest(app, job.job_id)).result

    async with worker(store_url, tmp_path, provider) as app:
        old = app.brain.version
        first = await answer(app, old, asked)
        new = await change(app, tmp_path, store_url, ROUTING + SEMANTIC)
        assert await answer(app, new, like) not in (None, first)  # asked with other prompts
        assert await answer(app, old, like) == first
