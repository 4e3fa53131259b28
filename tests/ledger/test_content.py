"""Content by hash: conversations are complete, messages are stored once, tenants share nothing."""

import asyncio
import contextlib
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine_parts import UnderJob, all_of, examples, make_job, rows
from overnight.domain import BadInput, NotFound
from overnight.ledger import KnownContent, Ledger, address_chain, parse_reference, store_blob, store_chain
from overnight.store import Store, open_store


def keep(job_id: str, tenant: str, messages: list[bytes], known: KnownContent | None = None) -> UnderJob:
    links = address_chain(messages)
    return UnderJob(job_id, lambda unit, job: store_chain(unit, tenant, links, known or KnownContent()))


def keep_blob(job_id: str, tenant: str, body: bytes) -> UnderJob:
    return UnderJob(job_id, lambda unit, job: store_blob(unit, tenant, body))


def counts(url: str, tenant: str) -> tuple[int, int, int]:
    """How many messages, nodes and bytes of messages a tenant has stored."""
    ((messages, size),) = rows(
        url, f"SELECT count(*), coalesce(sum(length(body)), 0) FROM message WHERE tenant_id = '{tenant}'"
    )
    ((nodes,),) = rows(url, f"SELECT count(*) FROM node WHERE tenant_id = '{tenant}'")
    return messages, nodes, int(size)


@pytest.mark.parametrize("remembers", [False, True])
async def test_storage_is_linear(store: Store, store_url: str, remembers: bool) -> None:
    """A conversation of n turns, sent whole each time, stores each message once; with and without a memory of what is there."""
    job_id, known, said, references = make_job(store), KnownContent(), [b"system"], []
    for turn in range(60):
        said += [b"question %d " % turn + b"x" * 1000, b"answer %d" % turn]
        references.append(await store.commit(keep(job_id, "t", said, known)))
        if remembers:
            known.add_links("t", parse_reference(references[-1])[1], address_chain(said))
    assert counts(store_url, "t") == (121, 121, sum(map(len, said)))
    ledger = Ledger(store)
    for turn in (0, 30, 59):
        assert await ledger.content("t", references[turn]) == said[: 2 * turn + 3]


conversations = st.lists(
    st.tuples(
        st.integers(0, 50),  # which earlier conversation is gone on with
        st.integers(0, 20),  # how much of it is kept
        st.lists(st.sampled_from([b"a", b"b", b"", b"\x00\xff", b"c" * 3000]), max_size=12),
        st.sampled_from(["red", "blue"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=10,
)


def test_any_conversation_tree_round_trips(store_url: str) -> None:
    """Model: a dict of prefixes. Two processes store at once; each prefix and each message is there once per tenant."""

    @examples(25, 500)
    @given(conversations)
    def come_back(said: list[Any]) -> None:
        asyncio.run(_come_back(stores, store_url, said))

    with open_store(store_url) as one, open_store(store_url) as other:
        stores = (one, other)
        come_back()


async def _come_back(stores: tuple[Store, Store], url: str, said: list[Any]) -> None:
    mark = str(time.monotonic_ns())
    job_id = make_job(stores[0])
    known = (KnownContent(most=20), KnownContent(most=20))
    spoken: list[list[bytes]] = [[]]
    references: list[tuple[str, str, list[bytes]]] = []
    prefixes: dict[str, set[tuple[bytes, ...]]] = {"red": set(), "blue": set()}
    for which, kept, more, tenant, both in said:
        messages = spoken[which % len(spoken)][:kept] + more
        spoken.append(messages)
        name = f"{tenant}-{mark}"
        for mine in range(1 + both):
            (reference,) = await all_of(stores[mine], [keep(job_id, name, messages, known[mine])])
            assert isinstance(reference, str), reference
            if messages:
                known[mine].add_links(name, parse_reference(reference)[1], address_chain(messages))
        references.append((tenant, reference, messages))
        prefixes[tenant] |= {tuple(messages[: n + 1]) for n in range(len(messages))}
    ledger = Ledger(stores[0])
    for tenant, reference, messages in references:
        if not messages:
            assert reference == ""
            continue
        assert await ledger.content(f"{tenant}-{mark}", reference) == messages
        if tuple(messages) not in prefixes[other := "blue" if tenant == "red" else "red"]:
            with pytest.raises(NotFound):
                await ledger.content(f"{other}-{mark}", reference)
    for tenant, known_prefixes in prefixes.items():
        distinct = {messages[-1] for messages in known_prefixes}
        assert counts(url, f"{tenant}-{mark}")[:2] == (len(distinct), len(known_prefixes))


async def test_tenants_never_share_content(store: Store, store_url: str) -> None:
    job_id = make_job(store)
    secret = b'{"role":"user","content":"the same words"}'
    mine = await store.commit(keep_blob(job_id, "red", secret))
    chain = await store.commit(keep(job_id, "red", [secret]))
    ledger = Ledger(store)
    for reference in (mine, chain):
        for stranger in ("blue", "", "red ", "RED", "%"):
            with pytest.raises(NotFound, match="unknown for this tenant"):
                await ledger.content(stranger, reference)
    theirs = await store.commit(keep_blob(job_id, "blue", secret))
    assert theirs == mine, "the address tells nothing about who else has it"
    assert rows(store_url, "SELECT count(*) FROM blob") == [(2,)]
    assert await ledger.content("blue", theirs) == await ledger.content("red", mine) == secret
    await store.commit(UnderJob(job_id, lambda unit, job: None))
    known = KnownContent()
    known.add_links("red", parse_reference(chain)[1], address_chain([secret]))
    assert await ledger.content("blue", await store.commit(keep(job_id, "blue", [secret], known))) == [secret]


async def test_conversation_continues_in_the_next_month(store_url: str) -> None:
    """Each month is whole in itself, so that a month can be dropped."""
    at = [1_706_745_599_000_000]  # 2024-01-31 23:59:59
    with open_store(store_url, lambda: at[0]) as store:
        job_id, said, known = make_job(store), [b"one", b"two"], KnownContent()
        january = await store.commit(keep(job_id, "t", said, known))
        known.add_links("t", 202401, address_chain(said))
        at[0] += 2_000_000
        february = await store.commit(keep(job_id, "t", [*said, b"three"], known))
        assert (january.split("/")[2], february.split("/")[2]) == ("202401", "202402")
        ledger = Ledger(store)
        assert await ledger.content("t", january) == said
        assert await ledger.content("t", february) == [*said, b"three"]
        assert counts(store_url, "t")[:2] == (5, 5)


async def test_blobs_round_trip_and_are_stored_once(store: Store, store_url: str) -> None:
    job_id = make_job(store)
    bodies = [b"", b"\x00", b"x" * 300_000, bytes(range(256))]
    references = [await all_of(store, [keep_blob(job_id, "t", body) for body in bodies]) for _ in range(3)]
    assert references[0] == references[1] == references[2]
    assert [await Ledger(store).content("t", reference) for reference in references[0]] == bodies
    assert rows(store_url, "SELECT count(*) FROM blob") == [(4,)]


@given(st.one_of(st.text(), st.text(alphabet="blo:/sha256chain0123456789abcdef"), st.just("blob://202401/sha256/zz")))
def test_invalid_reference_is_bad_input(text: str) -> None:
    with contextlib.suppress(BadInput):
        is_chain, month, digest = parse_reference(text)
        assert (type(is_chain), type(month), type(digest)) == (bool, int, bytes)


@pytest.mark.parametrize("reference", ["blob://202401/sha256/00", "blob://1/chain/sha256/00", "blob://202401/sha256/"])
async def test_unknown_reference_is_not_found(store: Store, reference: str) -> None:
    with pytest.raises(NotFound):
        await Ledger(store).content("t", reference)
