"""Approvals of effects by rules: asked, decided, edited, expired and superseded, in jobs and under `attach`."""

import asyncio
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

import overnight
from job_runs import overnight_decision, rest, story, timeline, working
from overnight.domain import Event
from overnight.domain.json_pointer import Pointer
from overnight.domain.tools import (
    Allowed,
    ArgumentTest,
    Denied,
    NeedsApproval,
    ToolCallFacts,
    ToolContract,
    ToolDefinitions,
    ToolRule,
    ToolWhen,
    ValueTest,
    Verdict,
)
from overnight.effects import EffectFilter, ExpireReview, list_effects
from overnight.jobs import ExternalJob, JobParked, Operations
from overnight.ledger import JobRow, Ledger
from overnight.reviews import ReviewRow, list_reviews
from overnight.store import Store
from overnight.tools import ToolPolicy

paid: list[tuple[str, int]] = []
mood: dict[str, Any] = {}
asked: list[ToolCallFacts] = []
HOUR_MS = 3_600_000


class Rules:
    """The rules in force: from `approve_from` on a person has to approve, from `deny_from` on nobody can."""

    def __init__(self, approve_from: int = 100, deny_from: int = 10_000, digest: str = "r1") -> None:
        self.approve_from, self.deny_from, self.digest = approve_from, deny_from, digest

    def decide(self, facts: ToolCallFacts) -> Verdict:
        asked.append(facts)
        usd = facts.arguments.get("usd", 0)
        if usd >= self.deny_from:
            return Denied("limits", f"{usd} is too much")
        if usd >= self.approve_from:
            return NeedsApproval("large", "it is large", (), HOUR_MS, self.digest)
        return Allowed()


@pytest.fixture
def rules() -> Rules:
    return Rules()


@pytest.fixture(autouse=True)
def clean() -> None:
    paid.clear()
    mood.clear()
    asked.clear()


class Mandate(msgspec.Struct):
    to: str


@overnight.effect
async def refund(payment: str, usd: int, mandate: Mandate | None = None) -> overnight.Done:
    assert mandate is None or isinstance(mandate, Mandate)
    paid.append((payment, usd))
    return overnight.Done(f"re_{len(paid)}", f"{payment}: {usd}")


@overnight.job
async def refunds(payment: str, usd: int) -> str:
    try:
        done = await refund(payment, mood.get("usd", usd), Mandate("ann"))
    except overnight.EffectFailed as failed:
        done = f"{failed.error_class}: {failed}"
    if "asks" in mood:
        await overnight.approval("Is that all?")
    if "fails" in mood:
        raise RuntimeError("later")
    return done


async def parked(store: Store, rules: Rules, usd: int = 250) -> JobRow:
    job = await Operations(store).create(refunds, ("pay_8", usd))
    return await run_on(store, rules, job.job_id)


async def run_on(store: Store, rules: Rules, job_id: str, *states: str) -> JobRow:
    async with working(store, tool_rules=lambda: rules):
        return await rest(store, job_id, *states)


async def events(store: Store, job_id: str, name: str) -> list[Event]:
    return [each.facts for each in await Ledger(store).events(job_id) if each.facts.event == name]


async def card(store: Store, state: str = "open") -> ReviewRow:
    found = await list_reviews(store, state=state)
    assert len(found) == 1, found
    return found[0]


async def decide(store: Store, answer: str, **facts: Any) -> str:
    review = await card(store)
    await Operations(store).decide(review.review_id, overnight_decision(answer, **facts))
    return review.review_id


async def test_no_rules_ask_nobody(store: Store) -> None:
    job = await Operations(store).create(refunds, ("pay_8", 250))
    async with working(store):
        job = await rest(store, job.job_id)
    assert (job.state, paid) == ("succeeded", [("pay_8", 250)])


async def test_small_amount_is_done_at_once(store: Store, rules: Rules) -> None:
    job = await parked(store, rules, 40)
    assert (job.state, job.result, paid) == ("succeeded", b'"pay_8: 40"', [("pay_8", 40)])
    assert (asked[0].tool, asked[0].tenant_id, asked[0].workflow) == ("refund", "default", "refunds")


async def test_denied_effect_fails_and_replays_as_denied(store: Store, rules: Rules) -> None:
    mood["asks"] = True
    job = await parked(store, rules, 20_000)
    assert (job.state, paid) == ("parked", [])
    refused = (await events(store, job.job_id, "tool_refused"))[0]
    assert refused.error is not None
    assert (refused.error.error_class, refused.decision) == (
        "denied",
        {"why": "20000 is too much", "rule": "limits"},
    )
    assert "tool refund: refused: denied: 20000 is too much" in await timeline(store, job.job_id)
    # The code went on from the refusal: a later rule must not change what it was told.
    rules.deny_from = 100_000
    await decide(store, "approve")
    job = await run_on(store, rules, job.job_id)
    assert (job.state, job.result) == ("succeeded", b'"denied: 20000 is too much"')


async def test_retry_asks_a_denied_effect_again(store: Store, rules: Rules) -> None:
    mood["fails"] = True
    job = await parked(store, rules, 20_000)
    assert (job.state, paid) == ("failed", [])
    rules.deny_from, rules.approve_from = 100_000, 100_000
    del mood["fails"]
    await Operations(store).resume(job.job_id, "ann")
    job = await run_on(store, rules, job.job_id)
    assert (job.state, paid) == ("succeeded", [("pay_8", 20_000)])


async def test_approved_effect_is_done_once(store: Store, rules: Rules) -> None:
    job = await parked(store, rules)
    review = await card(store)
    assert (job.state, paid) == ("parked", [])
    assert {name: job.waits[0][name] for name in ("for", "review_id")} == {
        "for": "approval",
        "review_id": review.review_id,
    }
    assert (review.kind, review.rule_digest, review.arguments_sha256 is not None) == ("approval", "r1", True)
    assert msgspec.json.decode(review.detail)["arguments"]["usd"] == 250
    await decide(store, "approve")
    job = await run_on(store, rules, job.job_id)
    assert (job.state, paid) == ("succeeded", [("pay_8", 250)])
    names = await story(store, job.job_id)
    assert [name for name in names if name.startswith(("tool", "review"))] == [
        "review_requested",
        "review_decided",
        "tool_called",
        "tool_succeeded",
    ]


async def test_edited_arguments_are_done_and_replayed(store: Store, rules: Rules) -> None:
    """What was asked and what was done differ: a retry finds the effect by what was asked."""
    mood["fails"] = True
    job = await parked(store, rules)
    await decide(store, "edit", arguments=b'{"payment":"pay_9","usd":60,"mandate":{"to":"bob"}}')
    job = await run_on(store, rules, job.job_id)
    assert (job.state, paid) == ("failed", [("pay_9", 60)])
    called = (await events(store, job.job_id, "tool_called"))[0]
    assert called.detail is not None
    assert called.detail["edited"] is True
    assert "with the arguments that a person edited" in await timeline(store, job.job_id)
    del mood["fails"]
    await Operations(store).resume(job.job_id, "ann")
    job = await run_on(store, rules, job.job_id)
    assert (job.state, job.result) == ("succeeded", b'"pay_9: 60"')
    assert len(paid) == 1
    assert len(await list_reviews(store, state="approved")) == 1


@overnight.step
async def flaky() -> str:
    if "fails" in mood:
        raise RuntimeError("too early")
    return "fine"


@overnight.job
async def two_branches() -> list[str]:
    found = await asyncio.gather(flaky(), refund("pay_8", 250), return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return [str(each) for each in found]


async def test_retry_finds_an_edited_effect_that_was_done_after_the_failure(store: Store, rules: Rules) -> None:
    """Such an answer is valid only for the same request, and the request is what was asked."""
    mood["fails"] = True
    job = await Operations(store).create(two_branches)
    job = await run_on(store, rules, job.job_id)
    await decide(store, "edit", arguments=b'{"payment":"pay_9","usd":60}')
    job = await run_on(store, rules, job.job_id)
    assert (job.state, paid) == ("failed", [("pay_9", 60)])
    del mood["fails"]
    await Operations(store).resume(job.job_id, "ann")
    job = await run_on(store, rules, job.job_id)
    assert (job.state, job.result) == ("succeeded", b'["fine","pay_9: 60"]')
    assert len(paid) == 1
    names = await story(store, job.job_id)
    assert "answers_dropped" in names
    assert names.count("tool_succeeded") == 1, "its recorded answer is valid, and is not looked up again"


async def test_edited_arguments_that_do_not_fit_are_not_done(store: Store, rules: Rules) -> None:
    job = await parked(store, rules)
    await decide(store, "edit", arguments=b'{"payment":"pay_9","amount":60}')
    job = await run_on(store, rules, job.job_id)
    assert paid == []
    assert (job.result or b"").startswith(b'"invalid_arguments: ')


async def test_rejection_reaches_the_code_with_its_reason(store: Store, rules: Rules) -> None:
    job = await parked(store, rules)
    await decide(store, "reject", note="fraud case")
    job = await run_on(store, rules, job.job_id)
    assert (job.state, job.result, paid) == ("succeeded", b'"rejected: fraud case"', [])


async def test_answer_by_hand_is_the_result(store: Store, rules: Rules) -> None:
    job = await parked(store, rules)
    await decide(store, "answer", text="done at the counter")
    job = await run_on(store, rules, job.job_id)
    assert (job.state, job.result, paid) == ("succeeded", b'"done at the counter"', [])


async def expired(store: Store, review: ReviewRow) -> None:
    """The clock passes the end of the review."""

    class Later(msgspec.Struct, frozen=True):
        command: ExpireReview

        def locks(self) -> Any:
            return self.command.locks()

        def decide(self, unit: Any) -> bool:
            now, unit.now = unit.now, (review.expires_at or 0) + 1
            try:
                return self.command.decide(unit)
            finally:
                unit.now = now

    command = ExpireReview(review.review_id, review.job_id, review.tenant_id, review.effect_key)
    assert await store.commit(Later(command))


async def test_expiry_is_no_rejection(store: Store, rules: Rules) -> None:
    job = await parked(store, rules)
    review = await card(store)
    await expired(store, review)
    async with working(store, tool_rules=lambda: rules):
        await asyncio.sleep(0.1)
        job = await rest(store, job.job_id)
    assert (job.state, paid) == ("parked", [])
    await Operations(store).renew(review.review_id, "ann")
    await decide(store, "approve")
    job = await run_on(store, rules, job.job_id)
    assert (job.state, paid) == ("succeeded", [("pay_8", 250)])


async def test_resumed_job_asks_an_expired_question_again(store: Store, rules: Rules) -> None:
    job = await parked(store, rules)
    first = await card(store)
    await expired(store, first)
    await Operations(store).resume(job.job_id, "ann")
    job = await run_on(store, rules, job.job_id)
    second = await card(store)
    assert second.review_id != first.review_id
    assert (await card(store, "superseded")).review_id == first.review_id
    await decide(store, "approve")
    job = await run_on(store, rules, job.job_id)
    assert (job.state, paid) == ("succeeded", [("pay_8", 250)])


async def test_stricter_rule_supersedes_an_approval(store: Store, rules: Rules) -> None:
    """Somebody says yes, and the rule changes before the effect begins."""
    job = await parked(store, rules)
    first = await decide(store, "approve")
    rules.digest = "r2"
    job = await run_on(store, rules, job.job_id)
    assert (job.state, paid) == ("parked", [])
    assert (await card(store, "superseded")).review_id == first
    assert (await card(store)).rule_digest == "r2"
    await decide(store, "approve")
    job = await run_on(store, rules, job.job_id)
    assert (job.state, paid) == ("succeeded", [("pay_8", 250)])
    assert "review_superseded" in await story(store, job.job_id)


async def test_denial_supersedes_an_approval(store: Store, rules: Rules) -> None:
    job = await parked(store, rules)
    await decide(store, "approve")
    rules.deny_from = 200
    job = await run_on(store, rules, job.job_id)
    assert (job.state, job.result, paid) == ("succeeded", b'"denied: 250 is too much"', [])


async def test_edited_arguments_pass_the_rules_again(store: Store, rules: Rules) -> None:
    job = await parked(store, rules)
    await decide(store, "edit", arguments=b'{"payment":"pay_8","usd":50000}')
    job = await run_on(store, rules, job.job_id)
    assert (job.state, job.result, paid) == ("succeeded", b'"denied: 50000 is too much"', [])


def two_rules(*more: ToolRule) -> ToolPolicy:
    """Two rules match 250, one of them 150."""
    large, very_large = (
        ToolRule(name=name, do="approve", when=ToolWhen(arguments=(ArgumentTest(Pointer("/usd"), ValueTest(gt=usd)),)))
        for name, usd in (("large", 100), ("very large", 200))
    )
    return ToolPolicy(ToolDefinitions(rules=(large, very_large, *more)))


async def test_edit_is_approved_by_the_rules_that_match_it(store: Store) -> None:
    """Fewer rules match the edited arguments than those that were asked: the yes is for these."""
    policy = two_rules()
    job = await Operations(store).create(refunds, ("pay_8", 250))
    async with working(store, tool_rules=lambda: policy):
        job = await rest(store, job.job_id)
        review = await card(store)
        answer = overnight_decision("edit", arguments=b'{"payment":"pay_8","usd":150}')
        await Operations(store, lambda: policy).decide(review.review_id, answer)
        job = await rest(store, job.job_id, "succeeded")
    assert paid == [("pay_8", 150)]
    assert len(await list_reviews(store, state="")) == 1


async def test_rule_added_after_an_edit_asks_again(store: Store) -> None:
    policy = two_rules()
    job = await Operations(store).create(refunds, ("pay_8", 250))
    async with working(store, tool_rules=lambda: policy):
        await rest(store, job.job_id)
    answer = overnight_decision("edit", arguments=b'{"payment":"pay_8","usd":150}')
    await Operations(store, lambda: policy).decide((await card(store)).review_id, answer)
    policy = two_rules(ToolRule(name="all", do="approve", when=ToolWhen()))
    async with working(store, tool_rules=lambda: policy):
        await rest(store, job.job_id, "parked")
        await card(store)
    assert paid == []


async def test_lifted_rule_lets_the_approved_effect_go(store: Store, rules: Rules) -> None:
    job = await parked(store, rules)
    await decide(store, "edit", arguments=b'{"payment":"pay_8","usd":60}')
    rules.approve_from = 1_000
    job = await run_on(store, rules, job.job_id)
    assert (job.state, paid) == ("succeeded", [("pay_8", 60)])


async def test_other_arguments_supersede_the_question(store: Store, rules: Rules) -> None:
    """The code runs again while it waits, and asks for something else."""
    job = await parked(store, rules)
    first = await card(store)
    mood["usd"] = 300
    await Operations(store).resume(job.job_id, "ann")
    job = await run_on(store, rules, job.job_id)
    second = await card(store)
    assert (await card(store, "superseded")).review_id == first.review_id
    assert msgspec.json.decode(second.detail)["arguments"]["usd"] == 300
    await decide(store, "approve")
    job = await run_on(store, rules, job.job_id)
    assert (job.state, paid) == ("succeeded", [("pay_8", 300)])


async def test_committed_effect_is_never_asked_for_again(store: Store, rules: Rules) -> None:
    mood["fails"] = True
    job = await parked(store, rules, 40)
    assert (job.state, paid) == ("failed", [("pay_8", 40)])
    rules.approve_from = 1
    del mood["fails"]
    await Operations(store).resume(job.job_id, "ann")
    job = await run_on(store, rules, job.job_id)
    assert (job.state, job.result, len(paid)) == ("succeeded", b'"pay_8: 40"', 1)
    assert not await list_reviews(store, state="")


@overnight.job
async def one_of_two() -> list[str]:
    async def second() -> str:
        while "go" not in mood:
            await short()
        return "second"

    return list(await asyncio.gather(refund("pay_1", 250), second()))


@overnight.step
async def short() -> None:
    await asyncio.sleep(0.02)


async def test_decision_reaches_a_running_job(store: Store, rules: Rules) -> None:
    job = await Operations(store).create(one_of_two)
    async with working(store, tool_rules=lambda: rules):
        async with asyncio.timeout(10):
            while not await list_reviews(store):
                await asyncio.sleep(0.01)
        await decide(store, "approve")
        async with asyncio.timeout(10):
            while not paid:
                await asyncio.sleep(0.01)
        mood["go"] = True
        job = await rest(store, job.job_id)
    assert job.result == b'["pay_1: 250","second"]'


@overnight.job
async def impatient() -> str:
    try:
        async with overnight.timeout(0.2):
            await refund("pay_1", 250)
    except TimeoutError:
        await overnight.approval("Go on without it?")
        return "gave up"
    return "paid"


async def test_late_approval_of_an_abandoned_effect_does_nothing(store: Store, rules: Rules) -> None:
    """Its branch was cancelled while it waited: the replay must not execute it, although a person said yes."""
    job = await Operations(store).create(impatient)
    job = await run_on(store, rules, job.job_id)
    assert {wait["for"] for wait in job.waits} == {"approval"}
    reviews = {review.effect_key is not None: review.review_id for review in await list_reviews(store)}
    await Operations(store).decide(reviews[True], overnight_decision("approve"))
    job = await run_on(store, rules, job.job_id, "parked")
    await Operations(store).decide(reviews[False], overnight_decision("approve"))
    job = await run_on(store, rules, job.job_id)
    assert (job.state, job.result, paid) == ("succeeded", b'"gave up"', [])


# ── external programs ────────────────────────────────────────────────────────────────────────────────────────────────


async def program(store: Store, rules: Rules, usd: int = 250) -> Any:
    """One start of an external program that does the effect."""

    def start() -> Any:
        job = ExternalJob(store, "nightly", "default", "nightly", "", tool_rules=lambda: rules)
        with job:
            return refund.run("pay_8", usd)

    return await asyncio.to_thread(start)


async def test_external_program_parks_and_continues(store: Store, rules: Rules) -> None:
    with pytest.raises(JobParked, match=re.escape("waits for approval")):
        await program(store, rules)
    review = await card(store)
    with pytest.raises(JobParked):
        await program(store, rules)
    assert (await card(store)).review_id == review.review_id, "a restart asks no second question"
    await decide(store, "edit", arguments=b'{"payment":"pay_9","usd":60}')
    assert [await program(store, rules) for _ in range(2)] == ["pay_9: 60"] * 2
    assert paid == [("pay_9", 60)]


async def test_external_program_hears_a_rejection_at_every_start(store: Store, rules: Rules) -> None:
    with pytest.raises(JobParked):
        await program(store, rules)
    await decide(store, "reject", note="fraud case")
    for _ in range(2):
        with pytest.raises(overnight.EffectFailed, match="fraud case"):
            await program(store, rules)
    assert paid == []


async def test_external_program_asks_an_expired_question_again(store: Store, rules: Rules) -> None:
    with pytest.raises(JobParked):
        await program(store, rules)
    await expired(store, await card(store))
    with pytest.raises(JobParked):
        await program(store, rules)
    await decide(store, "approve")
    assert await program(store, rules) == "pay_8: 250"


async def test_two_equal_effects_of_a_killed_program_are_both_replayed(store: Store) -> None:
    """The program dies after the second one; started again, it receives both results, and a third call is a third effect."""

    def start(calls: int) -> list[str]:
        with ExternalJob(store, "nightly", "default", "nightly", ""):
            found = [refund.run("pay_8", 40) for _ in range(calls)]
            if calls == 2:
                raise KeyboardInterrupt  # as if killed: nothing of it reports an end
            return found

    with pytest.raises(KeyboardInterrupt):
        await asyncio.to_thread(start, 2)
    assert await asyncio.to_thread(start, 3) == ["pay_8: 40"] * 3
    assert paid == [("pay_8", 40)] * 3
    job = (await Ledger(store).jobs())[0]
    assert (await story(store, job.job_id)).count("tool_called") == 3


async def test_external_program_is_denied(store: Store, rules: Rules) -> None:
    with pytest.raises(overnight.EffectFailed) as failed:
        await program(store, rules, 20_000)
    assert failed.value.error_class == "denied"


# ── killed in between ────────────────────────────────────────────────────────────────────────────────────────────────

PROGRAM = """
    import asyncio, sys
    from pathlib import Path
    import overnight
    from overnight.jobs import NoModel, Worker
    from overnight.domain.tools import NeedsApproval
    from overnight.store import open_store

    done = Path(__file__).with_name("done")

    class Rules:
        def decide(self, facts):
            return NeedsApproval("large", "it is large", (), 0, "r1")

    @overnight.effect
    async def refund(payment: str, usd: int, idempotency_key: str) -> str:
        with done.open("a") as file:
            file.write(f"{payment} {usd}\\n")
        return f"{payment} {usd}"

    @refund.status_check
    async def found(payment: str, usd: int, idempotency_key: str):
        line = f"{payment} {usd}"
        known = done.exists() and line in done.read_text().splitlines()
        return overnight.Done(None, line) if known else overnight.NOT_DONE

    @overnight.job
    async def refunds() -> str:
        return await refund("pay_8", 250)

    async def main():
        with open_store(sys.argv[1]) as store:
            worker = Worker(store, NoModel(), tool_rules=Rules)
            await worker.start()
            print("ready", flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
            await worker.stop()

    if __name__ == "__main__":
        asyncio.run(main())
"""


@pytest.mark.parametrize("point", ["effect_waits", "effect_claimed", "effect_called", "effect_committed"])
async def test_killed_worker_does_only_the_edited_arguments(
    store: Store, store_url: str, tmp_path: Path, point: str
) -> None:
    """`kill -9` between asking, claim, call and commit: whoever goes on calls and checks with what the person wrote."""
    import subprocess
    import sys
    import textwrap

    from overnight.domain import FINISHED
    from overnight.jobs import load_job

    path = tmp_path / "refunds.py"
    path.write_text(textwrap.dedent(PROGRAM))

    async def worker(**environment: str) -> "subprocess.Popen[str]":
        import os

        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [sys.executable, str(path), store_url], env=os.environ | environment, stdin=pipe, stdout=pipe, text=True
        )
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
        return process

    job = await Operations(store).create(load_job(f"{path}:refunds"))
    armed = await worker(OVERNIGHT_CRASH_AT=point)
    other = None
    try:
        if point == "effect_waits":
            await asyncio.to_thread(armed.wait, 20)
            other = await worker()
        await rest(store, job.job_id, "parked")
        await decide(store, "edit", arguments=b'{"payment":"pay_9","usd":60}')
        if other is None:
            await asyncio.to_thread(armed.wait, 20)
            other = await worker()
        job = await rest(store, job.job_id, *FINISHED)
    finally:
        armed.kill()
        armed.communicate()
        if other is not None:
            await asyncio.to_thread(other.communicate, "", 20)
    assert (job.state, job.result) == ("succeeded", b'"pay_9 60"')
    assert (tmp_path / "done").read_text() == "pay_9 60\n"
    assert len(await list_reviews(store, state="")) == 1


async def test_arguments_that_do_not_fit_the_contract_are_refused(store: Store) -> None:
    contract = ToolContract(
        name="refund",
        version=3,
        tool_class="destructive",
        input={"properties": {"usd": {"type": "number", "maximum": 50}}},
    )
    policy = ToolPolicy(ToolDefinitions(contracts={"refund": {3: contract}}))
    paid.clear()
    async with working(store, tool_rules=lambda: policy):
        too_much = await Operations(store).create(refunds, ("pay_8", 60))
        fits = await Operations(store).create(refunds, ("pay_9", 40))
        refused, done = await rest(store, too_much.job_id), await rest(store, fits.job_id)
    assert done.state == "succeeded"
    assert "arguments_invalid" in str(refused.error or refused.result)
    assert "tool_refused" in await story(store, refused.job_id)
    assert paid == [("pay_9", 40)]
    (row,) = await list_effects(store, EffectFilter(tenant_id="default", job_id=done.job_id))
    assert (row.contract, row.tool_class) == ("refund@3", "destructive")
