"""Scopes, roles and limits of keys: stored keys keep their meaning, and an earlier version grants no more than was meant."""

import json
from typing import Any

import pytest

from overnight.domain import ROLES, SCOPES, BadInput, Conflict, Forbidden, expand_scopes
from overnight.keys import (
    Allowance,
    Keyring,
    Keys,
    NewKey,
    Requester,
    Rotation,
    VirtualKey,
    check_decision,
    check_tool,
    public_key,
)
from overnight.store import Store, statements

EARLIER = ("call", "read", "operate", "admin", "instance.admin")
"""The scopes that processes of earlier versions know."""


@pytest.fixture
def keys(store: Store) -> Keys:
    return Keys(store)


async def found(store: Store, secret: str) -> VirtualKey:
    key = await Keyring(store).find(secret)
    assert key is not None
    return key


def stored_scopes(row: Any) -> set[str]:
    return set(json.loads(row.scopes))


@pytest.mark.parametrize("role", EARLIER)
async def test_role_of_an_earlier_version_is_a_set_of_scopes(keys: Keys, store: Store, role: str) -> None:
    row, secret = await keys.create("acme", NewKey(name="k", scopes=(role,)), "ann")
    assert (await found(store, secret)).scopes == set(ROLES[role])
    assert stored_scopes(row) == set(ROLES[role])
    assert public_key(row, 0)["scopes"] == [scope for scope in SCOPES if scope in ROLES[role]]


@pytest.mark.parametrize("scope", SCOPES)
async def test_earlier_version_grants_nothing_beyond_a_new_key(keys: Keys, scope: str) -> None:
    row, _ = await keys.create("acme", NewKey(name="k", scopes=(scope,)), "ann")
    assert stored_scopes(row) & set(EARLIER) <= {scope}


async def test_stored_scopes_of_an_earlier_version_are_expanded(keys: Keys, store: Store) -> None:
    row, secret = await keys.create("acme", NewKey(name="k"), "ann")
    row.scopes = '["call","read","operate"]'

    class Write:
        def locks(self) -> list[Any]:
            return []

        def decide(self, unit: Any) -> None:
            unit.append(statements("overnight.keys")["update_key"], row)

    await store.commit(Write())
    assert (await found(store, secret)).scopes == {"calls", "jobs.read", "content.read", "jobs.operate"}
    changed = await keys.allow("k", "acme", Allowance(jobs=("nightly/*",)), "ann")
    assert stored_scopes(changed) & set(EARLIER) == set()  # a process without allowances would ignore this one


async def test_agent_key_cannot_have_reviews_decide(keys: Keys) -> None:
    with pytest.raises(BadInput, match="cannot decide reviews"):
        await keys.create("acme", NewKey(name="k", scopes=("reviews.decide",), agent_id="bot"), "ann")


def test_unknown_scope_grants_nothing() -> None:
    assert expand_scopes(["calls", "everything", "root"]) == {"calls"}


async def test_allowance_limits_tools_and_jobs(keys: Keys, store: Store) -> None:
    new = NewKey(name="k", tools=("refund*",), jobs=("nightly/*", "once"))
    row, secret = await keys.create("acme", new, "ann")
    key = await found(store, secret)
    assert (key.tools, key.key_scope.jobs) == (("refund*",), ("nightly/*", "once"))
    shown = public_key(await keys.one("k", "acme"), 0)
    assert (shown["tools"], shown["jobs"]) == (("refund*",), ("nightly/*", "once"))
    check_tool(None, "anything")
    check_tool(key, "refund_order")
    with pytest.raises(Forbidden, match="does not permit tool send_mail; permitted: refund"):
        check_tool(key, "send_mail")
    await keys.allow("k", "acme", Allowance(tools=()), "ann")
    key = await found(store, secret)
    assert (key.tools, key.jobs) == ((), ("nightly/*", "once"))
    await keys.rotate("k", "acme", Rotation(), "ann")
    assert public_key(await keys.one(row.key_id), 0)["jobs"] == ("nightly/*", "once")


@pytest.mark.parametrize("scope", ["keys.admin", "instance.read", "instance.admin"])
async def test_key_of_the_whole_tenant_cannot_be_limited(keys: Keys, scope: str) -> None:
    with pytest.raises(BadInput, match="cannot be limited"):
        await keys.create("acme", NewKey(name="k", scopes=(scope,), jobs=("x",)), "ann")
    await keys.create("acme", NewKey(name="k", scopes=(scope,)), "ann")
    with pytest.raises(Conflict, match="cannot be limited"):
        await keys.allow("k", "acme", Allowance(jobs=("x",)), "ann")


@pytest.mark.parametrize("globs", [("a b",), ("",), ("[a-z]*",), ("x",) * 101])
async def test_invalid_globs_are_rejected(keys: Keys, globs: tuple[str, ...]) -> None:
    for field in ("tools", "jobs"):
        with pytest.raises(BadInput, match=field):
            await keys.create("acme", NewKey(name="k", **{field: globs}), "ann")


def decider(key_id: str = "key_boss", agent_id: str | None = None, *scopes: str) -> VirtualKey:
    return VirtualKey(key_id, "acme", "boss", frozenset(scopes or ("reviews.decide",)), agent_id)


def test_decision_requires_another_key_without_an_agent() -> None:
    others = Requester("key_job", "key_request")
    check_decision(decider(), others)
    check_decision(decider(), Requester())
    for key, requester in (
        (None, others),
        (decider("key_boss", None, "keys.admin", "instance.admin"), others),
        (decider("key_boss", "bot"), others),
        (decider("key_job"), others),
        (decider("key_request"), others),
    ):
        with pytest.raises(Forbidden):
            check_decision(key, requester)
