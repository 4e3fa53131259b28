"""Audit entries: each change of a key, a provider key or a budget leaves one, without secrets."""

import json
from pathlib import Path
from typing import Any

import pytest

from api_keys import key_for
from cli_runs import run
from overnight.keys import Allowance, Keys, MasterKeys, NewKey, Rotation
from overnight.ledger import list_audit
from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import routed, serving

MASTER = "11" * 32


async def entries(store: Store, tenant_id: str = "acme") -> list[dict[str, Any]]:
    """The entries of a tenant as told outside, oldest first."""
    return [entry.public() for entry in reversed(await list_audit(store, tenant_id))]


async def test_changes_of_keys_are_audited(store: Store) -> None:
    keys = Keys(store, MasterKeys(MASTER))
    row, first = await keys.create("acme", NewKey(name="k", jobs=("n/*",)), "ann", "key_caller")
    _, second = await keys.rotate("k", "acme", Rotation(), "bea")
    await keys.allow("k", "acme", Allowance(tools=("refund*",)), "ann")
    await keys.set_provider_key("acme", "openai", "sk-very-secret", "ann", "key_caller")
    await keys.drop_provider_key("acme", "openai", "ann")
    await keys.revoke("k", "acme", "ann")
    await keys.revoke(row.key_id, "acme", "ann")  # changes nothing
    found = await entries(store)
    assert [(each["action"], each["subject"], each["actor"], each["key_id"]) for each in found] == [
        ("key.created", row.key_id, "ann", "key_caller"),
        ("key.rotated", row.key_id, "bea", None),
        ("key.allowance_changed", row.key_id, "ann", None),
        ("provider_key.set", "openai", "ann", "key_caller"),
        ("provider_key.deleted", "openai", "ann", None),
        ("key.revoked", row.key_id, "ann", None),
    ]
    created, rotated, allowed, _, _, revoked = found
    assert (created["before"], created["after"]["jobs"], created["after"]["scopes"]) == ({}, ["n/*"], ["calls"])
    assert rotated["before"]["starts_with"] != rotated["after"]["starts_with"]
    assert (allowed["before"], allowed["after"]) == ({"tools": []}, {"tools": ["refund*"]})
    assert [*revoked["after"]] == ["revoked_at"]
    assert await entries(store, "zeta") == []
    for secret in (first[15:], second[15:], "sk-very-secret"):
        assert secret not in json.dumps(found)


async def test_rejected_change_leaves_no_entry(store: Store) -> None:
    keys = Keys(store)
    await keys.create("acme", NewKey(name="k"), "ann")
    with pytest.raises(Exception, match="already exists"):
        await keys.create("acme", NewKey(name="k"), "ann")
    assert len(await entries(store)) == 1


async def test_top_ups_are_audited_and_never_lift_operator_limits(store: Store, provider: SpawnedProvider) -> None:
    limits = routed("budgets: {limits: [{scope: tenant, per: total, max_llm_calls: 1}]}\n")
    async with serving(store, provider, limits, hosts=None) as served:
        writer = await key_for(served, name="writer", scopes=("budgets.write", "calls"))
        operator = await key_for(served, name="operator", scopes=("instance.admin",))
        assert (await served.ask("1", headers=writer)).status_code == 200
        for body in (
            {"scope": "tenant", "id": "acme", "calls": 5},  # the operator's limit
            {"scope": "tenant", "id": "acme", "per": "day", "usd": 5},  # without a limit, and so towards a later one
            {"scope": "agent", "id": "bot", "per": "total", "calls": 5},
        ):
            refused = await served.http.post("/api/v1/budgets", json=body, headers=writer)
            assert (refused.status_code, "instance.admin" in refused.text) == (403, True), refused.text
        assert (await served.ask("2", headers=writer)).status_code == 402
        body = {"scope": "tenant", "id": "acme", "calls": 5, "why": "a busy day"}
        assert (await served.http.post("/api/v1/budgets", json=body, headers=operator)).status_code == 201
        assert (await served.ask("3", headers=writer)).status_code == 200
    (entry,) = [each for each in await entries(store) if each["action"] == "budget.topped_up"]
    assert (entry["subject"], entry["actor"], entry["key_id"][:4]) == ("tenant acme", "operator", "key_")
    assert (entry["before"]["extra_llm_calls"], entry["after"]["extra_llm_calls"]) == (0, 5)
    assert entry["after"]["why"] == "a busy day"


def test_audit_is_listed_by_tenant_and_time(store_url: str, tmp_path: Path) -> None:
    environment = {"OVERNIGHT_HOME": str(tmp_path), "DATABASE_URL": store_url, "USER": "ann", "LOGNAME": "ann"}

    def overnight(*words: str) -> str:
        ran = run(tmp_path, environment, *words)
        assert ran.code == 0, ran
        return ran.out

    assert "No changes" in overnight("audit")
    overnight("keys", "create", "k", "--tenant", "acme", "--tools", "refund*", "--jobs", "nightly/*", "--by", "bea")
    overnight("keys", "allow", "k", "--tenant", "acme", "--tools", "*")
    assert "No changes" in overnight("audit", "--since", "1h")
    changed, created = json.loads(overnight("audit", "--tenant", "acme", "--since", "1h", "--json"))
    assert (created["action"], created["actor"], created["after"]["jobs"]) == ("key.created", "bea", ["nightly/*"])
    assert (changed["before"], changed["after"]) == ({"tools": ["refund*"]}, {"tools": []})
    shown = overnight("audit", "--all-tenants")
    assert "key.allowance_changed" in shown
    assert "tools refund* → -" in shown
    assert json.loads(overnight("audit", "--tenant", "acme", "--since", "2999-01-01", "--json")) == []


def test_changes_of_the_instance_are_listed_without_a_tenant(store_url: str, tmp_path: Path) -> None:
    environment = {"OVERNIGHT_HOME": str(tmp_path), "DATABASE_URL": store_url}
    assert run(tmp_path, environment, "init").code == 0
    assert run(tmp_path, environment, "reload").code == 0
    shown = {words: run(tmp_path, environment, "audit", *words).out for words in ((), ("--tenant", "acme"))}
    assert "brain.reloaded" in shown[()]
    assert "No changes" in shown["--tenant", "acme"]
