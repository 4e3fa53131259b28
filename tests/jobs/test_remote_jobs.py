"""Effects of a program without the database: `attach` over HTTP."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import overnight
from overnight.domain import BadInput, Fenced, StoreUnavailable
from overnight.jobs import gateway_client
from serving import Served

Program = Callable[[], Any]


@pytest.fixture(autouse=True)
def _remote(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OVERNIGHT_BASE_URL", served.url)
    monkeypatch.delenv("OVERNIGHT_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return


async def attached(work: Callable[[], Any], name: str = "nightly") -> Any:
    """Run a program in a thread, since the gateway serves in this loop."""

    def program() -> Any:
        with overnight.attach(name):
            return work()

    return await asyncio.to_thread(program)


async def effects(served: Served, **query: str) -> list[dict[str, Any]]:
    return (await served.http.get("/api/v1/effects", params=query)).json()["effects"]


async def job_of(served: Served, name: str = "nightly") -> dict[str, Any]:
    jobs = (await served.http.get("/api/v1/jobs")).json()["jobs"]
    return next(job for job in jobs if job["external_id"] == name)


async def test_effect_is_done_once_over_two_starts(served: Served) -> None:
    calls: list[str] = []

    @overnight.effect
    def refund(payment: str, idempotency_key: str) -> Any:
        calls.append(idempotency_key)
        return overnight.Done("re_81", {"id": "re_81"})

    assert await attached(lambda: refund.run("pay_7")) == {"id": "re_81"}
    assert await attached(lambda: refund.run("pay_7")) == {"id": "re_81"}
    (effect,) = await effects(served)
    assert calls == [effect["effect_id"]]
    assert (effect["state"], effect["provider_id"], effect["found_by"]) == ("committed", "re_81", "reported")
    job = await job_of(served)
    assert (job["state"], job["attempt"]) == ("succeeded", 2)


async def test_equal_calls_of_one_attempt_are_two_effects(served: Served) -> None:
    calls: list[str] = []

    @overnight.effect
    def remind(who: str) -> None:
        calls.append(who)

    def twice() -> None:
        remind.run("ann")
        remind.run("ann")

    await attached(twice)
    await attached(twice)
    assert calls == ["ann", "ann"]
    assert len(await effects(served)) == 2


async def test_refused_call_is_failed_and_tried_again(served: Served) -> None:
    answers: list[Exception | str] = [overnight.NotDone("no funds"), "re_1"]

    @overnight.effect
    def refund(payment: str) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(overnight.EffectFailed, match="no funds"):
        await attached(lambda: refund.run("pay_7"))
    assert (await effects(served))[0]["state"] == "failed"
    assert await attached(lambda: refund.run("pay_7")) == "re_1"


async def test_unknown_outcome_waits_for_a_person(served: Served) -> None:
    calls: list[str] = []

    @overnight.effect
    def refund(payment: str) -> str:
        calls.append(payment)
        raise TimeoutError("no answer in 20 s")

    with pytest.raises(overnight.JobParked) as parked:
        await attached(lambda: refund.run("pay_7"))
    review_id = parked.value.review_id
    with pytest.raises(overnight.JobParked):
        await attached(lambda: refund.run("pay_7"))
    assert calls == ["pay_7"]
    review = (await served.http.get(f"/api/v1/reviews/{review_id}")).json()
    assert (review["state"], review["kind"]) == ("pending", "quarantine")


async def test_late_result_commits_and_ends_the_question(served: Served) -> None:
    """The function outlives its time limit, and a person is asked; then its result comes."""
    answered = threading.Event()

    @overnight.effect(timeout_s=0.1)
    def refund(payment: str) -> Any:
        answered.wait(20)
        return overnight.Done("re_81", payment)

    with pytest.raises(overnight.JobParked) as parked:
        await attached(lambda: asyncio.run(_until_parked(refund, answered)))
    (effect,) = await effects(served)
    assert (effect["state"], effect["provider_id"]) == ("committed", "re_81")
    review = (await served.http.get(f"/api/v1/reviews/{parked.value.review_id}")).json()
    assert review["state"] == "superseded"


async def _until_parked(refund: Any, answered: threading.Event) -> None:
    """The thread of the call ends with the loop, which waits for it."""
    try:
        await refund("pay_7")
    finally:
        answered.set()


async def test_status_check_finds_an_unknown_effect_done(served: Served) -> None:
    @overnight.effect
    def refund(payment: str) -> str:
        raise TimeoutError("no answer in 20 s")

    @refund.status_check
    def status(payment: str, idempotency_key: str) -> Any:
        return overnight.Done("re_9", "done")

    assert await attached(lambda: refund.run("pay_7")) == "done"
    (effect,) = await effects(served)
    assert (effect["state"], effect["provider_id"]) == ("committed", "re_9")


async def test_status_check_finds_an_unknown_effect_not_done(served: Served) -> None:
    keys: list[str] = []

    @overnight.effect
    def refund(payment: str, idempotency_key: str) -> str:
        keys.append(idempotency_key)
        if len(keys) == 1:
            raise TimeoutError("no answer in 20 s")
        return "done"

    @refund.status_check
    def status(payment: str, idempotency_key: str) -> Any:
        return overnight.NOT_DONE

    assert await attached(lambda: refund.run("pay_7")) == "done"
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert (await effects(served))[0]["state"] == "committed"


async def test_claim_is_extended_while_the_function_runs(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overnight.jobs.remote_job.CLAIM_S", 1.0)
    monkeypatch.setattr("overnight.jobs.remote_job.EXTEND_S", 0.3)
    expiries: list[str] = []

    loop = asyncio.get_running_loop()

    @overnight.effect
    def slow() -> str:
        for _ in range(5):
            time.sleep(0.4)
            found = asyncio.run_coroutine_threadsafe(effects(served), loop).result()
            expiries.append(found[0]["expires_at"])
        return "done"

    assert await attached(slow.run) == "done"
    assert len(set(expiries)) > 1
    assert (await effects(served))[0]["state"] == "committed"


async def test_extension_claims_no_failed_effect(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overnight.jobs.remote_job.EXTEND_S", 0.05)
    claims: list[str] = []
    send = gateway_client.GatewayClient._send

    def slow_extensions(self: Any, method: str, path: str, body: Any, headers: Any) -> Any:
        if path == "/api/v1/effects":
            claims.append(path)
            time.sleep(0.6 if len(claims) > 1 else 0)
        return send(self, method, path, body, headers)

    monkeypatch.setattr(gateway_client.GatewayClient, "_send", slow_extensions)

    @overnight.effect
    def refund(payment: str) -> str:
        time.sleep(0.3)
        raise overnight.NotDone("no funds")

    with pytest.raises(overnight.EffectFailed):
        await attached(lambda: refund.run("pay_7"))
    await asyncio.sleep(1.0)
    assert len(claims) > 1
    assert [each["state"] for each in await effects(served)] == ["failed"]


async def test_late_result_after_many_extensions_is_kept(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overnight.jobs.remote_job.EXTEND_S", 0.05)
    ended = threading.Event()

    @overnight.effect(timeout_s=1.5)
    def refund(payment: str) -> Any:
        ended.wait(20)
        return overnight.Done("re_81", "late")

    with pytest.raises(overnight.JobParked):
        await attached(lambda: refund.run("pay_7"))
    ended.set()
    async with asyncio.timeout(20):
        while (await effects(served))[0]["state"] != "committed":
            await asyncio.sleep(0.05)
    assert (await effects(served))[0]["provider_id"] == "re_81"


async def test_an_older_attempt_claims_no_more(served: Served) -> None:
    @overnight.effect
    def refund(payment: str) -> str:
        return "re_1"

    def older() -> None:
        with overnight.attach("nightly"):
            pass
        refund.run("pay_7")

    with pytest.raises(Fenced):
        await attached(older)
    assert await effects(served) == []


async def test_gateway_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERNIGHT_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(gateway_client, "PATIENCE_S", 0.0)
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:9 gave no answer"):
        await attached(lambda: None)


def test_base_url_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERNIGHT_BASE_URL", "127.0.0.1:8700")
    with pytest.raises(BadInput, match="OVERNIGHT_BASE_URL: expected the URL"), overnight.attach("nightly"):
        pass


PROGRAM = """
import os, sys, time
import overnight

@overnight.effect
def send(to: str, idempotency_key: str) -> str:
    with open(sys.argv[1], "a") as vendor:
        vendor.write(idempotency_key + "\\n")
    if sys.argv[2] == "hang":
        print("called", flush=True)
        time.sleep(60)
    return "sent"

with overnight.attach("killed"):
    print(send.run("ann"), flush=True)
"""


async def test_program_killed_in_its_call_leaves_an_unknown_effect(served: Served, tmp_path: Path) -> None:
    vendor = tmp_path / "vendor"
    (tmp_path / "program.py").write_text(PROGRAM)

    def run(how: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "program.py"), str(vendor), how]
        return subprocess.Popen(
            command, cwd=tmp_path, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def killed() -> None:
        program = run("hang")
        assert program.stdout is not None
        assert program.stdout.readline() == "called\n"
        program.send_signal(signal.SIGKILL)
        program.wait()

    await asyncio.to_thread(killed)
    again = await asyncio.to_thread(lambda: run("work").communicate(timeout=60))
    assert "JobParked" in again[1], again
    assert len(vendor.read_text().splitlines()) == 1
    (effect,) = await effects(served)
    assert effect["state"] == "unknown"
    (review,) = (await served.http.get("/api/v1/reviews")).json()["reviews"]
    assert effect["waits_for"] == review["review_id"]
