"""Webhooks: signed by Standard Webhooks, once for each review and address, retried until a day has passed."""

from pathlib import Path
from typing import Any

import pytest

from overnight.domain import Conflict
from overnight.keys import Keys
from overnight.ledger import Ledger
from overnight.notifications import Addresses, SecretRotation
from overnight.outgoing import AddressPolicy
from overnight.store import Store
from receivers import PUBLIC_URL, add, addresses_of, ask, deliveries, ended, masters, receiver, sending


async def test_review_reaches_webhook_signed_and_once(store: Store, tmp_path: Path) -> None:
    async with receiver() as hook:
        secret = await add(store, tmp_path, name="ops", kind="webhook", url=hook.url)
        async with sending(store, tmp_path, public_url=PUBLIC_URL):
            review = await ask(store)
            [row] = await ended(store, tmp_path)
        [arrival] = hook.arrivals
    assert row.state == "delivered"
    assert arrival.is_signed_by(secret)
    assert not arrival.is_signed_by("whsec_" + "A" * 43 + "=")
    assert arrival.headers["webhook-id"] == row.delivery_id
    sent = arrival.json
    assert (sent["type"], sent["data"]["review_id"]) == ("review.requested", review.review_id)
    assert (sent["data"]["question"], sent["data"]["detail"]) == ("Refund pay_8?", {"usd": 250})
    assert sent["data"]["link"].startswith(f"{PUBLIC_URL}/reviews/")
    told = [each for each in await Ledger(store).events(review.job_id) if each.facts.event == "notification_sent"]
    assert told[0].facts.detail is not None
    assert told[0].facts.detail["address"] == "ops"


async def test_rotation_signs_with_both_secrets(store: Store, tmp_path: Path) -> None:
    async with receiver() as hook:
        old = await add(store, tmp_path, name="ops", kind="webhook", url=hook.url)
        addresses = addresses_of(store, tmp_path)
        _, new = await addresses.rotate("ops", "default", SecretRotation(overlap_ms=60_000), "ann")
        async with sending(store, tmp_path):
            await ask(store)
            await ended(store, tmp_path)
            assert [hook.arrivals[0].is_signed_by(each) for each in (old, new)] == [True, True]
            _, newest = await addresses.rotate("ops", "default", SecretRotation(overlap_ms=0), "ann")
            await ask(store)
            await ended(store, tmp_path, 2)
        assert [hook.arrivals[1].is_signed_by(each) for each in (old, new, newest)] == [False, False, True]


@pytest.mark.parametrize("trouble", [500, 404, "reset", (302, {"location": "http://169.254.169.254/"}), "hang"])
async def test_failed_delivery_is_repeated_with_the_same_id(store: Store, tmp_path: Path, trouble: Any) -> None:
    async with receiver() as hook:
        hook.answers = [trouble, (503, {"retry-after": "0"})]
        await add(store, tmp_path, name="ops", kind="webhook", url=hook.url)
        async with sending(store, tmp_path, timeout_s=0.5 if trouble == "hang" else 5.0):
            await ask(store)
            [row] = await ended(store, tmp_path)
    assert (row.state, row.attempts) == ("delivered", 3)
    assert {each.headers["webhook-id"] for each in hook.arrivals} == {row.delivery_id}
    assert {each.path for each in hook.arrivals} == {"/hooks/T000/B000/very-secret-path"}


async def test_address_without_repeats_keeps_unknown_outcomes(store: Store, tmp_path: Path) -> None:
    async with receiver() as hook:
        hook.answers = ["reset"]
        await add(store, tmp_path, name="ops", kind="webhook", url=hook.url, repeat_safe=False)
        async with sending(store, tmp_path):
            review = await ask(store)
            [row] = await ended(store, tmp_path)
            assert (row.state, len(hook.arrivals)) == ("unknown", 1)
            told = [each.facts for each in await Ledger(store).events(review.job_id)]
            assert [(each.event, each.error.error_class) for each in told if each.error] == [
                ("notification_failed", "unknown")
            ]
            await addresses_of(store, tmp_path).retry(row.delivery_id, "default", "ann")
            await hook.count(2)
            [row] = await ended(store, tmp_path)
        assert (row.state, row.attempts) == ("delivered", 2)
        with pytest.raises(Conflict):
            await addresses_of(store, tmp_path).retry(row.delivery_id, "default", "ann")


async def test_receiver_that_is_gone_disables_the_address(store: Store, tmp_path: Path) -> None:
    async with receiver() as hook:
        hook.answers = [410]
        await add(store, tmp_path, name="ops", kind="webhook", url=hook.url)
        async with sending(store, tmp_path):
            await ask(store)
            [row] = await ended(store, tmp_path)
        assert row.state == "failed"
        assert [each.state for each in await addresses_of(store, tmp_path).list("default")] == ["disabled"]


async def test_delivery_is_given_up_after_a_day(store: Store, tmp_path: Path) -> None:
    async with receiver() as hook:
        hook.answers = [500] * 10
        await add(store, tmp_path, name="ops", kind="webhook", url=hook.url)
        async with sending(store, tmp_path, delay=lambda attempt, _: 0.01 if attempt < 3 else 90_000.0):
            await ask(store)
            [row] = await ended(store, tmp_path)
    assert (row.state, row.attempts) == ("failed", 3)
    assert row.problem == "given up after a day: status 500"


async def test_private_address_is_not_reached(store: Store, tmp_path: Path) -> None:
    """The policy holds when the message is sent, not only when the address is registered."""
    async with receiver() as hook:
        await add(store, tmp_path, name="ops", kind="webhook", url=hook.url)
        outcome = await addresses_of(store, tmp_path, AddressPolicy()).test("ops", "default", "ann")
        assert "not public" in getattr(outcome, "why", "")
        assert hook.arrivals == []


async def test_only_new_open_reviews_of_the_tenant_are_sent(store: Store, tmp_path: Path) -> None:
    await ask(store, "before the address")
    async with receiver() as hook:
        await add(store, tmp_path, name="ops", kind="webhook", url=hook.url, kinds=("quarantine",))
        await ask(store, "another kind")
        await ask(store, "another tenant", kind="quarantine", tenant="acme")
        await ask(store, "expired", kind="quarantine", expires_at=1)
        wanted = await ask(store, "wanted", kind="quarantine", detail={"tool": "send"})
        async with sending(store, tmp_path):
            rows = await ended(store, tmp_path, 2)
        assert [each.json["data"]["review_id"] for each in hook.arrivals] == [wanted.review_id]
    assert sorted(row.state for row in rows) == ["delivered", "withdrawn"]


async def test_secrets_stand_nowhere_in_the_open(store: Store, tmp_path: Path) -> None:
    async with receiver() as hook:
        hook.answers = [500]
        secret = await add(store, tmp_path, name="ops", kind="webhook", url=hook.url)
        async with sending(store, tmp_path, public_url=PUBLIC_URL):
            review = await ask(store)
            await ended(store, tmp_path)
    token = hook.arrivals[-1].json["data"]["link"].rpartition("/")[2]
    stored = [
        *await addresses_of(store, tmp_path).list("default"),
        *await deliveries(store, tmp_path),
        *await Ledger(store).events(review.job_id),
    ]
    text = repr(stored)
    for hidden in (secret, "very-secret-path", token):
        assert hidden not in text


async def test_master_keys_rotate_with_the_secrets_of_addresses(store: Store, tmp_path: Path) -> None:
    async with receiver() as hook:
        secret = await add(store, tmp_path, name="ops", kind="webhook", url=hook.url)
        for _ in range(3):  # the file keeps the previous key, and older ones only while they are used
            held = masters(tmp_path)
            _, _, changed = await Keys(store, held).rotate_master("ann", Addresses(store, held))
            assert changed == 1
        await addresses_of(store, tmp_path).test("ops", "default", "ann")
        assert hook.arrivals[0].is_signed_by(secret)


async def test_one_process_sends_and_another_takes_over(store: Store, tmp_path: Path) -> None:
    async with receiver() as hook:
        await add(store, tmp_path, name="ops", kind="webhook", url=hook.url)
        async with sending(store, tmp_path, "w1"), sending(store, tmp_path, "w2"):
            asked = [await ask(store) for _ in range(10)]
            await ended(store, tmp_path, 10)
        async with sending(store, tmp_path, "w3"):
            asked.append(await ask(store))
            rows = await ended(store, tmp_path, 11)
    assert {row.attempts for row in rows} == {1}
    sent = [each.json["data"]["review_id"] for each in hook.arrivals]
    assert sorted(sent) == sorted(each.review_id for each in asked)


async def test_slow_address_does_not_delay_others(store: Store, tmp_path: Path) -> None:
    async with receiver() as slow, receiver() as quick:
        slow.answers = ["hang"] * 100
        await add(store, tmp_path, name="slow", kind="webhook", url=slow.url)
        await add(store, tmp_path, name="quick", kind="webhook", url=quick.url)
        async with sending(store, tmp_path):
            for _ in range(20):
                await ask(store)
            await quick.count(20)
            assert len(slow.arrivals) <= 4
