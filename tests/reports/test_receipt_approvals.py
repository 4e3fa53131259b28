"""Effects that rules hold or refuse, as lines of the receipt: who is waited for, who approved, edited or refused."""

from collections.abc import Iterator
from typing import Any

import pytest

import overnight
from http_effects import AheadClock
from job_runs import overnight_decision, rest, working
from overnight.domain.tools import Allowed, Denied, NeedsApproval, ToolCallFacts, Verdict
from overnight.effects import ExpireReview
from overnight.jobs import Operations
from overnight.ledger import JobRow, Ledger
from overnight.reports import load_receipt, public_receipt
from overnight.store import Store, open_store
from overnight.story import receipt_head, receipt_lines

HOUR_MS = 3_600_000


@pytest.fixture
def clock() -> AheadClock:
    return AheadClock()


@pytest.fixture
def store(store_url: str, clock: AheadClock) -> Iterator[Store]:
    with open_store(store_url, clock) as opened:
        yield opened


class RulesInForce:
    def decide(self, facts: ToolCallFacts) -> Verdict:
        usd = facts.arguments["usd"]
        if usd > 1_000:
            return Denied("limits", f"{usd} is too much")
        return NeedsApproval("large", "it is large", ("mia", "tom"), HOUR_MS, "r1") if usd > 100 else Allowed()


@overnight.effect
async def refund(payment: str, usd: float) -> overnight.Done:
    return overnight.Done(f"re_{payment}", usd)


@overnight.job(assert_effects=[{"text": r"refunded (?P<payment>pay_\w+) with (?P<usd>\d+)", "tool": "refund"}])
async def pays(payment: str, usd: float) -> str:
    try:
        await refund(payment, usd)
    except overnight.EffectFailed as failed:
        return str(failed)
    return f"refunded {payment} with {usd:.0f}"


async def started(store: Store, usd: float) -> JobRow:
    job = await Operations(store).create(pays, ("pay_8", usd))
    async with working(store, tool_rules=RulesInForce):
        return await rest(store, job.job_id)


async def decided(store: Store, job: JobRow, answer: str, **facts: Any) -> JobRow:
    await Operations(store).decide(
        job.waits[0]["review_id"], overnight_decision(answer, tenant_id=job.tenant_id, **({"by": "mia"} | facts))
    )
    async with working(store, tool_rules=RulesInForce):
        return await rest(store, job.job_id, "succeeded", "failed")


async def shown(store: Store, job: JobRow) -> tuple[dict[str, Any], list[str]]:
    made = await load_receipt(Ledger(store), job)
    lines = [f"{line.mark} {line.text}" for line in receipt_lines(made, store.clock())]
    return public_receipt(made, with_content=True), [receipt_head(made).partition(": ")[2], *lines]


async def test_waiting_names_who_decides_and_until_when(store: Store) -> None:
    job = await started(store, 250)
    made, (head, line) = await shown(store, job)
    review_id = job.waits[0]["review_id"]
    assert (head, made["settled"]) == ("1 waiting", False)
    assert line.startswith(f"‖ refund pay_8 250.0  waits for approval by mia or tom ({review_id}) until ")
    (entry,) = made["effects"]
    assert (entry["waits_for"], entry["review"]["by"]) == (review_id, ["mia", "tom"])
    assert entry["review"]["expires_at"] is not None


async def test_approved_effect_names_the_person(store: Store) -> None:
    job = await decided(store, await started(store, 250), "approve")
    made, (head, line, claim) = await shown(store, job)
    assert (head, made["settled"]) == ("1 done", True)
    assert line.startswith("✓ refund pay_8 250.0  re_pay_8  ")
    assert line.endswith("executed, approved by mia")
    assert made["effects"][0]["decided_by"] == "mia"
    assert claim.startswith('✓ claim "refunded pay_8 with 250": refund eff_')


async def test_edited_effect_is_judged_by_the_arguments_that_were_used(store: Store) -> None:
    """The job's code still speaks of 250, and 90 were paid back."""
    job = await decided(store, await started(store, 250), "edit", arguments=b'{"payment":"pay_8","usd":90}')
    made, (_, line, claim) = await shown(store, job)
    assert line.startswith("✓ refund pay_8 90  re_pay_8  ")
    assert line.endswith("executed, approved by mia, with edited arguments")
    assert made["effects"][0]["edited"]
    assert claim == '! claim "refunded pay_8 with 250": no such effect'


async def test_rejected_effect_shows_person_and_reason(store: Store) -> None:
    job = await decided(store, await started(store, 250), "reject", note="fraud case")
    _, lines = await shown(store, job)
    assert lines == ["1 rejected", '✗ refund pay_8 250.0  rejected by mia: "fraud case"']


async def test_expired_approval_is_no_rejection(store: Store, clock: AheadClock) -> None:
    job = await started(store, 250)
    (entry,) = (await load_receipt(Ledger(store), job)).effects
    assert entry.waits_for is not None
    clock.forward(HOUR_MS / 1000 + 1)
    await store.commit(ExpireReview(entry.waits_for.review_id, job.job_id, job.tenant_id, entry.effect_key))
    _, (head, line) = await shown(store, job)
    assert (head, line) == ("1 expired", "✗ refund pay_8 250.0  not done: the approval expired, which is not a no")


async def test_refused_call_shows_the_rule(store: Store) -> None:
    job = await started(store, 5_000)
    made, (head, line) = await shown(store, job)
    assert head == "1 refused"
    assert line.startswith("✗ refund pay_8 5000.0  refused: limits")
    (entry,) = made["effects"]
    assert (entry["effect_id"], entry["state"]) == (None, "refused")
