"""Correct the cost of a call that was booked at a bound, and wake the jobs that its budgets stopped."""

from typing import Any

import msgspec

from overnight.domain import BadInput, Conflict, Event, NotFound, iso_utc, micro_to_usd
from overnight.ledger import JOB, JobRow, append, count_usage, locked_job, write_audit
from overnight.store import Store, Unit, records_of

from .rows import BOUND, SQL, BoundRow
from .settlement import Booked, budget_locks, decode_scopes, rebook
from .top_ups import wake_corrected

LATE_ANSWER, OPERATOR, INVOICE = "late_answer", "operator", "invoice"
SOURCES = (OPERATOR, INVOICE)
"""Allowed sources of a manual correction."""
MAX_LISTED = 1000


class CostEstimate(msgspec.Struct, frozen=True, omit_defaults=True):
    """The attribution of a call, stored with its reservation for later events."""

    model: str
    provider: str
    route: str
    agent_id: str | None = None
    step: str | None = None
    task_id: str | None = None
    session_id: str | None = None
    workflow: str | None = None
    name: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    about: str | None = None

    def event(self, name: str, call_id: str) -> Event:
        """An event of the call with the attribution of its `model_called`."""
        event = Event(name, call_id=call_id, kind="model", model=self.model, provider=self.provider, route=self.route)
        event.agent_id, event.step, event.task_id = self.agent_id, self.step, self.task_id
        event.session_id, event.workflow, event.name = self.session_id, self.workflow, self.name
        event.trace_id, event.span_id, event.about = self.trace_id, self.span_id, self.about
        return event


_encode = msgspec.json.Encoder().encode
decode_estimate = msgspec.json.Decoder(CostEstimate).decode


def estimate_of(called: Event) -> str:
    """The attribution of a `model_called` event, as JSON."""
    estimate = CostEstimate(
        model=called.model or "",
        provider=called.provider or "",
        route=called.route or "",
        agent_id=called.agent_id,
        step=called.step,
        task_id=called.task_id,
        session_id=called.session_id,
        workflow=called.workflow,
        name=called.name,
        trace_id=called.trace_id,
        span_id=called.span_id,
        about=called.about,
    )
    return _encode(estimate).decode()


def corrected(unit: Unit, job: JobRow, row: BoundRow, now: Booked, tokens: int | None, source: str) -> Event:
    """Rebook a call in its budgets and rollups. Returns the event `cost_corrected`, not yet appended.

    `tokens` (input and output together) of None leaves them unchanged.
    """
    was = Booked(row.cost_microusd, row.bound_microusd)
    change = rebook(unit, row, now, row.tokens if tokens is None else tokens, source)
    estimate = decode_estimate(row.call)
    count_usage(
        unit,
        job,
        estimate.agent_id,
        estimate.model,
        (0, 0, 0),
        change.cost_microusd,
        change.bound_microusd,
        calls=0,
        day=row.day,
    )
    event = estimate.event("cost_corrected", row.call_id)
    event.cost_microusd, event.bound_microusd = row.cost_microusd, row.bound_microusd
    event.detail = {
        "source": source,
        "was_cost_microusd": was.cost_microusd,
        "was_bound_microusd": was.bound_microusd,
        "booked_at": row.booked_at,
    }
    return event


class Correction(msgspec.Struct, frozen=True):
    """The result of a correction. `most_microusd` is the original bound; `changed` is False if the booking was the
    same."""

    call_id: str
    job_id: str
    tenant_id: str
    source: str
    cost_microusd: int
    was: Booked
    most_microusd: int
    changed: bool = True
    woken: list[str] = []

    def public(self) -> dict[str, Any]:
        """The result in public JSON names."""
        return {
            "call_id": self.call_id,
            "job_id": self.job_id,
            "tenant_id": self.tenant_id,
            "source": self.source,
            "cost_usd": micro_to_usd(self.cost_microusd),
            "was_cost_usd": micro_to_usd(self.was.cost_microusd),
            "was_bound_usd": micro_to_usd(self.was.bound_microusd),
            "above_bound": self.cost_microusd > self.most_microusd,
            "changed": self.changed,
            "woken": self.woken,
        }


class CorrectCost(msgspec.Struct):
    """Command: book the known cost of a call. A later correction replaces an earlier one; an equal one changes
    nothing."""

    row: BoundRow
    cost_microusd: int
    tokens: int | None
    source: str
    actor: str
    why: str
    key_id: str | None = None

    def locks(self) -> list[tuple[Any, Any]]:
        row = self.row
        return [(JOB, row.job_id), *budget_locks(row.tenant_id, row.scopes), (BOUND, row.call_id)]

    def decide(self, unit: Unit) -> Correction:
        row = unit.get(BOUND, self.row.call_id)
        if row is None:
            raise NotFound(f"call {self.row.call_id} with an upper bound in this tenant")
        was = Booked(row.cost_microusd, row.bound_microusd)
        same = (row.source, row.cost_microusd, row.bound_microusd) == (self.source, self.cost_microusd, 0)
        if not same or self.tokens not in {None, row.tokens}:
            job = locked_job(unit, row.job_id)
            event = corrected(unit, job, row, Booked(self.cost_microusd, 0), self.tokens, self.source)
            event.actor, event.attempt, event.decision = self.actor, job.attempt, {"why": self.why}
            append(unit, job, event)
            self._audit(unit, row, was)
            same = False
        return Correction(
            call_id=row.call_id,
            job_id=row.job_id,
            tenant_id=row.tenant_id,
            source=self.source,
            cost_microusd=row.cost_microusd,
            was=was,
            most_microusd=row.booked_microusd,
            changed=not same,
        )

    def _audit(self, unit: Unit, row: BoundRow, was: Booked) -> None:
        write_audit(
            unit,
            "cost.settled",
            row.call_id,
            tenant_id=row.tenant_id,
            actor=self.actor,
            key_id=self.key_id,
            before={"cost_usd": micro_to_usd(was.cost_microusd), "bound_usd": micro_to_usd(was.bound_microusd)},
            after={
                "cost_usd": micro_to_usd(row.cost_microusd),
                "bound_usd": 0.0,
                "source": self.source,
                "why": self.why,
            },
        )


async def correct_cost(
    store: Store,
    tenant_id: str,
    call_id: str,
    cost_microusd: int,
    *,
    actor: str,
    why: str,
    source: str = OPERATOR,
    tokens: int | None = None,
    key_id: str | None = None,
) -> Correction:
    """Book the known cost of a call that was booked at a bound, and wake the jobs that wait for its budgets.

    Args:
        store: the store.
        tenant_id: the tenant of the call.
        call_id: the call.
        cost_microusd: the cost in micro-dollars.
        actor: the author of the correction.
        why: its reason.
        source: a value of `SOURCES`; default: operator.
        tokens: input and output together; default None: unchanged.
        key_id: the API key of the request.

    Raises:
        BadInput: a negative value, or an unknown source.
        Conflict: the call is still in flight.
        NotFound: the call is unknown, or was settled at a known cost.
    """
    if cost_microusd < 0 or (tokens or 0) < 0:
        raise BadInput("cost and tokens must not be negative")
    if source not in SOURCES:
        raise BadInput(f"source: {source[:40]!r} is not one of {', '.join(SOURCES)}")
    row = await _read(store, tenant_id, call_id)
    if row is None:
        if await store.read(SQL["read_reservation"], {"call_id": call_id, "tenant_id": tenant_id}):
            raise Conflict(f"{call_id} is still in flight; it is settled when its response arrives or is lost")
        raise NotFound(
            f"call {call_id} of tenant {tenant_id} with an upper bound. It is unknown or already settled at a known cost;"
            " `overnight budget bounds` lists the calls of unknown cost"
        )
    done = await store.commit(
        CorrectCost(
            row=row,
            cost_microusd=cost_microusd,
            tokens=tokens,
            source=source,
            actor=actor,
            why=why,
            key_id=key_id,
        )
    )
    return msgspec.structs.replace(done, woken=await wake_corrected(store, row)) if done.changed else done


async def _read(store: Store, tenant_id: str, call_id: str) -> BoundRow | None:
    rows = await store.read(SQL["read_bound"], {"call_id": call_id, "tenant_id": tenant_id})
    return records_of(BoundRow, rows)[0] if rows else None


async def list_bounds(store: Store, *, tenant_id: str = "", job_id: str = "", limit: int = 50) -> list[BoundRow]:
    """Calls that are booked at a bound and not corrected yet, newest first. An empty tenant selects all tenants."""
    values = {"tenant_id": tenant_id, "job_id": job_id, "most": min(limit, MAX_LISTED)}
    return records_of(BoundRow, await store.read(SQL["list_bounds"], values))


def public_bound(row: BoundRow) -> dict[str, Any]:
    """A call that is booked at a bound, in public JSON names."""
    estimate = decode_estimate(row.call)
    return {
        "call_id": row.call_id,
        "job_id": row.job_id,
        "tenant_id": row.tenant_id,
        "agent_id": estimate.agent_id,
        "model": estimate.model,
        "provider": estimate.provider,
        "why": row.why,
        "cost_usd": micro_to_usd(row.cost_microusd),
        "bound_usd": micro_to_usd(row.bound_microusd),
        "booked_at": iso_utc(row.booked_at),
        "budgets": [{"scope": scope, "row": scope_id} for scope, scope_id in decode_scopes(row.scopes)],
    }
