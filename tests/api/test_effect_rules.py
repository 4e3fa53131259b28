"""Effects over HTTP under rules, approvals, contracts and budgets."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from api_keys import key_for
from http_effects import AheadClock, claim, effect, report
from job_runs import overnight_decision, timeline
from overnight.domain.json_pointer import Pointer
from overnight.domain.tools import Allowed, Denied, NeedsApproval, ToolCallFacts, ToolContract, Verdict
from overnight.effects import expire_claims, expire_reviews
from overnight.jobs import Operations
from overnight.reviews import list_reviews
from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider
from serving import Served, gateway_process, routed, serving

JOB = {"x-job-id": "nightly"}
HOUR_MS = 3_600_000
LARGE, TOO_LARGE = {"payment": "pay_8", "usd": 250}, {"payment": "pay_8", "usd": 10_000}


class Tools:
    """The contracts and rules in force: from 100 a person approves, from 1,000 it is denied."""

    def __init__(self) -> None:
        self.approve_from, self.digest, self.needs_first_use = 100, "r1", True
        self.contracts: dict[str, ToolContract] = {}
        self.asked: list[ToolCallFacts] = []

    def contract(self, tool: str, version: int | None = None) -> ToolContract | None:
        found = self.contracts.get(tool)
        return found if found is None or version in (None, found.version) else None

    def decide(self, facts: ToolCallFacts) -> Verdict:
        self.asked.append(facts)
        usd = facts.arguments.get("usd", 0)
        if usd >= 1_000:
            return Denied("limits", f"{usd} is too much")
        if usd >= self.approve_from:
            return NeedsApproval("large", "it is large", (), HOUR_MS, self.digest)
        return Allowed()


@pytest.fixture
def tools() -> Tools:
    return Tools()


@pytest.fixture
def clock() -> AheadClock:
    return AheadClock()


@pytest.fixture
def store(store_url: str, clock: AheadClock) -> Iterator[Store]:
    with open_store(store_url, clock) as opened:
        yield opened


@pytest.fixture
async def served(store: Store, provider: SpawnedProvider, tools: Tools) -> AsyncIterator[Served]:
    async with serving(store, provider) as running:
        running.gateway.effects.tools = lambda: tools
        yield running


async def cards(served: Served) -> list[tuple[str, str]]:
    return [(each.kind, each.state) for each in await list_reviews(served.store, state="")]


async def decide(served: Served, answer: str, **facts: Any) -> None:
    (card,) = await list_reviews(served.store)
    await Operations(served.store).decide(card.review_id, overnight_decision(answer, **facts))


# ── approvals ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_approved_effect_runs_at_the_next_claim(served: Served) -> None:
    waits = await claim(served.http, arguments=LARGE, headers=JOB)
    assert waits.status_code == 202, waits.text
    told = waits.json()
    assert (told["verdict"], "claim_id" in told, told["expires_at"] is None) == ("waiting", False, False)
    assert waits.headers["retry-after"] == "5"
    assert (await claim(served.http, arguments=LARGE, headers=JOB)).json() == told
    (card,) = await list_reviews(served.store)
    assert (card.review_id, card.kind) == (told["review_id"], "approval")
    await decide(served, "approve")
    assert (await effect(served.http, waits))["state"] == "approved"
    run = await claim(served.http, arguments=LARGE, headers=JOB)
    assert (run.status_code, run.json()["effect_id"]) == (201, told["effect_id"])
    await report(served.http, run, "commit", provider_id="re_1")
    assert (await claim(served.http, arguments=LARGE, headers=JOB)).status_code == 200
    assert await cards(served) == [("approval", "approved")]


async def test_edited_arguments_are_the_ones_to_use(served: Served) -> None:
    await claim(served.http, arguments=LARGE, headers=JOB)
    await decide(served, "edit", arguments=msgspec.json.encode({"payment": "pay_8", "usd": 120}))
    run = await claim(served.http, arguments=LARGE, headers=JOB, holder="p7")
    assert (run.status_code, run.json()["arguments"]) == (201, {"payment": "pay_8", "usd": 120}), run.text
    again = await claim(served.http, arguments=LARGE, headers=JOB, holder="p7")
    assert again.json()["arguments"] == {"payment": "pay_8", "usd": 120}
    assert (await effect(served.http, run))["arguments"] == {"payment": "pay_8", "usd": 120}


async def test_rejected_effect_tells_the_reason(served: Served) -> None:
    await claim(served.http, arguments=LARGE, headers=JOB)
    await decide(served, "reject", note="fraud case")
    refused = await claim(served.http, arguments=LARGE, headers=JOB)
    assert (refused.status_code, refused.json()["code"]) == (409, "rejected")
    assert "fraud case" in refused.json()["detail"]


async def test_answer_of_a_person_is_the_result(served: Served) -> None:
    await claim(served.http, arguments=LARGE, headers=JOB)
    await decide(served, "answer", text="paid in cash")
    done = await claim(served.http, arguments=LARGE, headers=JOB)
    assert (done.status_code, done.json()["result"]) == (200, "paid in cash")


async def test_expiry_is_no_rejection(served: Served, clock: AheadClock) -> None:
    waits = await claim(served.http, arguments=LARGE, headers=JOB)
    clock.forward(3601)
    await expire_reviews(served.store)
    refused = await claim(served.http, arguments=LARGE, headers=JOB)
    assert (refused.status_code, refused.json()["code"]) == (409, "expired")
    assert refused.json()["review_id"] == waits.json()["review_id"]
    again = await claim(served.http, arguments=LARGE, headers={**JOB, "x-job-attempt": "2"})
    assert (again.status_code, again.json()["verdict"]) == (202, "waiting")


async def test_other_arguments_ask_again(served: Served) -> None:
    first = await claim(served.http, arguments=LARGE, headers=JOB)
    second = await claim(served.http, arguments={**LARGE, "usd": 300}, headers=JOB)
    assert (second.status_code, second.json()["effect_id"]) == (202, first.json()["effect_id"])
    assert second.json()["review_id"] != first.json()["review_id"]
    assert sorted(await cards(served)) == [("approval", "open"), ("approval", "superseded")]


async def test_changed_rule_supersedes_an_approval(served: Served, tools: Tools) -> None:
    await claim(served.http, arguments=LARGE, headers=JOB)
    await decide(served, "approve")
    tools.digest = "r2"
    asked = await claim(served.http, arguments=LARGE, headers=JOB)
    assert asked.status_code == 202, asked.text
    assert sorted(await cards(served)) == [("approval", "open"), ("approval", "superseded")]


@pytest.mark.parametrize("round_", range(3))
async def test_yes_no_expiry_and_claim_at_once_are_one_decision(served: Served, clock: AheadClock, round_: int) -> None:
    await claim(served.http, arguments=LARGE, headers=JOB)
    (card,) = await list_reviews(served.store)
    operations, decisions = Operations(served.store), [overnight_decision(each) for each in ("approve", "reject")]
    acts: list[Coroutine[Any, Any, Any]] = [operations.decide(card.review_id, each) for each in decisions]
    acts += [expire_reviews(served.store), claim(served.http, arguments=LARGE, headers=JOB)]
    clock.forward(3600 if round_ else 3599)
    acts = acts[round_:] + acts[:round_]
    await asyncio.gather(*acts, return_exceptions=True)
    (review,) = await list_reviews(served.store, state="")
    names = await served.story("nightly")
    ends = names.count("review_decided"), names.count("review_expired")
    # A late no is kept after the expiry; a late yes is refused.
    assert ends in {"approved": {(1, 0)}, "rejected": {(1, 0), (1, 1)}, "expired": {(0, 1)}}[review.state], names
    now = await claim(served.http, arguments=LARGE, headers=JOB, holder="p9")
    wanted = {"approved": {201, 409}, "rejected": {409}, "expired": {409}}[review.state]
    assert now.status_code in wanted, (review.state, now.text)
    assert names.count("tool_called") <= (review.state == "approved")


async def test_approval_waits_in_a_job_of_its_own(served: Served) -> None:
    waits = await claim(served.http, arguments=LARGE)
    await decide(served, "approve")
    run = await claim(served.http, arguments=LARGE)
    assert (run.status_code, run.json()["job_id"]) == (201, waits.json()["job_id"])


# ── denials and budgets ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_denied_effect_leaves_an_event(served: Served) -> None:
    refused = await claim(served.http, arguments=TOO_LARGE, headers=JOB)
    assert (refused.status_code, refused.json()["code"]) == (403, "denied")
    assert "10000 is too much" in refused.json()["detail"]
    assert await served.story("nightly") == ["created", "tool_refused"]
    assert (await claim(served.http, headers=JOB)).status_code == 201


async def test_budget_of_tool_calls_stops_claims(store: Store, provider: SpawnedProvider) -> None:
    limits = "budgets: {limits: [{scope: tenant, max_tool_calls: 2}]}"
    async with serving(store, provider, routed(limits)) as served:
        answers = [await claim(served.http, f"k{n}", headers=JOB) for n in range(3)]
        assert [each.status_code for each in answers] == [201, 201, 402]
        assert answers[-1].json()["code"] == "budget"
        # Neither an extension nor a replay counts.
        assert (await report(served.http, answers[0], "commit")).status_code == 200
        assert (await claim(served.http, "k0", headers=JOB)).status_code == 200


async def test_facts_of_rules(served: Served, tools: Tools) -> None:
    key = await key_for(served, scopes=("effects",), agent_id="ann", workflow="refunds")
    for n, job in enumerate(("a", "a", "b")):
        await claim(served.http, f"k{n}", headers={**key, "x-job-id": job})
    facts = tools.asked[0]
    assert (facts.tool, facts.tool_class, facts.tenant_id, facts.agent_id) == ("refund", "write", "acme", "ann")
    assert (facts.workflow, facts.arguments) == ("refunds", {"payment": "pay_7", "usd": 40})
    assert [each.first_use for each in tools.asked] == [True, False, False]


# ── contracts ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_contract_gives_class_version_and_lease(served: Served, tools: Tools) -> None:
    tools.contracts["refund"] = ToolContract(name="refund", version=3, tool_class="destructive", timeout_ms=5_000)
    shown = await effect(served.http, await claim(served.http))
    assert (shown["class"], shown["contract"]) == ("destructive", "refund@3")
    assert tools.asked[-1].tool_class == "destructive"
    other = await claim(served.http)
    assert int(other.headers["retry-after"]) <= 5


async def test_arguments_fit_the_schema_of_the_contract(served: Served, tools: Tools) -> None:
    schema = {"type": "object", "required": ["payment"], "properties": {"usd": {"type": "number"}}}
    tools.contracts["refund"] = ToolContract(name="refund", version=1, input=schema)
    refused = await claim(served.http, headers=JOB, arguments={"usd": "secret"})
    assert (refused.status_code, refused.json()["code"]) == (400, "arguments_invalid")
    assert "payment" in refused.json()["detail"]
    assert "secret" not in refused.text
    assert await served.story("nightly") == ["created", "tool_refused"]
    assert (await claim(served.http, headers=JOB)).status_code == 201


async def test_key_of_the_contract_replaces_that_of_the_caller(served: Served, tools: Tools) -> None:
    """SDKs make a fresh key per request: the arguments name the effect."""
    tools.contracts["refund"] = ToolContract(name="refund", version=1, key="{payment}:{usd}", key_scope="tenant")
    first = await claim(served.http, "fresh-1")
    await report(served.http, first, "commit", provider_id="re_1")
    assert (await claim(served.http, "fresh-2")).json()["provider_id"] == "re_1"
    other = await claim(served.http, "fresh-1", arguments={"payment": "pay_9", "usd": 1})
    assert other.status_code == 201
    assert (await effect(served.http, other))["key"] == "pay_9:1"


async def test_gateway_asks_the_brain(store_url: str, provider: SpawnedProvider, tmp_path: Path) -> None:
    brain = tmp_path / "brain"
    (brain / "tools").mkdir(parents=True)
    (brain / "policies").mkdir()
    (brain / "tools" / "refund.yaml").write_text("name: refund\nversion: 2\nclass: destructive\n")
    rules = (
        "rules:\n  - {when: {tool: refund, arguments: {/usd: {gt: 100}}}, do: deny, why: too much}\n"
        "  - {when: {class: [destructive], arguments: {/usd: {gt: 50}}}, do: approve}\n"
    )
    (brain / "policies" / "money.yaml").write_text(rules)
    with gateway_process(store_url, provider, tmp_path) as process:
        async with httpx2.AsyncClient(base_url=process.url, timeout=30) as http:
            assert (await claim(http, "a", arguments={"usd": 250})).json()["code"] == "denied"
            assert (await claim(http, "b", arguments={"usd": 60})).status_code == 202
            shown = await effect(http, await claim(http, "c", arguments={"usd": 40}))
            assert (shown["contract"], shown["class"]) == ("refund@2", "destructive")


async def test_key_of_a_tenant_holds_in_all_jobs(served: Served, tools: Tools) -> None:
    tools.contracts["refund"] = ToolContract(name="refund", version=1, key_scope="tenant")
    first = await claim(served.http, headers={"x-job-id": "a"})
    assert (await claim(served.http, headers={"x-job-id": "b"})).status_code == 409
    await report(served.http, first, "commit", provider_id="re_1")
    replayed = await claim(served.http, headers={"x-job-id": "b"})
    assert (replayed.status_code, replayed.json()["provider_id"]) == (200, "re_1")
    (replay,) = [each for each in await served.events("b") if each.facts.event == "tool_succeeded"]
    assert replay.facts.detail["replayed"] is True


async def test_unknown_effect_with_a_safe_key_is_repeated(served: Served, tools: Tools, clock: AheadClock) -> None:
    """While its vendor still knows the key; then a person decides."""
    tools.contracts["refund"] = ToolContract(name="refund", version=1, repeat_safe=True, key_lifetime_ms=HOUR_MS)
    first = await claim(served.http, headers=JOB)
    clock.forward(61)
    await expire_claims(served.store)
    again = await claim(served.http, headers=JOB)
    assert (again.status_code, again.json()["vendor_key"]) == (201, first.json()["vendor_key"])
    assert await cards(served) == [("quarantine", "superseded")]
    clock.forward(3600)
    await expire_claims(served.store)
    refused = await claim(served.http, headers=JOB)
    assert (refused.status_code, refused.json()["code"]) == (409, "unknown")
    assert await cards(served) == [("quarantine", "superseded"), ("quarantine", "open")]


# ── results ──────────────────────────────────────────────────────────────────────────────────────────────────────────

STATUS = {"type": "object", "required": ["status"]}


def with_output(tools: Tools, **fields: Any) -> None:
    tools.contracts["refund"] = ToolContract(name="refund", version=1, output=STATUS, **fields)


async def test_drifted_result_is_held_until_a_person_accepts(served: Served, tools: Tools) -> None:
    with_output(tools)
    claimed = await claim(served.http, headers=JOB)
    done = await report(served.http, claimed, "commit", provider_id="re_1", result={"id": "re_1"})
    assert (done.status_code, done.json()["state"], done.json()["drift"]["action"]) == (200, "committed", "quarantine")
    refused = await claim(served.http, headers=JOB)
    assert (refused.status_code, refused.json()["code"]) == (409, "drift")
    assert await cards(served) == [("drift", "open")]
    assert (await served.story("nightly"))[-3:] == ["tool_succeeded", "tool_drifted", "review_requested"]
    job_id = claimed.json()["job_id"]
    assert any("does not fit, and is held" in line for line in await timeline(served.store, job_id))
    await decide(served, "accept")
    accepted = await claim(served.http, headers=JOB)
    assert (accepted.status_code, accepted.json()["result"]) == (200, {"id": "re_1"})


async def test_rejected_drift_stays_done(served: Served, tools: Tools) -> None:
    with_output(tools)
    claimed = await claim(served.http, headers=JOB)
    await report(served.http, claimed, "commit", provider_id="re_1", result=None)
    await decide(served, "reject")
    refused = await claim(served.http, headers=JOB)
    assert (refused.status_code, refused.json()["code"]) == (409, "drift")
    assert (await effect(served.http, claimed))["state"] == "committed"


async def test_drift_of_a_read_may_be_passed_or_read_again(served: Served, tools: Tools) -> None:
    with_output(tools, drift="pass")
    claimed = await claim(served.http, "a", headers=JOB)
    await report(served.http, claimed, "commit", result=1)
    assert (await claim(served.http, "a", headers=JOB)).json()["result"] == 1
    with_output(tools, drift="retry", tool_class="read")
    claimed = await claim(served.http, "b", headers=JOB)
    assert (await report(served.http, claimed, "commit", result=1)).json()["state"] == "failed"
    assert (await claim(served.http, "b", headers=JOB)).status_code == 201


async def test_kept_parts_of_a_result(served: Served, tools: Tools) -> None:
    with_output(tools, keep=(Pointer("/status"),))
    claimed = await claim(served.http)
    done = await report(served.http, claimed, "commit", result={"status": "ok", "card": "4242"})
    assert "drift" not in done.json()
    assert (await claim(served.http)).json()["result"] == {"status": "ok"}
