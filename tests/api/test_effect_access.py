"""Who may claim an effect, report it and see it: scopes, tools, tenants, agents and the secret of a claim."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from api_keys import key_for
from http_effects import PATH, claim, effect, report
from overnight.reviews import list_reviews
from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import Served, serving

EFFECTS = ("effects",)


@pytest.fixture
async def served(store: Store, provider: SpawnedProvider) -> AsyncIterator[Served]:
    async with serving(store, provider, hosts=None) as running:
        yield running


async def forged(served: Served, effect_id: str, token: str, headers: dict[str, str], verb: str = "commit") -> Any:
    return await served.http.post(f"{PATH}/{effect_id}/{verb}", json={"claim_id": token}, headers=headers)


async def test_without_a_key_or_its_scope_nothing_is_claimed(served: Served) -> None:
    refused = await claim(served.http)
    assert (refused.status_code, refused.json()["code"]) == (401, "invalid_api_key")
    refused = await claim(served.http, headers=await key_for(served, scopes=("calls",)))
    assert (refused.status_code, refused.json()["code"]) == (403, "scope")
    assert refused.headers["x-should-retry"] == "false"


async def test_tool_outside_of_the_key_is_denied(served: Served) -> None:
    key = await key_for(served, scopes=EFFECTS, tools=("refund", "mail_*"))
    assert (await claim(served.http, headers=key)).status_code == 201
    assert (await claim(served.http, "k2", headers=key, tool="mail_send")).status_code == 201
    refused = await claim(served.http, "k3", headers=key, tool="delete_all")
    assert (refused.status_code, refused.json()["code"]) == (403, "denied")


@pytest.mark.parametrize("verb", ["commit", "fail", "unknown"])
async def test_forged_claim_tokens_are_not_found(served: Served, verb: str) -> None:
    key = await key_for(served, scopes=EFFECTS)
    claimed = await claim(served.http, headers=key)
    other = await claim(served.http, "k2", headers=key)
    effect_id, token = claimed.json()["effect_id"], claimed.json()["claim_id"]
    for guess in ("", "clm_", "clm_" + "0" * 64, token[:-1], token + "0", token.upper(), other.json()["claim_id"]):
        answer = await forged(served, effect_id, guess, key, verb)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), guess
    assert (await effect(served.http, claimed, headers=key))["state"] == "claimed"
    assert await list_reviews(served.store) == []


async def test_another_tenant_finds_nothing(served: Served) -> None:
    mine, theirs = await key_for(served, scopes=EFFECTS), await key_for(served, "other", scopes=EFFECTS)
    claimed = (await claim(served.http, headers=mine)).json()
    for headers in (theirs,):
        answers = [
            await served.http.get(f"{PATH}/{claimed['effect_id']}", headers=headers),
            await forged(served, claimed["effect_id"], claimed["claim_id"], headers),
            await served.http.get(PATH, params={"job": claimed["job_id"]}, headers=headers),
        ]
        assert [each.status_code for each in answers] == [404, 404, 404]
        assert (await served.http.get(PATH, headers=headers)).json()["effects"] == []
    # The same names are another effect there.
    again = (await claim(served.http, headers=theirs)).json()
    assert again["verdict"] == "run"
    assert again["effect_id"] != claimed["effect_id"]


async def test_key_of_another_agent_finds_nothing(served: Served) -> None:
    """Also after the gateway knows the effect, and with the secret of its claim."""
    ann, bob = [await key_for(served, scopes=EFFECTS, agent_id=name) for name in ("ann", "bob")]
    job = {"x-job-id": "nightly"}
    claimed = await claim(served.http, headers={**ann, **job})
    assert claimed.status_code == 201, claimed.text
    told = claimed.json()
    answers = [
        await served.http.get(f"{PATH}/{told['effect_id']}", headers=bob),
        await forged(served, told["effect_id"], told["claim_id"], bob),
        await claim(served.http, headers={**bob, **job}),
    ]
    assert [each.status_code for each in answers] == [404, 404, 404]
    assert (await served.http.get(PATH, headers=bob)).json()["effects"] == []
    assert (await report(served.http, claimed, "commit", headers=ann)).status_code == 200


async def test_key_of_named_jobs_claims_in_these_jobs_only(served: Served) -> None:
    key = await key_for(served, scopes=EFFECTS, jobs=("nightly-*",))
    assert (await claim(served.http, headers={**key, "x-job-id": "nightly-1"})).status_code == 201
    assert (await claim(served.http, headers={**key, "x-job-id": "daily-1"})).status_code == 403
    assert (await claim(served.http, headers=key)).status_code == 403


async def test_holder_is_a_name_within_its_key(served: Served) -> None:
    """The name of a holder is no secret: another key of the tenant does not extend its claim."""
    one, other = [await key_for(served, scopes=EFFECTS) for _ in range(2)]
    job = {"x-job-id": "nightly"}
    assert (await claim(served.http, headers={**one, **job}, holder="p7")).status_code == 201
    refused = await claim(served.http, headers={**other, **job}, holder="p7")
    assert (refused.status_code, refused.json()["code"]) == (409, "in_progress")
    assert (await claim(served.http, headers={**one, **job}, holder="p7")).status_code == 201


async def test_effects_without_a_job_belong_to_their_api_key(served: Served) -> None:
    one, other = [await key_for(served, scopes=EFFECTS) for _ in range(2)]
    first, second = await claim(served.http, headers=one), await claim(served.http, headers=other)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["effect_id"] != second.json()["effect_id"]


async def test_content_needs_its_scope(served: Served) -> None:
    facts = await key_for(served, scopes=EFFECTS)
    reader = await key_for(served, scopes=("effects", "content.read"))
    claimed = await claim(served.http, headers=facts)
    await report(served.http, claimed, "commit", headers=facts, provider_id="re_1", result={"secret": 1})
    shown = await effect(served.http, claimed, headers=facts)
    assert (shown["state"], shown["provider_id"]) == ("committed", "re_1")
    assert not {"arguments", "result", "error", "key"} & shown.keys()
    shown = await effect(served.http, claimed, headers=reader)
    assert (shown["arguments"]["payment"], shown["result"], shown["key"]) == ("pay_7", {"secret": 1}, "k1")
    # The caller of the effect receives its own result again.
    assert (await claim(served.http, headers=facts)).json()["result"] == {"secret": 1}


async def test_secrets_of_claims_are_kept_nowhere(served: Served) -> None:
    key = await key_for(served, scopes=("effects", "content.read"))
    claimed = await claim(served.http, headers=key)
    token = claimed.json()["claim_id"]
    await report(served.http, claimed, "unknown", headers=key, why="?")
    refused = await claim(served.http, headers=key)
    events = await served.ledger.events(claimed.json()["job_id"])
    shown = await effect(served.http, claimed, headers=key)
    assert token not in repr(events) + refused.text + repr(shown)
