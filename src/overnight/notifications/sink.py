"""The sink of the feed that fills the outbox: a delivery for each new review and each address of its tenant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from overnight.domain import Event
from overnight.ledger import FeedEvent, FeedIdentity, FeedMark, FeedPosition
from overnight.store import Store, Table, Unit, records_of

from .commands import SINK
from .deliveries import GIVE_UP_US
from .dispatcher import Dispatcher
from .messages import delivery_id_of
from .rows import DELIVERY, SQL, AddressRow, DeliveryRow, options_of
from .sender import MessageSender


class NotificationSink:
    """Writes deliveries with the cursor, and makes them while this process serves the sink.

    Args:
        owner: the name of this process.
        public_url: where people reach the gateway; without one, messages have no links.
    """

    name = SINK

    def __init__(self, store: Store, sender: MessageSender, owner: str, public_url: str = "") -> None:
        self._dispatcher = Dispatcher(store, sender, owner, public_url)

    async def check(self, feed: FeedIdentity) -> None:
        """Nothing stands outside of the database."""

    async def opened(self, feed: FeedIdentity) -> FeedMark | None:  # noqa: ARG002
        await self._dispatcher.recover()
        self._dispatcher.start()
        return None

    def close(self) -> None:
        self._dispatcher.stop()

    async def deliver(self, events: Sequence[FeedEvent], done: FeedPosition) -> None:
        """Nothing is sent before its row is committed."""

    def locks(self, events: Sequence[FeedEvent]) -> Iterable[tuple[Table[Any], Any]]:  # noqa: ARG002
        return ()

    def write(self, unit: Unit, events: Sequence[FeedEvent]) -> None:
        asked = [each for each in events if _is_new_review(each.event.facts)]
        if not asked:
            return
        by_tenant: dict[str, list[AddressRow]] = {}
        for each in asked:
            tenant_id, detail = each.event.tenant_id, each.event.facts.detail or {}
            if tenant_id not in by_tenant:
                rows = unit.query(SQL["list_addresses"], {"tenant_id": tenant_id})
                by_tenant[tenant_id] = records_of(AddressRow, rows)
            for address in by_tenant[tenant_id]:
                kinds = options_of(address).kinds
                if address.created_at > each.event.at or address.state != "active":
                    continue
                if not kinds or detail.get("review") in kinds:
                    row = _delivery(str(detail["review_id"]), each, address, unit.now)
                    unit.insert(DELIVERY, row)
        self._dispatcher.wake()


def _is_new_review(facts: Event) -> bool:
    detail = facts.detail or {}
    return facts.event == "review_requested" and "review_id" in detail and not detail.get("renewed")


def _delivery(review_id: str, asked: FeedEvent, address: AddressRow, now: int) -> DeliveryRow:
    return DeliveryRow(
        delivery_id=delivery_id_of(review_id, address.address_id),
        tenant_id=asked.event.tenant_id,
        address_id=address.address_id,
        review_id=review_id,
        job_id=asked.event.job_id,
        state="waiting",
        attempts=0,
        created_at=now,
        due_at=now,
        give_up_at=now + GIVE_UP_US,
    )
