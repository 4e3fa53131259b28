"""The transactions on deliveries. An attempt is claimed before it is made, and its outcome is recorded after it."""

from __future__ import annotations

from typing import Any

import msgspec

from overnight.domain import Conflict, ErrorFacts, Event, Fenced, NotFound
from overnight.ledger import CURSOR, JOB, append, write_audit
from overnight.reviews import REVIEW, ReviewRow, public_state
from overnight.store import Unit

from .commands import SINK, Locks
from .outcomes import Delivered, NotDelivered, Outcome, OutcomeUnknown
from .rows import ADDRESS, DELIVERY, LINK, AddressRow, DeliveryRow, LinkRow, options_of

GIVE_UP_US = 86_400_000_000
LINK_LIFETIME_US = 7 * 86_400_000_000
"""How long a link lasts if its review has no end."""


class DeliveryAttempt(msgspec.Struct, frozen=True):
    """An attempt that this process may make now."""

    number: int
    address: AddressRow
    review: ReviewRow


class BeginDelivery(msgspec.Struct):
    """Command: claim a due delivery for one attempt, and store its link. Outcome: the attempt; None if there is none to make.

    `token_digest` is that of a new link; None for no links. Raises Fenced if another process serves the sink.
    """

    delivery_id: str
    job_id: str
    address_id: str
    review_id: str
    owner: str
    token_digest: bytes | None

    def locks(self) -> Locks:
        wanted: Locks = [(JOB, self.job_id), (REVIEW, self.review_id), (ADDRESS, self.address_id)]
        return [*wanted, (DELIVERY, self.delivery_id), (CURSOR, SINK)]

    def decide(self, unit: Unit) -> DeliveryAttempt | None:
        _check_owner(unit, self.owner)
        row, address = unit.get(DELIVERY, self.delivery_id), unit.get(ADDRESS, self.address_id)
        if row is None or row.state != "waiting" or row.due_at > unit.now:
            return None
        review = unit.get(REVIEW, self.review_id)
        if review is None or not is_answerable(review, unit.now):
            return _end(unit, row, None, "withdrawn", "the review was closed first")
        if address is None or address.state != "active":
            why = "removed" if address is None else address.state
            return _end(unit, row, address, "failed", f"the address is {why}")
        if unit.now >= row.give_up_at:
            return _end(unit, row, address, "failed", f"given up after a day: {row.problem}")
        row.state, row.owner, row.started_at = "sending", self.owner, unit.now
        row.attempts += 1
        unit.change(DELIVERY, row)
        if self.token_digest is not None and options_of(address).links != "none":
            link = LinkRow(
                token_digest=self.token_digest,
                tenant_id=row.tenant_id,
                review_id=row.review_id,
                review_digest=review.digest,
                address_id=row.address_id,
                delivery_id=row.delivery_id,
                created_at=unit.now,
                expires_at=review.expires_at or unit.now + LINK_LIFETIME_US,
            )
            unit.insert(LINK, link)
        return DeliveryAttempt(row.attempts, msgspec.structs.replace(address), msgspec.structs.replace(review))


class FinishDelivery(msgspec.Struct):
    """Command: record the outcome of an attempt. `delay_us` is the time until the next one. Outcome: the new state.

    A late report is kept: of an attempt that another process took for lost, only a delivery changes the row.
    """

    delivery_id: str
    job_id: str
    address_id: str
    number: int
    outcome: Outcome
    delay_us: int

    def locks(self) -> Locks:
        return [(JOB, self.job_id), (ADDRESS, self.address_id), (DELIVERY, self.delivery_id)]

    def decide(self, unit: Unit) -> str | None:
        row, address = unit.get(DELIVERY, self.delivery_id), unit.get(ADDRESS, self.address_id)
        if row is None or row.state == "delivered":
            return None
        outcome = self.outcome
        if isinstance(outcome, Delivered):
            _end(unit, row, address, "delivered", None)
            return row.state
        if row.state != "sending" or row.attempts != self.number:
            return None
        if isinstance(outcome, NotDelivered) and outcome.is_gone and address is not None:
            address.state, address.changed_at = "disabled", unit.now
            unit.change(ADDRESS, address)
        may_repeat = address is not None and options_of(address).repeat_safe
        if isinstance(outcome, OutcomeUnknown) and not may_repeat:
            _end(unit, row, address, "unknown", outcome.why)
        elif isinstance(outcome, NotDelivered) and outcome.is_final:
            _end(unit, row, address, "failed", outcome.why)
        elif unit.now + self.delay_us >= row.give_up_at:
            _end(unit, row, address, "failed", f"given up after a day: {outcome.why}")
        else:
            row.state, row.problem, row.due_at = "waiting", outcome.why, unit.now + self.delay_us
            unit.change(DELIVERY, row)
        return row.state


class RecoverDelivery(msgspec.Struct):
    """Command: end the attempt of a process that serves the sink no more. It is repeated, with the same id, only if the address
    permits it. Outcome: the new state. Raises Fenced."""

    delivery_id: str
    job_id: str
    address_id: str
    owner: str

    def locks(self) -> Locks:
        wanted: Locks = [(JOB, self.job_id), (ADDRESS, self.address_id)]
        return [*wanted, (DELIVERY, self.delivery_id), (CURSOR, SINK)]

    def decide(self, unit: Unit) -> str | None:
        _check_owner(unit, self.owner)
        row, address = unit.get(DELIVERY, self.delivery_id), unit.get(ADDRESS, self.address_id)
        if row is None or row.state != "sending":
            return None
        why = "the process ended during the delivery"
        if address is not None and options_of(address).repeat_safe:
            row.state, row.problem, row.due_at = "waiting", why, unit.now
            unit.change(DELIVERY, row)
        else:
            _end(unit, row, address, "unknown", why)
        return row.state


class RetryDelivery(msgspec.Struct):
    """Command: try again for another day. Raises NotFound; Conflict unless it failed or its outcome is unknown."""

    delivery_id: str
    tenant_id: str
    actor: str
    caller_key_id: str | None = None

    def locks(self) -> Locks:
        return [(DELIVERY, self.delivery_id)]

    def decide(self, unit: Unit) -> DeliveryRow:
        row = unit.get(DELIVERY, self.delivery_id)
        if row is None or (self.tenant_id and row.tenant_id != self.tenant_id):
            raise NotFound(f"delivery {self.delivery_id}")
        if row.state not in ("failed", "unknown"):
            raise Conflict(f"{row.delivery_id} is {row.state}; only failed and unknown deliveries are repeated")
        before = {"state": row.state}
        row.state, row.due_at, row.give_up_at, row.ended_at = "waiting", unit.now, unit.now + GIVE_UP_US, None
        unit.change(DELIVERY, row)
        write_audit(
            unit,
            "notification.retried",
            row.delivery_id,
            tenant_id=row.tenant_id,
            actor=self.actor,
            key_id=self.caller_key_id,
            before=before,
            after={"state": row.state},
        )
        return msgspec.structs.replace(row)


def is_answerable(review: ReviewRow, now: int) -> bool:
    """Whether a review waits for an answer."""
    return public_state(review) == "pending" and (review.expires_at is None or review.expires_at > now)


def _check_owner(unit: Unit, owner: str) -> None:
    cursor = unit.get(CURSOR, SINK)
    if cursor is None or cursor.owner != owner:
        raise Fenced(f"{SINK}: another process serves this sink")


def _end(unit: Unit, row: DeliveryRow, address: AddressRow | None, state: str, problem: str | None) -> None:
    """End a delivery, and record in the log of the job whether somebody was told."""
    row.state, row.problem, row.ended_at = state, problem, unit.now
    unit.change(DELIVERY, row)
    job = unit.get(JOB, row.job_id)
    if job is None or state == "withdrawn":
        return
    event = Event("notification_sent" if state == "delivered" else "notification_failed", attempt=job.attempt)
    detail: dict[str, Any] = {"review_id": row.review_id, "delivery_id": row.delivery_id, "attempts": row.attempts}
    if address is not None:
        detail |= {"address": address.name, "kind": address.kind}
    event.detail = detail
    if problem is not None:
        event.error = ErrorFacts(state, problem[:500])
    append(unit, job, event)
