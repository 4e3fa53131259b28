"""Plants a text in each place where users can write one, and looks for it in facts, in the API without `content.read`, and in the
event log. Readers of content still get all of them."""

import asyncio
import json
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

import overnight
from api_keys import key_for
from machine_parts import rows
from overnight.domain import ErrorFacts, new_id
from overnight.jobs import Decision, Operations
from overnight.jobs.commands import Complete, CreateJob
from overnight.ledger import Feed, NewJob, SinkConsumer
from overnight.store import Store
from overnight.story import build_timeline, load_job_tree
from overnight.telemetry import JsonLinesSink, LogFiles
from overnight.testing import SpawnedProvider
from served_jobs import rest, working
from serving import Served, serving

MARK = "planted"
code = {"question": f"{MARK}-question"}


class NotDone(Exception):
    pass


@overnight.step(retry=overnight.Retry(attempts=2, backoff_s=0.001))
async def stumbles(word: str) -> str:
    raise ValueError(f"{MARK}-step-exception")


@overnight.step
async def returns(word: str) -> str:
    return f"{MARK}-result"


@overnight.effect(not_done=(NotDone,))
async def refuses(word: str, idempotency_key: str) -> str:
    raise NotDone(f"{MARK}-not-done")


@overnight.effect
async def breaks(word: str, idempotency_key: str) -> str:
    raise ConnectionError(f"{MARK}-unknown")


@overnight.effect
async def hides(word: str, idempotency_key: str) -> Any:
    return {f"{MARK}-kept": float("nan")}


@overnight.job
async def child(word: str) -> str:
    raise ValueError(f"{MARK}-child-exception")


@overnight.job
async def every_place(word: str) -> str:
    overnight.uuid()
    for failing in (stumbles, refuses, child):
        try:
            await failing(word)
        except Exception:
            continue
    await returns(word)
    await overnight.chat(f"{MARK}-prompt")
    answer = await overnight.approval(code["question"], fact=f"{MARK}-detail")
    assert answer.note == f"{MARK}-note"
    for unknown in (breaks, hides):
        try:
            await unknown(word)
        except Exception:
            continue
    raise RuntimeError(f"{MARK}-job-exception")


@overnight.job
async def cancels() -> None:
    task = asyncio.create_task(overnight.sleep(60))
    task.cancel(f"{MARK}-cancel-reason")
    await task


@overnight.job
async def asks() -> None:
    await overnight.approval(code["question"])


async def decide(served: Served, job_id: str, note: str, *, approved: bool) -> None:
    async with asyncio.timeout(20):
        while True:
            waits = (await rest(served, job_id, "parked")).waits
            if "review_id" in waits[0]:  # it may wait for its child first
                break
            await asyncio.sleep(0.01)
    decision = Decision("approve" if approved else "reject", "ann", note=f"{MARK}-{note}")
    await Operations(served.store).decide(waits[0]["review_id"], decision)


async def run_all(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of jobs with texts in every place."""
    store, operations = served.store, Operations(served.store)

    async def begin(function: Any, *args: Any) -> str:
        return (await operations.create(function, args, tenant_id="acme")).job_id

    async with working(served):
        main = await begin(every_place, f"{MARK}-argument")
        await decide(served, main, "note", approved=True)
        await decide(served, main, "rejected-reason", approved=False)
        await decide(served, main, "other-reason", approved=False)
        cancelled, asked, dropped = await begin(cancels), await begin(asks), await begin(asks)
        for job_id in (main, cancelled):
            await rest(served, job_id, "failed")
        await rest(served, asked, "parked")
        await decide(served, dropped, "kept", approved=False)
        await rest(served, dropped, "succeeded")
    file = tmp_path / "broken.py"
    file.write_text(f"raise ValueError('{MARK}-park-reason')")
    monkeypatch.setitem(code, "question", f"{MARK}-other-question")
    broken = NewJob(new_id("job"), "acme", "python", "broken", code_ref=f"{file}:broken")
    await store.commit(CreateJob(broken))
    await operations.resume(asked, "ann")
    foreign = NewJob(new_id("job"), "acme", "foreign", "outside", state="running")
    await store.commit(CreateJob(foreign))
    await store.commit(Complete(foreign.job_id, "failed", error=ErrorFacts("failed", f"{MARK}-completion")))
    async with working(served):
        for job_id in (broken.job_id, asked):
            await rest(served, job_id, "parked")
    return [main, cancelled, asked, dropped, broken.job_id, foreign.job_id]


async def log_of(store: Store, folder: Path) -> str:
    sink = JsonLinesSink(LogFiles(folder))
    consumer = SinkConsumer(store, sink, "here")
    place = await consumer.claim()
    assert place is not None
    await sink.opened()
    await sink.deliver((await Feed(store).read(place, 10_000)).events, place)
    sink.close()
    return (folder / "events.jsonl").read_text()


async def test_planted_texts_are_content(
    store: Store, store_url: str, provider: SpawnedProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(store, provider, hosts=None) as served:
        jobs = await run_all(served, tmp_path, monkeypatch)
        without = await key_for(served, scopes=("jobs.read",))
        reader = await key_for(served, scopes=("jobs.read", "content.read"))
        shown: dict[str, list[str]] = {"without": [], "reader": []}
        for job_id in jobs:
            for path in (f"/api/v1/jobs/{job_id}", f"/api/v1/jobs/{job_id}/events"):
                for name, headers in (("without", without), ("reader", reader)):
                    answer = await served.http.get(path, headers=headers)
                    assert answer.status_code == 200, answer.text
                    shown[name].append(answer.text)
        answer = await served.http.get("/api/v1/jobs", headers=without)
        shown["without"].append(answer.text)
        timelines = [
            repr(msgspec.to_builtins(build_timeline(await load_job_tree(served.ledger, job), store.clock())))
            for job in [await served.ledger.job(job_id) for job_id in jobs]
        ]
    facts = [bytes(body).decode() for (body,) in rows(store_url, "SELECT body FROM event")]
    log = await log_of(store, tmp_path / "log")
    for place, texts in {"facts": facts, "API": shown["without"], "event log": [log]}.items():
        assert [text for text in texts if MARK in text] == [], place
    for name in ("question", "note", "rejected-reason", "other-reason", "step-exception", "not-done", "unknown",
                 "child-exception", "job-exception", "park-reason", "completion", "other-question"):  # fmt: skip
        for place, texts in {"API": shown["reader"], "timeline": timelines}.items():
            assert any(f"{MARK}-{name}" in text for text in texts), (place, name)
    # The cause of a parked or unknown state is still told, by its class.
    told = "".join(shown["without"])
    for name in ('"class":"ConnectionError"', '"class":"result_not_kept"', '"class":"ValueError"', '"approved":false'):
        assert name in told, name


async def test_erased_texts_do_not_stop_a_job(store: Store, store_url: str, provider: SpawnedProvider) -> None:
    """The columns beside the facts are emptied while the job waits; it goes on with the answer."""
    async with serving(store, provider) as served:
        operations = Operations(store)
        async with working(served):
            job_id = (await operations.create(asks, ())).job_id
            await rest(served, job_id, "parked")
        erase = "UPDATE event SET texts = NULL, content = NULL, content_key = NULL"
        if store.dialect == "sqlite":
            apsw.Connection(store_url).execute(erase)
        else:
            rows(store_url, f"{erase} RETURNING 1")
        async with working(served):
            await decide(served, job_id, "note", approved=True)
            assert (await rest(served, job_id)).state == "succeeded"
        found = await served.http.get(f"/api/v1/jobs/{job_id}/events")
        (requested,) = [each for each in found.json()["events"] if each["event"] == "review_requested"]
        assert "question" not in requested["detail"]
        assert json.dumps(requested).count(MARK) == 0
