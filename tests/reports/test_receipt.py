"""The receipt: every effect of a job tree, its state, and how it is known."""

import asyncio
import contextlib
from typing import Any

import msgspec
import pytest

import overnight
from job_runs import overnight_decision, rest, run, working
from overnight.jobs import Operations
from overnight.ledger import JobRow, Ledger
from overnight.reports import load_receipt, public_receipt
from overnight.store import Store
from overnight.story import receipt_head, receipt_lines

mood: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def clean() -> None:
    mood.clear()


class Refused(Exception):
    pass


@overnight.effect(not_done=(Refused,))
async def refund(payment: str, usd: float) -> Any:
    if payment in mood.get("refuses", ()):
        raise Refused("card is closed")
    if payment in mood.get("breaks", ()):
        raise ConnectionError("cut")
    return overnight.Done(f"re_{payment}", {"ok": True})


@overnight.effect
async def post(text: str) -> str:
    mood.setdefault("posted", []).append(text)
    raise ConnectionError("cut after the server had it")


@post.status_check
def find_post(text: str, **_: object) -> object:
    if mood.get("blind"):
        return overnight.CANNOT_TELL
    return overnight.Done("post-1", "found") if text in mood.get("posted", ()) else overnight.NOT_DONE


async def tried(payment: str, usd: float) -> None:
    with contextlib.suppress(overnight.EffectFailed):
        await refund(payment, usd)


@overnight.job
async def refunds(payments: list[str]) -> str:
    await asyncio.gather(*(tried(payment, 40.0) for payment in payments))
    return "done"


@overnight.job
async def posts(text: str) -> str:
    return await post(text)


@overnight.job
async def nothing() -> None:
    await overnight.sleep(0)


@overnight.job
async def parent() -> None:
    await posts("hello")


async def receipt_of(store: Store, job: JobRow) -> dict[str, Any]:
    return public_receipt(await load_receipt(Ledger(store), job), with_content=True)


async def text_of(store: Store, job: JobRow) -> list[str]:
    made = await load_receipt(Ledger(store), job)
    return [receipt_head(made), *(f"{line.mark} {line.text}" for line in receipt_lines(made, store.clock()))]


async def test_done_failed_and_unknown_effects_are_told_apart(store: Store) -> None:
    mood.update(refuses=["pay_2"], breaks=["pay_3"])
    job = await run(store, refunds, ["pay_1", "pay_2", "pay_3"])
    made = await receipt_of(store, job)
    assert (made["counts"], made["settled"], made["none"]) == (
        {"committed": 1, "failed": 1, "unknown": 1},
        False,
        False,
    )
    by_payment = {entry["arguments"]["payment"]: entry for entry in _decoded(made["effects"])}
    assert by_payment["pay_1"]["provider_id"] == "re_pay_1"
    assert by_payment["pay_1"]["found_by"] == "executed"
    assert by_payment["pay_2"]["reason"] == "card is closed"
    assert by_payment["pay_2"]["found_by"] is None
    assert by_payment["pay_3"]["waits_for"]["review_id"] == job.waits[0]["review_id"]
    head, *lines = await text_of(store, job)
    assert head.endswith("refunds parked: 1 done, 1 failed, 1 unknown")
    assert lines[0].startswith("✓ refund pay_1 40.0  re_pay_1  ")
    assert lines[0].endswith("executed")
    assert lines[1] == '✗ refund pay_2 40.0  not done: failed (Refused): "card is closed"'
    assert lines[2].startswith("? refund pay_3 40.0  unknown since ")
    assert f"asks a person ({job.waits[0]['review_id']})" in lines[2]


def _decoded(effects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return msgspec.json.decode(msgspec.json.encode(effects))


async def test_a_person_settles_an_unknown_effect(store: Store) -> None:
    mood.update(breaks=["pay_1", "pay_2"])
    job = await run(store, refunds, ["pay_1", "pay_2"])
    first, second = (wait["review_id"] for wait in job.waits)
    async with working(store):
        await Operations(store).decide(first, overnight_decision("done", provider_id="re_81", by="mia"))
        await Operations(store).decide(second, overnight_decision("reject", note="fraud case", by="mia"))
        job = await rest(store, job.job_id, "succeeded")
    made = await receipt_of(store, job)
    assert made["settled"]
    states = {entry["state"]: entry for entry in made["effects"]}
    assert (states["committed"]["found_by"], states["committed"]["how"]) == ("confirmed", "confirmed by mia")
    assert (states["rejected"]["decided_by"], states["rejected"]["reason"]) == ("mia", "fraud case")
    lines = "\n".join(await text_of(store, job))
    assert "re_81" in lines
    assert "confirmed by mia" in lines
    assert 'rejected by mia: "fraud case"' in lines


async def test_a_status_check_confirms_and_children_are_included(store: Store) -> None:
    created = await Operations(store).create(parent)
    async with working(store):
        job = await rest(store, created.job_id, "succeeded")
    made = await receipt_of(store, job)
    (entry,) = made["effects"]
    assert (made["jobs"], made["settled"], entry["found_by"], entry["how"]) == (
        2,
        True,
        "confirmed",
        "confirmed by the status check",
    )
    assert entry["job_id"] != job.job_id
    assert (await text_of(store, job))[1].endswith(f"confirmed by the status check  child {entry['job_id']}")


async def test_a_job_without_effects_says_so(store: Store) -> None:
    job = await run(store, nothing)
    made = await receipt_of(store, job)
    assert (made["none"], made["settled"], made["counts"]) == (True, True, {})
    assert await text_of(store, job) == [f"{job.job_id} nothing succeeded: Completed without any effect"]
