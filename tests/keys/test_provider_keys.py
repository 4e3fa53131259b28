"""Provider keys of tenants: sealed per tenant and provider, and opened by master keys."""

import asyncio
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from overnight.domain import BadInput, NotFound
from overnight.keys import DecryptionFailed, Keyring, Keys, MasterKeys
from overnight.store import Store

MASTER, OLD_MASTER = "11" * 32, "22" * 32


@pytest.fixture
def keys(store: Store) -> Keys:
    return Keys(store, MasterKeys(MASTER))


@pytest.fixture
def ring(store: Store) -> Keyring:
    return Keyring(store, MasterKeys(MASTER))


async def test_provider_key_is_bound_to_tenant_and_provider(keys: Keys, ring: Keyring) -> None:
    await keys.set_provider_key("acme", "openai", " sk-1\n", "ann")
    ring.expire()
    await ring.refresh()
    assert ring.provider_key("acme", "openai") == "sk-1"
    assert ring.provider_key("acme", "anthropic") is None
    assert ring.provider_key("other", "openai") is None
    version = ring.version
    await keys.set_provider_key("acme", "openai", "sk-2", "ann")
    await asyncio.sleep(2.0)
    await ring.refresh()
    assert ring.provider_key("acme", "openai") == "sk-2"
    assert ring.version != version
    await keys.drop_provider_key("acme", "openai", "ann")
    ring.expire()
    await ring.refresh()
    assert ring.provider_key("acme", "openai") is None
    assert "acme" not in ring.owners
    with pytest.raises(NotFound):
        await keys.drop_provider_key("acme", "openai", "ann")


@pytest.mark.parametrize("secret", ["", " \n", "a b", "a\nb", "a\r\nx-evil: 1", "schlüssel", "x" * 5000])
async def test_key_invalid_in_a_header_is_rejected(keys: Keys, secret: str) -> None:
    with pytest.raises(BadInput) as refused:
        await keys.set_provider_key("acme", "openai", secret, "ann")
    assert not secret.strip() or secret not in str(refused.value)


async def test_decryption_requires_tenant_and_master_key(keys: Keys, store: Store) -> None:
    row = await keys.set_provider_key("acme", "openai", "sk-1", "ann")
    assert row.sealed is not None
    masters = MasterKeys(MASTER)
    assert masters.decrypt(row.master_id, row.sealed, ("acme", "openai")) == "sk-1"
    for tenant, provider, sealed in (
        ("other", "openai", row.sealed),
        ("acme", "mistral", row.sealed),
        ("acme", "openai", row.sealed[:-1] + bytes([row.sealed[-1] ^ 1])),
    ):
        with pytest.raises(DecryptionFailed, match="altered"):
            masters.decrypt(row.master_id, sealed, (tenant, provider))
    stranger = Keyring(store, MasterKeys(OLD_MASTER))
    await stranger.refresh()
    with pytest.raises(DecryptionFailed, match=row.master_id):
        stranger.provider_key("acme", "openai")


async def test_environment_master_keys_rotate_by_order(store: Store) -> None:
    await Keys(store, MasterKeys(OLD_MASTER)).set_provider_key("acme", "openai", "sk-1", "ann")
    both = MasterKeys(f"{MASTER},{OLD_MASTER}")
    master_id, count, _ = await Keys(store, both).rotate_master("ann")
    assert (master_id, count) == (MasterKeys(MASTER).first().master_id, 1)
    assert (await Keys(store, both).rotate_master("ann"))[1] == 0
    ring = Keyring(store, MasterKeys(MASTER))
    await ring.refresh()
    assert ring.provider_key("acme", "openai") == "sk-1"


async def test_home_master_key_is_created_once_and_rotated(store: Store, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: MasterKeys(None, home, makes_file=True).first().key, range(8)))
    assert len(set(made)) == 1
    file = home / "master.key"
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert [path.name for path in home.iterdir()] == ["master.key"]

    keys, ring = Keys(store, MasterKeys(None, home)), Keyring(store, MasterKeys(None, home))
    await keys.set_provider_key("acme", "openai", "sk-1", "ann")
    for _ in range(3):
        await keys.rotate_master("ann")
        assert len(file.read_text().split()) == 2
        ring.expire()
        await ring.refresh()
        assert ring.provider_key("acme", "openai") == "sk-1"  # another process, which reads the file again
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    file.chmod(0o644)
    with pytest.raises(BadInput, match="chmod 600"):
        MasterKeys(None, home)


@pytest.mark.parametrize("given", ["short", "zz" * 32, "A" * 43 + "!", "=" * 44, f"{MASTER},x"])
def test_invalid_master_key_is_rejected_and_not_quoted(given: str) -> None:
    with pytest.raises(BadInput, match="openssl") as refused:
        MasterKeys(given)
    assert given not in str(refused.value)


async def test_provider_key_requires_a_master_key(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="OVERNIGHT_MASTER_KEY"):
        await Keys(store, MasterKeys(None, tmp_path)).set_provider_key("acme", "openai", "sk-1", "ann")
    assert list(tmp_path.glob("master*")) == []
