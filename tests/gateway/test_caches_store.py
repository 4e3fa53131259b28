"""The rows of the caches: bounded, deleted after expiry, isolated by tenant and realm."""

import math
from typing import Any

import pytest

from caching import Change
from machine_parts import Open
from overnight.domain import Event, Recorded, month_of, new_id
from overnight.gateway.cache.commands import (
    KEPT_US,
    LEASE_US,
    ClaimOutcome,
    ClaimQuestion,
    ForgetExpired,
    KeepAnswer,
    ReleaseQuestion,
    RenewLeases,
)
from overnight.gateway.cache.rows import SQL, VectorRow
from overnight.gateway.cache.vectors import (
    SEARCHED,
    AddVector,
    nearest,
    packed_vector,
    read_vector,
)
from overnight.ledger import Append, NewJob
from overnight.store import Store, open_store

HOUR_US = 3_600_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(store_url: str, clock: Clock) -> Any:
    with open_store(store_url, clock) as store:
        store.enable_vectors()
        yield store


async def answered(store: Store, tenant: str = "t", text: str = "hello") -> Recorded:
    """A recorded answer in a job of its own."""
    job_id = new_id("job")
    await store.commit(Open(NewJob(job_id, tenant, "foreign", "n", state="running")))
    event = Event("model_succeeded")
    seq = await store.commit(Append(job_id, event, content=f'"{text}"'.encode()))
    return Recorded(job_id, seq, store.clock(), event, content=f'"{text}"'.encode(), tenant_id=tenant)


async def entries(store: Store) -> list[tuple[str, int]]:
    """(tenant, the number that its key is) of what is kept."""
    found: list[tuple[str, int]] = []
    for tenant in ("t", "u"):
        for number in range(30):
            key = number.to_bytes(32)
            rows = await store.read(SQL["read_claim"], {"tenant_id": tenant, "key": key})
            found += [(tenant, number)] * len(rows)
    return found


async def keep(store: Store, tenant: str, number: int, ttl_us: int = HOUR_US) -> None:
    answer = await answered(store, tenant)
    await store.commit(KeepAnswer((tenant, number.to_bytes(32)), "", answer.job_id, answer.seq, answer.at, ttl_us))


async def test_expired_entries_are_deleted_and_leaders_kept(kept: Store, clock: Clock) -> None:
    for number in range(3):
        await keep(kept, "t", number)
    clock.now += KEPT_US
    await keep(kept, "t", 3)
    await kept.commit(ClaimQuestion(("t", (0).to_bytes(32)), "leader", "job"))
    assert not await kept.commit(ForgetExpired((), 100, 100))
    assert await entries(kept) == [("t", 0), ("t", 3)]


async def test_tenant_maximum_keeps_the_longest_living_entries(kept: Store) -> None:
    for number in range(12):
        await keep(kept, "t", number, KEPT_US + HOUR_US * (12 - number))
        await keep(kept, "u", number)
    await kept.commit(ForgetExpired(("t",), 5, 100))
    left = await entries(kept)
    assert [number for tenant, number in left if tenant == "t"] == [0, 1, 2, 3, 4]
    assert sum(tenant == "u" for tenant, _ in left) == 12


async def test_claim_lasts_while_its_lease_is_renewed(kept: Store, clock: Clock) -> None:
    key = ("t", bytes(32))
    assert await kept.commit(ClaimQuestion(key, "one", "a")) is ClaimOutcome.LEADS
    assert await kept.commit(ClaimQuestion(key, "two", "b")) is ClaimOutcome.FOLLOWS
    assert await kept.commit(ClaimQuestion(key, "too", "a")) is ClaimOutcome.REPEATS
    clock.now += LEASE_US - 1
    await kept.commit(RenewLeases(((key, "one"),)))
    clock.now += LEASE_US - 1
    assert await kept.commit(ClaimQuestion(key, "two", "b")) is ClaimOutcome.FOLLOWS
    clock.now += 1
    assert await kept.commit(ClaimQuestion(key, "two", "b")) is ClaimOutcome.LEADS
    await kept.commit(RenewLeases(((key, "one"),)))
    await kept.commit(ReleaseQuestion(key, "one"))
    assert await kept.commit(ClaimQuestion(key, "three", "c")) is ClaimOutcome.FOLLOWS
    await kept.commit(ReleaseQuestion(key, "two"))
    assert await kept.commit(ClaimQuestion(key, "three", "c")) is ClaimOutcome.LEADS
    answer = await answered(kept)
    await kept.commit(KeepAnswer(key, "three", answer.job_id, answer.seq, answer.at, HOUR_US))
    assert await kept.commit(ClaimQuestion(key, "four", "d")) is ClaimOutcome.ANSWERED


def turned(angle: float, dimensions: int = 8) -> list[float]:
    return [math.cos(angle), math.sin(angle), *[0.0] * (dimensions - 2)]


async def add(store: Store, angle: float, tenant: str = "t", realm: bytes = b"r" * 32, text: str = "hello") -> Recorded:
    answer = await answered(store, tenant, text)
    await store.commit(AddVector(tenant, realm, turned(angle), answer, HOUR_US))
    return answer


async def test_nearest_entry_is_found_with_its_similarity(kept: Store) -> None:
    answers = {angle: await add(kept, angle, text=str(angle)) for angle in (0.0, 0.5, 1.5)}
    near = await nearest(kept, "t", b"r" * 32, turned(0.6), "")
    assert near is not None
    assert near.similarity == pytest.approx(math.cos(0.1), abs=1e-5)
    assert (near.answer.job_id, near.answer.content) == (answers[0.5].job_id, b'"0.5"')
    other = await nearest(kept, "t", b"r" * 32, turned(0.6), answers[0.5].job_id)
    assert other is not None
    assert other.answer.job_id == answers[0.0].job_id


async def test_tenants_are_isolated_within_equal_realms(kept: Store) -> None:
    await add(kept, 0.0, "t")
    for tenant in ("u", "T", "t ", "", "%", "t' OR '1'='1"):
        assert await nearest(kept, tenant, b"r" * 32, turned(0.0), "") is None
    assert await nearest(kept, "t", b"s" * 32, turned(0.0), "") is None
    assert await nearest(kept, "t", b"r" * 32, turned(0.0), "") is not None


async def test_vector_cannot_reach_another_tenants_answer(kept: Store) -> None:
    """Even a row that names another tenant's answer shows nothing of it."""
    answer = await answered(kept, "u")
    await kept.commit(AddVector("t", b"r" * 32, turned(0.0), answer, HOUR_US))
    assert await nearest(kept, "t", b"r" * 32, turned(0.0), "") is None


async def test_expired_or_erased_answers_are_not_found(kept: Store, clock: Clock) -> None:
    gone = await add(kept, 0.0)
    far = await add(kept, 1.0)
    erase = "DELETE FROM event WHERE job_id = :job_id RETURNING 1"
    await kept.commit(Change(erase, job_id=gone.job_id))
    near = await nearest(kept, "t", b"r" * 32, turned(0.0), "")
    assert near is not None
    assert near.answer.job_id == far.job_id
    clock.now += HOUR_US
    assert await nearest(kept, "t", b"r" * 32, turned(0.0), "") is None
    await kept.commit(ForgetExpired((), 1, 1))


class Many:
    """As many vectors of one answer, each added a moment after the other."""

    def __init__(self, answer: Recorded, numbers: list[float], count: int) -> None:
        self.answer, self.numbers, self.count = answer, numbers, count

    def locks(self) -> list[Any]:
        return []

    def decide(self, unit: Any) -> None:
        answer, month, ends = self.answer, month_of(self.answer.at), unit.now + HOUR_US
        for number in range(self.count):
            place = ("t", b"r" * 32, unit.now + number, answer.job_id, answer.seq, month, ends)
            unit.append(SQL["insert_vector"], VectorRow(*place, packed_vector(self.numbers), self.numbers))


async def test_search_compares_the_newest_vectors(kept: Store, clock: Clock) -> None:
    await add(kept, 0.0)
    answer = await answered(kept)
    clock.now += 1
    await kept.commit(Many(answer, turned(1.0), SEARCHED))
    near = await nearest(kept, "t", b"r" * 32, turned(0.0), "")
    assert near is not None
    assert near.similarity == pytest.approx(math.cos(1.0), abs=1e-5)
    while await kept.commit(ForgetExpired(("t",), 1, 10)):
        pass
    assert await nearest(kept, "t", b"r" * 32, turned(1.0), "") is not None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"data": []}',
        b'{"data": [{"embedding": []}]}',
        b'{"data": [{"embedding": [0, 0.0]}]}',
        b'{"data": [{"embedding": ["1"]}]}',
        b'{"data": [{"embedding": [true, 1]}]}',
        b'{"data": [{"embedding": [1e400]}]}',
        b'{"data": [{"embedding": "AACAPw=="}]}',
        b'{"data": [{"embedding": [' + b",".join([b"1"] * 16_001) + b"]}]}",
    ],
    ids=lambda body: body[:40].decode(),
)
def test_invalid_embeddings_give_no_vector(body: bytes) -> None:
    assert read_vector(body) is None


def test_a_vector_has_length_one() -> None:
    assert read_vector(b'{"data": [{"embedding": [3, 4.0]}]}') == [0.6, 0.8]
