"""API keys: validity, expiry, notification of changes, and no stored secrets."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.domain import BadInput, Conflict, NotFound, StoreUnavailable
from overnight.keys import Keyring, Keys, MasterKeys, NewKey, Rotation, public_key
from overnight.keys.rows import SQL
from overnight.store import Store, open_store
from overnight.store.store import wall_clock_us
from sqlite_statements import executed_statements
from store_content import everything_in

HOUR_MS = 3_600_000
MASTER = "11" * 32


class Clock:
    """The store's time; it can be put forward."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return wall_clock_us() + self.ahead_ms * 1000


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(store_url: str, clock: Clock) -> Iterator[Store]:
    with open_store(store_url, clock) as opened:
        yield opened


@pytest.fixture
def keys(store: Store) -> Keys:
    return Keys(store, MasterKeys(MASTER))


@pytest.fixture
def ring(store: Store) -> Keyring:
    return Keyring(store, MasterKeys(MASTER))


async def opens(ring: Keyring, secret: str) -> bool:
    """Whether it does now, for one who has heard of every change."""
    ring.expire()
    return await ring.find(secret) is not None


# ── virtual keys ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_key_authenticates_with_its_attributes(keys: Keys, ring: Keyring) -> None:
    new = NewKey(name="triage", scopes=("read", "call"), agent_id="bot", models=("gpt-*",), routes=("support",))
    row, secret = await keys.create("acme", new, "ann")
    found = await ring.find(secret)
    assert found is not None
    assert (found.key_id, found.tenant_id, found.name) == (row.key_id, "acme", "triage")
    assert (found.scopes, found.agent_id, found.workflow) == ({"calls", "jobs.read", "content.read"}, "bot", None)
    assert (found.models, found.routes) == (("gpt-*",), ("support",))


async def test_invalid_key_is_rejected(keys: Keys, ring: Keyring) -> None:
    _, secret = await keys.create("acme", NewKey(name="k"), "ann")
    wrong = secret[:-1] + ("0" if secret[-1] != "0" else "1")
    for tried in (
        wrong,
        secret[:-1],
        secret + "0",
        secret.upper(),
        secret[:15],
        "",
        "sk-" + secret[3:],
        "on_" + "é" * 76,
    ):
        assert await ring.find(tried) is None
    assert await ring.find(secret) is not None


async def test_key_expires(keys: Keys, ring: Keyring, clock: Clock) -> None:
    _, secret = await keys.create("acme", NewKey(name="k", expires_in_ms=HOUR_MS), "ann")
    clock.ahead_ms = HOUR_MS - 60_000
    assert await ring.find(secret) is not None  # the copy in memory is the same one later on
    clock.ahead_ms = HOUR_MS
    assert await ring.find(secret) is None
    with pytest.raises(Conflict, match="expired"):
        await keys.rotate("k", "acme", Rotation(), "ann")


async def test_both_secrets_work_during_the_overlap(keys: Keys, ring: Keyring, clock: Clock) -> None:
    row, old = await keys.create("acme", NewKey(name="k"), "ann")
    again, new = await keys.rotate("k", "acme", Rotation(overlap_ms=HOUR_MS), "bob")
    assert (again.key_id, again.rotated_by) == (row.key_id, "bob")
    assert [await opens(ring, each) for each in (old, new)] == [True, True]
    clock.ahead_ms = HOUR_MS
    assert await ring.find(old) is None
    assert [await opens(ring, each) for each in (old, new)] == [False, True]
    await keys.rotate("k", "acme", Rotation(overlap_ms=0), "bob")
    assert not await opens(ring, new)


async def test_rotation_extends_only_the_new_secret(keys: Keys, ring: Keyring, clock: Clock) -> None:
    _, old = await keys.create("acme", NewKey(name="k", expires_in_ms=HOUR_MS), "ann")
    _, new = await keys.rotate("k", "acme", Rotation(overlap_ms=9 * HOUR_MS, expires_in_ms=5 * HOUR_MS), "ann")
    clock.ahead_ms = 2 * HOUR_MS
    assert [await opens(ring, each) for each in (old, new)] == [False, True]
    clock.ahead_ms = 5 * HOUR_MS
    assert not await opens(ring, new)


async def test_revoking_ends_every_secret_of_a_key_and_frees_its_name(keys: Keys, ring: Keyring) -> None:
    row, old = await keys.create("acme", NewKey(name="k"), "ann")
    _, new = await keys.rotate("k", "acme", Rotation(), "ann")
    assert await opens(ring, old)
    revoked = await keys.revoke(row.key_id, "acme", "bob")
    assert (revoked.revoked_by, (await keys.revoke(row.key_id, "acme", "eve")).revoked_by) == ("bob", "bob")
    assert [await opens(ring, each) for each in (old, new)] == [False, False]
    assert ring.exist
    _, third = await keys.create("acme", NewKey(name="k"), "ann")
    assert await opens(ring, third)
    assert (await keys.one("k", "acme")).revoked_at is None
    with pytest.raises(Conflict, match="revoked"):
        await keys.rotate(row.key_id, "acme", Rotation(), "ann")


async def test_concurrent_creation_makes_one_key_per_name(keys: Keys) -> None:
    made = await asyncio.gather(
        *(keys.create("acme", NewKey(name="k"), "ann") for _ in range(20)), return_exceptions=True
    )
    assert sum(not isinstance(each, Conflict) for each in made) == 1
    await keys.create("other", NewKey(name="k"), "ann")
    with pytest.raises(BadInput, match="several tenants"):
        await keys.one("k")
    assert len({row.key_id for row in await keys.list()}) == 2


async def test_key_is_found_by_id_name_or_prefix_in_its_tenant(keys: Keys) -> None:
    row, secret = await keys.create("acme", NewKey(name="k"), "ann")
    for name in (row.key_id, "k", row.handle, secret):
        assert (await keys.one(name, "acme")).key_id == row.key_id
        with pytest.raises(NotFound):
            await keys.one(name, "other")
    assert await keys.list("other") == []


async def test_secrets_are_neither_stored_nor_shown(keys: Keys, store: Store, store_url: str) -> None:
    row, secret = await keys.create("acme", NewKey(name="k"), "ann")
    _, second = await keys.rotate("k", "acme", Rotation(), "ann")
    await keys.set_provider_key("acme", "openai", "sk-very-secret-4711", "ann")
    store.close()
    kept = everything_in(store_url)
    assert row.handle.encode() in kept  # what is looked for would be seen
    shown = str(public_key(row, 0)).encode()
    for proof in (secret[15:], second[15:], "sk-very-secret-4711", MASTER):
        assert proof.encode() not in kept + shown
        assert bytes(proof, "ascii").hex().encode() not in kept


@pytest.mark.parametrize(
    ("new", "says"),
    [
        (NewKey(name=""), "name"),
        (NewKey(name="a;b"), "name"),
        (NewKey(name="on_x"), "another name"),
        (NewKey(name="key_x"), "another name"),
        (NewKey(name="k", scopes=("call", "root")), "'root'"),
        (NewKey(name="k", scopes=()), "at least one"),
        (NewKey(name="k", agent_id="a\n"), "agent_id"),
        (NewKey(name="k", models=("a b",)), "models"),
        (NewKey(name="k", routes=("",)), "routes"),
        (NewKey(name="k", models=("x",) * 101), "101"),
        (NewKey(name="k", scopes=("admin",), models=("x",)), "cannot be limited"),
        (NewKey(name="k", scopes=("admin",), agent_id="x"), "cannot be limited"),
    ],
)
async def test_invalid_key_attributes_are_rejected(keys: Keys, new: NewKey, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        await keys.create("acme", new, "ann")
    assert await keys.list() == []


# ── what a process knows ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_changes_of_other_processes_apply_in_two_seconds(keys: Keys, store_url: str) -> None:
    with open_store(store_url) as other:
        ring = Keyring(other)
        row, secret = await keys.create("acme", NewKey(name="k"), "ann")
        assert await ring.find(secret) is not None
        _, second = await keys.create("acme", NewKey(name="l"), "ann")
        assert await ring.find(second) is not None
        await keys.revoke(row.key_id, "", "ann")
        await asyncio.sleep(2.0)
        assert await ring.find(secret) is None
        assert await ring.find(second) is not None


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_authentication_reads_no_store(keys: Keys, store: Store) -> None:
    _, secret = await keys.create("acme", NewKey(name="k"), "ann")
    ring, statements = Keyring(store), tuple(SQL.values())
    await ring.refresh()
    with executed_statements() as executed:
        for _ in range(2000):
            assert await ring.find(secret) is not None
        assert executed.count(*statements) <= 2
        wrong = secret[:15] + "0" * 64  # the handle of a key is not secret
        for _ in range(2000):
            assert await ring.find(wrong) is None
        assert executed.count(*statements) <= 3
        guesses = [f"on_{number:076x}" for number in range(3000)]
        assert not any(await asyncio.gather(*map(ring.find, guesses)))
        assert executed.count(*statements) <= 6
        assert await ring.find(secret) is not None


async def test_stale_copy_rejects_all_keys(keys: Keys, store: Store) -> None:
    _, secret = await keys.create("acme", NewKey(name="k"), "ann")
    ring = Keyring(store)
    assert await ring.find(secret) is not None
    store.close()
    assert await ring.find(secret) is not None
    ring.expire()
    with pytest.raises(StoreUnavailable):
        await ring.find(secret)


async def test_cancelled_caller_does_not_cancel_others(keys: Keys, ring: Keyring) -> None:
    _, secret = await keys.create("acme", NewKey(name="k"), "ann")
    leaving, staying = asyncio.create_task(ring.find(secret)), asyncio.create_task(ring.find(secret))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying is not None


async def test_last_use_is_recorded_at_shutdown(keys: Keys, ring: Keyring) -> None:
    row, secret = await keys.create("acme", NewKey(name="k"), "ann")
    await keys.create("acme", NewKey(name="unused"), "ann")
    assert (await keys.one("k")).last_used_at is None
    await ring.find(secret)
    await ring.close()
    used = (await keys.one("k")).last_used_at
    assert used is not None
    assert used >= row.created_at
    assert (await keys.one("unused")).last_used_at is None


STEPS = st.lists(
    st.tuples(st.sampled_from(["create", "rotate", "revoke", "wait", "look"]), st.integers(0, 5), st.integers(0, 3)),
    max_size=25,
)


@settings(max_examples=30)
@given(STEPS)
def test_every_process_agrees_with_the_rules(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    """Against a model: secrets with the time each ends at, and one process that looks now and then and one that never does."""

    async def live() -> None:
        clock = Clock()
        with open_store(str(tmp_path_factory.mktemp("keys") / "ledger.db"), clock) as store:
            keys, often, seldom = Keys(store), Keyring(store), Keyring(store)
            ends: dict[str, float] = {}
            held: list[tuple[str, str, str | None]] = []  # (key_id, present secret, the one before)
            for step, which, hours in steps:
                if step == "create":
                    expires = hours * HOUR_MS or None
                    row, secret = await keys.create("t", NewKey(name=f"k{len(ends)}", expires_in_ms=expires), "ann")
                    ends[secret] = clock.ahead_ms + expires if expires else float("inf")
                    held.append((row.key_id, secret, None))
                elif step == "wait":
                    clock.ahead_ms += hours * HOUR_MS
                elif step == "look":
                    await often.find("on_" + "0" * 76)
                elif held and step == "rotate":
                    key_id, now, before = held[which % len(held)]
                    if ends[now] <= clock.ahead_ms:
                        with pytest.raises(Conflict):
                            await keys.rotate(key_id, "t", Rotation(), "ann")
                        continue
                    _, fresh = await keys.rotate(key_id, "t", Rotation(overlap_ms=hours * HOUR_MS), "ann")
                    if before:
                        ends[before] = float("-inf")
                    ends[fresh], ends[now] = ends[now], min(ends[now], clock.ahead_ms + hours * HOUR_MS)
                    held[which % len(held)] = (key_id, fresh, now)
                elif held and step == "revoke":
                    key_id, now, before = held[which % len(held)]
                    await keys.revoke(key_id, "t", "ann")
                    ends[now] = float("-inf")
                    if before:
                        ends[before] = float("-inf")
            often.expire()
            for ring in (often, seldom):
                for secret, end in ends.items():
                    assert (await ring.find(secret) is not None) == (end > clock.ahead_ms)

    asyncio.run(live())
