"""Reviews over HTTP: pages, decisions, who may decide, and what a key without content sees."""

from typing import Any

import pytest

import overnight
from api_keys import key_for
from overnight.domain import FINISHED, BadInput, public_event
from overnight.domain.globs import Names
from overnight.domain.json_pointer import Pointer
from overnight.domain.tools import ArgumentTest, ToolDefinitions, ToolRule, ToolWhen, ValueTest
from overnight.effects import expire_reviews
from overnight.ledger import Ledger, list_audit
from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider
from overnight.tools import ToolPolicy
from review_cards import MINUTE_US, Card, Clock
from served_jobs import rest, start, working
from serving import Served, routed, serving

DECIDER = ("jobs.read", "content.read", "reviews.decide")


@overnight.job
async def asks_twice() -> int:
    for number in range(2):
        await overnight.chat(f"question {number}")
    return 2


async def post(served: Served, card: Card, headers: dict[str, str], answer: str, **more: Any) -> Any:
    body = {"answer": answer, "digest": card.review.digest, **more}
    return await served.http.post(f"/api/v1/reviews/{card.review.review_id}/decide", json=body, headers=headers)


async def test_decided_once_whoever_clicks(served: Served) -> None:
    card = Card(served.store, tenant="acme")
    mia = await key_for(served, name="mia", scopes=DECIDER)
    tom = await key_for(served, name="tom", scopes=DECIDER)
    listed = (await served.http.get("/api/v1/reviews?state=pending&kind=approval", headers=mia)).json()["reviews"]
    [shown] = listed
    assert (shown["review_id"], shown["state"], shown["answer"]) == (card.review.review_id, "pending", None)
    assert set(shown["answers"]) == {"approve", "edit", "reject", "answer"}
    assert shown["detail"]["arguments"] == {"payment": "pay_7", "usd": 250}
    stale = await served.http.post(
        f"/api/v1/reviews/{card.review.review_id}/decide", json={"answer": "approve", "digest": "0" * 64}, headers=mia
    )
    assert (stale.status_code, "stale" in stale.json()["detail"]) == (409, True)
    first = await post(served, card, mia, "reject", note="fraud case")
    assert (first.status_code, first.json()["state"], first.json()["answer"]) == (200, "decided", "reject")
    again = await post(served, card, tom, "reject")
    assert (again.status_code, again.json()["decided_by"], again.json()["note"]) == (200, "mia", "fraud case")
    other = await post(served, card, tom, "approve")
    assert other.status_code == 409
    assert "already answered 'reject' by mia" in other.json()["detail"]
    assert card.effect().state == "rejected"
    decided = [
        public_event(event)
        for event in await Ledger(served.store).events(card.job_id)
        if event.facts.event == "review_decided"
    ]
    assert [(event["actor"], event["decision"]["answer"]) for event in decided] == [("mia", "reject")]
    assert decided[0]["detail"]["key_id"].startswith("key_")


async def test_an_agent_cannot_approve_itself(served: Served) -> None:
    store = served.store
    asked = await key_for(served, name="asked", scopes=(*DECIDER, "effects"))
    created = await key_for(served, name="created", scopes=DECIDER)
    with pytest.raises(BadInput, match="limited to an agent cannot decide"):
        await key_for(served, name="bound", scopes=DECIDER, agent_id="refunds")
    lacks = await key_for(served, name="lacks", scopes=("jobs.read", "effects"))
    ids = {each["name"]: each["key_id"] for each in await _keys(served)}
    card = Card(store, tenant="acme", key_id=ids["asked"], job_key_id=ids["created"])
    for headers, why in ((asked, "created the job or the request"), (created, "created the job or the request")):
        refused = await post(served, card, headers, "approve")
        assert (refused.status_code, why in refused.json()["detail"]) == (403, True)
    assert (await post(served, card, lacks, "approve")).status_code == 403
    assert (await post(served, card, {}, "approve")).status_code == 401
    assert card.effect().state == "waiting"


async def _keys(served: Served) -> list[dict[str, Any]]:
    admin = await key_for(served, name="admin", scopes=("keys.admin",))
    return (await served.http.get("/api/v1/keys", headers=admin)).json()["keys"]


async def test_without_keys_nobody_decides_over_http(served: Served) -> None:
    card = Card(served.store)
    refused = await post(served, card, {}, "approve")
    assert refused.status_code == 401
    assert card.effect().state == "waiting"


async def test_only_those_that_the_rule_names_decide(served: Served) -> None:
    card = Card(served.store, tenant="acme", deciders=("reviewer", "finance-*"))
    mia = await key_for(served, name="mia", scopes=DECIDER)
    refused = await post(served, card, mia, "approve")
    assert refused.status_code == 403
    assert "decided by reviewer, finance-*" in refused.json()["detail"]
    finance = await key_for(served, name="finance-ann", scopes=DECIDER)
    assert (await post(served, card, finance, "approve")).status_code == 200
    assert card.effect().state == "approved"


async def test_reviews_of_another_tenant_are_not_found(served: Served) -> None:
    card = Card(served.store, tenant="acme", expires_in_us=MINUTE_US)
    mallory = await key_for(served, "evil", name="mallory", scopes=DECIDER)
    path = f"/api/v1/reviews/{card.review.review_id}"
    assert (await served.http.get("/api/v1/reviews", headers=mallory)).json() == {"reviews": []}
    answers = [
        await served.http.get(path, headers=mallory),
        await post(served, card, mallory, "approve"),
        await served.http.post(f"{path}/renew", json={}, headers=mallory),
    ]
    nowhere = await served.http.get(f"/api/v1/reviews/rev_{'0' * 32}", headers=mallory)
    assert [each.status_code for each in [*answers, nowhere]] == [404] * 4
    assert answers[0].json()["detail"].replace(card.review.review_id, "X") == nowhere.json()["detail"].replace(
        f"rev_{'0' * 32}", "X"
    )


async def test_key_without_content_sees_facts_only(served: Served) -> None:
    card = Card(served.store, tenant="acme")
    reader = await key_for(served, name="reader", scopes=("jobs.read",))
    shown = (await served.http.get(f"/api/v1/reviews/{card.review.review_id}", headers=reader)).json()
    assert not {"question", "note"} & shown.keys()
    assert shown["detail"] == {"tool": "refund"}
    assert "250" not in str(shown)
    assert shown["digest"] == card.review.digest


async def test_pages_follow_each_other(served: Served) -> None:
    reader = await key_for(served, name="reader", scopes=("jobs.read",))
    job = Card(served.store, tenant="acme", key="pay_0").job_id
    made = [Card(served.store, tenant="acme", key=f"pay_{number}", job_id=job) for number in range(1, 5)]
    seen: list[str] = []
    while True:
        after = f"&after={seen[-1]}" if seen else ""
        answer = await served.http.get(f"/api/v1/reviews?state=pending&job={job}&limit=2{after}", headers=reader)
        page = [each["review_id"] for each in answer.json()["reviews"]]
        if not page:
            break
        seen += page
    assert len(seen) == len(set(seen)) == 5
    assert {each.review.review_id for each in made} < set(seen)
    for query in ("state=open", "kind=approvals", "after=last", "colour=red", "limit=-1"):
        refused = await served.http.get(f"/api/v1/reviews?{query}", headers=reader)
        assert refused.status_code == 400, query


async def test_expiry_is_no_rejection_and_is_renewed(store_url: str, provider: SpawnedProvider) -> None:
    clock = Clock()
    with open_store(store_url, clock) as store:
        async with serving(store, provider) as served:
            await _expiry(store, served, clock)


async def _expiry(store: Store, served: Served, clock: Clock) -> None:
    card = Card(store, tenant="acme", expires_in_us=MINUTE_US)
    mia = await key_for(served, name="mia", scopes=DECIDER)
    path = f"/api/v1/reviews/{card.review.review_id}"
    clock.now += 2 * MINUTE_US
    late = await post(served, card, mia, "approve")
    assert (late.status_code, "renew" in late.json()["detail"]) == (409, True)
    await expire_reviews(store)
    shown = (await served.http.get(path, headers=mia)).json()
    assert (shown["state"], shown["answer"], shown["decided_by"]) == ("expired", None, None)
    assert card.effect().state == "expired"
    renewed = await served.http.post(f"{path}/renew", json={"expires_in_ms": 600_000}, headers=mia)
    assert (renewed.status_code, renewed.json()["state"]) == (200, "pending")
    assert card.effect().state == "waiting"
    assert (await post(served, card, mia, "approve")).status_code == 200
    assert card.effect().state == "approved"
    again = await served.http.post(f"{path}/renew", json={}, headers=mia)
    assert again.status_code == 409
    names = [event.facts.event for event in await Ledger(store).events(card.job_id)]
    assert [name for name in names if name.startswith("review_")] == [
        "review_requested",
        "review_expired",
        "review_requested",
        "review_decided",
    ]


async def test_edited_arguments_are_kept_exactly(served: Served) -> None:
    card = Card(served.store, tenant="acme")
    mia = await key_for(served, name="mia", scopes=DECIDER)
    missing = await post(served, card, mia, "edit")
    assert (missing.status_code, "arguments" in missing.json()["detail"]) == (400, True)
    body = b'{"answer":"edit","digest":"%b","arguments":{"payment":"pay_7","usd":40.10}}' % card.review.digest.encode()
    path = f"/api/v1/reviews/{card.review.review_id}/decide"
    headers = {**mia, "content-type": "application/json"}
    edited = await served.http.post(path, content=body, headers=headers)
    assert edited.json()["arguments"] == {"payment": "pay_7", "usd": 40.1}
    effect = card.effect()
    assert effect.state == "approved"
    assert effect.done_sha256
    assert effect.arguments_sha256 == "asked"
    other = await post(served, card, mia, "edit", arguments={"payment": "pay_7", "usd": 41})
    assert other.status_code == 409


async def test_answer_by_hand_is_the_result(served: Served) -> None:
    card = Card(served.store, tenant="acme")
    mia = await key_for(served, name="mia", scopes=DECIDER)
    for answer, more in (("accept", {}), ("approve", {"text": "no"}), ("answer", {}), ("done", {})):
        assert (await post(served, card, mia, answer, **more)).status_code == 400, answer
    assert (await post(served, card, mia, "answer", text="use the blue one")).status_code == 200
    effect = card.effect()
    assert (effect.state, effect.result, effect.source) == ("committed", b'"use the blue one"', "confirmed")


def over(usd: int, do: Any, **more: Any) -> ToolRule:
    """A rule about refunds of more than this amount."""
    amount = ArgumentTest(Pointer("/usd"), ValueTest(gt=usd))
    return ToolRule(
        name=f"over-{usd}",
        do=do,
        when=ToolWhen(tool=Names(("refund",)), arguments=(amount,)),
        why="too much",
        **more,
    )


async def test_edited_arguments_meet_the_rules_again(store: Store, provider: SpawnedProvider) -> None:
    rules = [over(1000, "deny"), over(500, "approve", by=("boss",)), over(100, "approve")]
    policy = ToolPolicy(ToolDefinitions(rules=tuple(rules)))
    async with serving(store, provider, tool_policy=lambda: policy) as served:
        card = Card(store, tenant="acme")
        mia = await key_for(served, name="mia", scopes=DECIDER)
        boss = await key_for(served, name="boss", scopes=DECIDER)
        for headers, usd, why in ((mia, 2000, "over-1000"), (boss, 2000, "over-1000"), (mia, 600, "approved by boss")):
            refused = await post(served, card, headers, "edit", arguments={"payment": "pay_7", "usd": usd})
            assert (refused.status_code, why in refused.json()["detail"]) == (403, True), usd
        assert card.effect().state == "waiting"
        edited = await post(served, card, boss, "edit", arguments={"payment": "pay_7", "usd": 600})
        assert (edited.status_code, card.effect().state) == (200, "approved")


async def test_a_role_may_decide(served: Served) -> None:
    card = Card(served.store, tenant="acme", deciders=("admin",))
    mia = await key_for(served, name="mia", scopes=DECIDER)
    assert (await post(served, card, mia, "approve")).status_code == 403
    root = await key_for(served, name="root", scopes=(*DECIDER, "admin"))
    assert (await post(served, card, root, "approve")).status_code == 200


async def test_top_up_needs_its_scope_and_the_operators_limits(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed("budgets: {max_llm_calls_per_job: 1}")) as served, working(served):
        job_id = await start(served, asks_twice)
        await rest(served, job_id, "parked")
        plain = await key_for(served, "default", name="plain", scopes=DECIDER)
        adder = await key_for(served, "default", name="adder", scopes=(*DECIDER, "budgets.write"))
        operator = await key_for(served, "default", name="operator", scopes=(*DECIDER, "instance.admin"))
        listed = await served.http.get("/api/v1/reviews?state=pending&kind=budget", headers=plain)
        [card] = listed.json()["reviews"]
        path = f"/api/v1/reviews/{card['review_id']}/decide"
        body = {"answer": "continue", "digest": card["digest"], "top_up": {"calls": 5}}
        for headers, why in ((plain, "lacks scope budgets.write"), (adder, "requires the scope instance.admin")):
            refused = await served.http.post(path, json=body, headers=headers)
            assert (refused.status_code, why in refused.json()["detail"]) == (403, True)
        added = await served.http.post(path, json=body, headers=operator)
        assert (added.status_code, added.json()["answer"]) == (200, "continue")
        assert (await rest(served, job_id, *FINISHED)).result == b"2"
        [entry] = [each for each in await list_audit(store, "default") if each.action == "budget.topped_up"]
        assert entry.actor == "operator"
