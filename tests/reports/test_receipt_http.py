"""`GET /api/v1/jobs/{id}/receipt`: effects of external programs, and what each key may read of them."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from api_keys import key_for
from http_effects import claim, report
from overnight.domain import Event
from overnight.ledger import JOB as JOB_TABLE
from overnight.ledger import append, locked_job
from overnight.reports import load_receipt
from overnight.store import Store, Unit
from overnight.testing import SpawnedProvider
from serving import Served, serving

JOB = {"x-job-id": "nightly"}


@pytest.fixture
async def served(store: Store, provider: SpawnedProvider) -> AsyncIterator[Served]:
    async with serving(store, provider) as running:
        yield running


async def receipt(served: Served, job: str = "nightly", headers: dict[str, str] | None = None) -> dict[str, Any]:
    found = await served.http.get(f"/api/v1/jobs/{job}/receipt", headers=headers)
    assert found.status_code == 200, found.text
    return found.json()


async def test_reports_of_a_program_are_only_reported(served: Served) -> None:
    done, failed, unknown, held = [await claim(served.http, key, headers=JOB) for key in ("a", "b", "c", "d")]
    await report(served.http, done, "commit", provider_id="re_81", result={"id": "re_81"})
    await report(served.http, failed, "fail", error={"class": "card_declined", "message": "no cover"})
    await report(served.http, unknown, "unknown", why="timed out")
    made = await receipt(served)
    assert (made["counts"], made["found_by"]) == (
        {"claimed": 1, "committed": 1, "failed": 1, "unknown": 1},
        {"reported": 1},
    )
    assert (made["settled"], made["none"]) == (False, False)
    entries = {entry["key"]: entry for entry in made["effects"]}
    assert (entries["a"]["found_by"], entries["a"]["provider_id"]) == ("reported", "re_81")
    assert (entries["b"]["error_class"], entries["b"]["reason"]) == ("card_declined", "no cover")
    assert entries["c"]["waits_for"] is not None
    assert entries["c"]["review"]["kind"] == "quarantine"
    assert entries["d"]["state"] == "claimed"
    assert entries["d"]["effect_id"] == held.json()["effect_id"]
    for entry in made["effects"]:
        shown = (await served.http.get(f"/api/v1/effects/{entry['effect_id']}")).json()
        common = entry.keys() & shown.keys() - {"reason"}
        assert {name: entry[name] for name in common} == {name: shown[name] for name in common}


async def test_a_replay_in_the_same_job_is_one_effect(served: Served) -> None:
    first = await claim(served.http, "a", headers=JOB)
    await report(served.http, first, "commit", provider_id="re_81")
    again = await claim(served.http, "a", headers=JOB)
    assert again.json()["replayed"]
    made = await receipt(served)
    assert made["counts"] == {"committed": 1}
    assert len(made["effects"]) == 1


async def test_receipt_of_a_job_without_a_name(served: Served) -> None:
    """An effect without a job forms one of its own."""
    claimed = await claim(served.http, "a")
    await report(served.http, claimed, "commit", provider_id="re_81")
    made = await receipt(served, claimed.json()["job_id"])
    assert (made["counts"], made["settled"], made["state"]) == ({"committed": 1}, True, "succeeded")


async def test_content_requires_its_scope(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider) as served:
        writer = await key_for(served, scopes=("effects", "calls"))
        reader = await key_for(served, scopes=("jobs.read",))
        whole = await key_for(served, scopes=("jobs.read", "content.read"))
        other = await key_for(served, "other", scopes=("jobs.read", "content.read"))
        headers = writer | JOB
        claimed = await claim(served.http, "order-of-ann", headers=headers)
        await report(served.http, claimed, "fail", headers=headers, error={"class": "declined", "message": "no cover"})
        facts = await receipt(served, headers=reader)
        (entry,) = facts["effects"]
        assert (entry["state"], entry["error_class"], entry["key"]) == ("failed", "declined", None)
        assert {"arguments", "reason"} & entry.keys() == set()
        for secret in ("pay_7", "no cover", "order-of-ann"):
            assert secret not in str(facts)
        (entry,) = (await receipt(served, headers=whole))["effects"]
        assert (entry["arguments"]["payment"], entry["reason"], entry["key"]) == ("pay_7", "no cover", "order-of-ann")
        hidden = await served.http.get("/api/v1/jobs/nightly/receipt", headers=other)
        assert hidden.status_code == 404


class RecordReplay(msgspec.Struct):
    """Record that a job received the result of another job's effect, as a claim does where the key holds in the tenant."""

    job_id: str
    effect_key: str

    def locks(self) -> list[tuple[Any, Any]]:
        return [(JOB_TABLE, self.job_id)]

    def decide(self, unit: Unit) -> None:
        job = locked_job(unit, self.job_id)
        event = Event("tool_succeeded", name="refund", kind="effect", idempotency_key=self.effect_key)
        event.detail = {"replayed": True}
        append(unit, job, event)


async def test_effects_of_other_jobs_are_shown_as_replayed(served: Served) -> None:
    done = await claim(served.http, "a", headers={"x-job-id": "first"})
    await report(served.http, done, "commit", provider_id="re_81")
    (first,) = (await load_receipt(served.ledger, await served.ledger.job("first"))).effects
    await served.ask("hello", headers={"x-job-id": "second"})
    second = await served.ledger.job("second")
    await served.store.commit(RecordReplay(second.job_id, first.effect_key or ""))
    made = await receipt(served, "second")
    (entry,) = made["effects"]
    assert (made["counts"], made["none"]) == ({"replayed": 1}, False)
    assert (entry["effect_id"], entry["job_id"], entry["replayed"]) == (first.effect_id, first.job_id, True)
    assert (entry["state"], entry["found_by"]) == ("committed", "reported")
