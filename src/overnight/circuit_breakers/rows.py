"""The shared rows of circuit breakers. A row is locked, decided in memory, and written with the event that changed it."""

from __future__ import annotations

from typing import Any

import msgspec

from overnight.domain import Event
from overnight.domain.policies import Breakers
from overnight.ledger import (
    JOB,
    JobRow,
    append,
    locked_job,
    write_audit,
)
from overnight.store import Store, Table, Unit, records_of, statements

from .state import (
    Circuit,
    claim_probe,
    count_failure,
    count_for_tenant,
    counts_for_all,
    release_probe,
    shared_breaker,
    tenant_account,
)

SQL = statements("overnight.circuit_breakers")
Key = tuple[str, str]
Locks = list[tuple[Any, Any]]


def key_of(circuit: Circuit) -> Key:
    return (circuit.account, circuit.model)


CIRCUIT: Table[Circuit] = Table(
    35,
    Circuit,
    key_of,
    lock=SQL["lock_circuit"],
    insert=SQL["insert_circuit"],
    update=SQL["update_circuit"],
    delete=SQL["delete_circuit"],
)


class BreakerUpdate(msgspec.Struct, frozen=True):
    """The result of one call, for the circuits of its target.

    - `why`: the failure; None after a success.
    - `at`: the time in microseconds.
    - `call`: the call id if the circuit was open, so that the call was its probe or a last resort.
    - `own`: the account of the caller's own circuit (see `caller_account`); None: only the shared circuit changes.
    """

    account: str
    model: str
    at: int
    breaker: Any
    why: str | None = None
    retry_after_ms: int | None = None
    call: str | None = None
    own: str | None = None

    @property
    def keys(self) -> list[Key]:
        """The keys of the rows that may change; the caller's own circuit comes first."""
        shared = (self.account, self.model)
        if self.own is None:
            return [shared]
        of_tenant = tenant_account(self.account, self.own)
        counted = [] if of_tenant is None else [(of_tenant, self.model)]
        return [(self.own, self.model), shared, *counted]


def apply_update(unit: Unit, job: JobRow, update: BreakerUpdate, call_event: Event) -> None:
    """Apply an update under the locks of the job and the circuits.

    `circuit_opened` and `circuit_closed` are appended to the job's log. They repeat the ids of `call_event`, the
    event of the call.
    """
    if update.why is None:
        _close(unit, job, update, call_event)
        return
    if update.own is None:
        _count(unit, job, update, call_event, (update.account, update.model), update.breaker)
        return
    own = _count(unit, job, update, call_event, (update.own, update.model), update.breaker)
    shared = unit.get(CIRCUIT, (update.account, update.model))
    is_open = shared is not None and shared.opened_at is not None
    if is_open or (counts_for_all(own, update.at, update.breaker) and _count_for_tenant(unit, update)):
        _count(unit, job, update, call_event, (update.account, update.model), shared_breaker(update.breaker))


def _close(unit: Unit, job: JobRow, update: BreakerUpdate, call_event: Event) -> None:
    """Close the circuits of a target that answered."""
    found = [circuit for key in update.keys if (circuit := unit.get(CIRCUIT, key)) is not None]
    since = min((each.opened_at for each in found if each.opened_at is not None), default=None)
    if since is not None:
        for circuit in found:  # a success also resets the counts of the caller's own circuit
            unit.delete(CIRCUIT, circuit)
        decision = {"why": "the provider answered", "open_for_ms": (unit.now - since) // 1000}
        append(unit, job, _event("circuit_closed", update, call_event, decision))


def _count(unit: Unit, job: JobRow, update: BreakerUpdate, call_event: Event, key: Key, breaker: Breakers) -> Circuit:
    circuit = unit.get(CIRCUIT, key)
    is_new = circuit is None
    circuit = circuit or Circuit(account=key[0], model=key[1])
    opened = count_failure(circuit, update.at, breaker, update.why or "", update.retry_after_ms, update.call)
    if is_new:
        unit.insert(CIRCUIT, circuit)
    else:
        unit.change(CIRCUIT, circuit)
    if opened:
        append(unit, job, _event("circuit_opened", update, call_event, _opening(circuit, update.breaker)))
    return circuit


def _count_for_tenant(unit: Unit, update: BreakerUpdate) -> bool:
    """Count a failure for the tenant. Returns whether it is within the tenant's share of the shared circuit."""
    account = tenant_account(update.account, update.own or "")
    if account is None:
        return True
    key = (account, update.model)
    found = unit.get(CIRCUIT, key)
    row = found or Circuit(account=key[0], model=key[1])
    counts = count_for_tenant(row, update.at, update.breaker)
    if found is None:
        unit.insert(CIRCUIT, row)
    else:
        unit.change(CIRCUIT, row)
    return counts


def _opening(circuit: Circuit, breaker: Breakers) -> dict[str, Any]:
    again = circuit.openings > 1
    seconds = breaker.window_ms / 1000
    why = "the probe failed" if again else f"{circuit.failures} failures within {seconds:g} s"
    return {
        "why": f"{why}; the last one: {circuit.why}",
        "open_until_at": circuit.open_until,
        "opening": circuit.openings,
        "for": "all" if circuit.caller is None else circuit.caller[1] or f"tenant {circuit.caller[0]}",
    }


def _event(name: str, update: BreakerUpdate, call_event: Event, decision: dict[str, Any]) -> Event:
    event = Event(name, kind="model", provider=call_event.provider, model=update.model, call_id=call_event.call_id)
    event.decision = {"target": f"{update.account}/{update.model}", **decision}
    event.agent_id, event.step, event.route, event.attempt = (
        call_event.agent_id,
        call_event.step,
        call_event.route,
        call_event.attempt,
    )
    return event


class RecordBreakerUpdate(msgspec.Struct):
    """Command: apply the update of a call that is still running, in the log of its job."""

    job_id: str
    update: BreakerUpdate
    call_event: Event

    def locks(self) -> Locks:
        return [(JOB, self.job_id), *((CIRCUIT, key) for key in self.update.keys)]

    def decide(self, unit: Unit) -> None:
        apply_update(unit, locked_job(unit, self.job_id), self.update, self.call_event)


class ClaimProbe(msgspec.Struct):
    """Command: claim the probe for a call. Outcome: whether it was granted, and the current circuit (None: closed)."""

    key: Key
    call: str
    until: int

    def locks(self) -> Locks:
        return [(CIRCUIT, self.key)]

    def decide(self, unit: Unit) -> tuple[bool, Circuit | None]:
        circuit = unit.get(CIRCUIT, self.key)
        if circuit is None or circuit.opened_at is None:
            return True, None
        granted = claim_probe(circuit, unit.now, self.call, self.until)
        if granted:
            unit.change(CIRCUIT, circuit)
        return granted, msgspec.structs.replace(circuit)


class ReleaseProbe(msgspec.Struct):
    """Command: release the probe without a result."""

    key: Key
    call: str

    def locks(self) -> Locks:
        return [(CIRCUIT, self.key)]

    def decide(self, unit: Unit) -> None:
        circuit = unit.get(CIRCUIT, self.key)
        if circuit is not None and release_probe(circuit, self.call):
            unit.change(CIRCUIT, circuit)


class CloseCircuit(msgspec.Struct):
    """Command: close a circuit by hand. Outcome: the circuit before; None if it was closed without counted failures."""

    key: Key
    actor: str

    def locks(self) -> Locks:
        return [(CIRCUIT, self.key)]

    def decide(self, unit: Unit) -> Circuit | None:
        circuit = unit.get(CIRCUIT, self.key)
        if circuit is not None:
            unit.delete(CIRCUIT, circuit)
            write_audit(
                unit,
                "circuit.closed",
                circuit.target,
                tenant_id=circuit.tenant_id or "",
                actor=self.actor,
                before={"state": circuit.state(unit.now), "failures": circuit.failures},
                after={"state": "closed", "failures": 0},
            )
        return circuit


class ForgetCircuits(msgspec.Struct):
    """Command: delete stale rows: closed circuits unchanged since `closed_before`, open ones unused since
    `open_before`."""

    keys: list[Key]
    closed_before: int
    open_before: int

    def locks(self) -> Locks:
        return [(CIRCUIT, key) for key in self.keys]

    def decide(self, unit: Unit) -> None:
        for key in self.keys:
            circuit = unit.get(CIRCUIT, key)
            if circuit is None:
                continue
            is_open = circuit.opened_at is not None
            last, before = max(circuit.changed_at, circuit.open_until), self.open_before
            if (last if is_open else circuit.changed_at) < (before if is_open else self.closed_before):
                unit.delete(CIRCUIT, circuit)


async def list_circuits(store: Store, *, only_open: bool = False) -> list[Circuit]:
    """Circuits that are open or have recent failures, by provider and model. Raises StoreUnavailable."""
    rows = await store.read(SQL["list_open_circuits" if only_open else "list_circuits"], {})
    return records_of(Circuit, rows)


async def forget_circuits(store: Store, closed_before: int, open_before: int) -> None:
    """Delete stale circuits (see `ForgetCircuits`). Times are in microseconds. Raises StoreUnavailable."""
    values = {"closed_before": closed_before, "open_before": open_before}
    rows = await store.read(SQL["list_stale_circuits"], values)
    if rows:
        await store.commit(ForgetCircuits([(row[0], row[1]) for row in rows], closed_before, open_before))
