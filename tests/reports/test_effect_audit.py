"""The audit of effects: pages in the order of time, whatever their number; bounded receipts of long jobs."""

import hashlib
from typing import Any

import msgspec
import pytest

from overnight.domain import new_id
from overnight.effects import EFFECT, EffectRow
from overnight.jobs import Complete, CreateJob
from overnight.ledger import JOB, Ledger, NewJob
from overnight.reports import AuditFilter, audit_effects, load_receipt, public_receipt
from overnight.store import Store, Unit
from overnight.story import receipt_head, receipt_lines

NUMBER = 1_203


class AddEffects(msgspec.Struct):
    """Insert effects of a job: every third one of `mail`, at four per microsecond; one is unknown."""

    job_id: str

    def locks(self) -> list[tuple[Any, Any]]:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> None:
        for number in range(NUMBER):
            row = EffectRow(
                tenant_id="default",
                effect_key=hashlib.sha256(b"%d" % number).hexdigest(),
                job_id=self.job_id,
                tool="refund" if number % 3 else "mail",
                state="committed" if number != 700 else "unknown",
                arguments_sha256="",
                owner="",
                attempt=1,
                lease_epoch=0,
                provider_id=f"re_{number}",
                result=None,
                error=None,
                claimed_at=1_000 + number // 4,
                settled_at=2_000,
                effect_id=new_id("eff"),
                source="reported" if number % 2 else "executed",
                about=f"order-{number}",
            )
            unit.insert(EFFECT, row)


@pytest.fixture
async def job_id(store: Store) -> str:
    new = NewJob(
        job_id=new_id("job"), tenant_id="default", runtime="foreign", name="long", agent_id="payer", state="running"
    )
    job, _ = await store.commit(CreateJob(new))
    await store.commit(AddEffects(job.job_id))
    await store.commit(Complete(job.job_id))
    return job.job_id


async def test_every_effect_is_listed_once_in_order(store: Store, job_id: str) -> None:
    async def found(**wanted: Any) -> list[str]:
        fields = {"tenant_id": "default", **wanted}
        return [each.entry.about or "" async for each in audit_effects(Ledger(store), AuditFilter(**fields))]

    every = await found()
    assert len(every) == len(set(every)) == NUMBER
    numbers = [int(about.removeprefix("order-")) // 4 for about in every]
    assert numbers == sorted(numbers)
    assert len(await found(tool="mail")) == NUMBER // 3
    assert await found(about="order-5", job_id=job_id, agent_id="payer") == ["order-5"]
    assert await found(state="unknown") == ["order-700"]
    assert len(await found(since=1_100)) == NUMBER - 400
    assert await found(tenant_id="acme") == []
    assert len(await found(tenant_id="")) == NUMBER


async def test_a_long_receipt_is_bounded_and_counts_everything(store: Store, job_id: str) -> None:
    ledger = Ledger(store)
    made = await load_receipt(ledger, await ledger.job(job_id))
    assert (len(made.effects), made.more) == (1_000, NUMBER - 1_000)
    assert made.counts == {"committed": NUMBER - 1, "unknown": 1}
    assert made.found_by == {"executed": NUMBER // 2, "reported": NUMBER // 2}
    assert "unknown" in {entry.state for entry in made.effects}, "what can still change is always listed"
    assert not public_receipt(made, with_content=True)["settled"]
    assert receipt_head(made).endswith("601 reported by the program")
    lines = [line.text for line in receipt_lines(made, store.clock())]
    assert f"203 more effects: overnight audit effects --job {job_id}" in lines
    reported = [line for line in lines if "re_1 " in line]
    assert reported[0].endswith("reported by the program, not checked")
