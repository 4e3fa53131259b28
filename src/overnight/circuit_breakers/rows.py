"""Circuit breakers as rows that all processes share: locked, decided in memory, written with the fact that changed them."""

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
)
from overnight.store import Store, Table, Unit, records_of, statements

from .state import (
    Circuit,
    claim,
    count_for_tenant,
    counts_for_all,
    fail,
    release,
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
    """What a call says of its target. `why` is None when it answered; `at` is when, in microseconds.

    `call` names it where it was made while the circuit was open: as its probe, or as a last resort. `own` is the account of the
    caller's own circuit (see `caller_account`); without one, the mark is for the circuit of all alone.
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
        """The rows that it may change, the caller's own circuit first."""
        shared = (self.account, self.model)
        if self.own is None:
            return [shared]
        of_tenant = tenant_account(self.account, self.own)
        counted = [] if of_tenant is None else [(of_tenant, self.model)]
        return [(self.own, self.model), shared, *counted]


def note(unit: Unit, job: JobRow, mark: BreakerUpdate, said: Event) -> None:
    """Count the mark, under the locks of job and circuit; `circuit_opened` and `circuit_closed` go into the job's log.
    `said` is the event of the call, which these name."""
    if mark.why is None:
        _close(unit, job, mark, said)
        return
    if mark.own is None:
        _count(unit, job, mark, said, (mark.account, mark.model), mark.breaker)
        return
    own = _count(unit, job, mark, said, (mark.own, mark.model), mark.breaker)
    shared = unit.get(CIRCUIT, (mark.account, mark.model))
    is_open = shared is not None and shared.opened_at is not None
    if is_open or (counts_for_all(own, mark.at, mark.breaker) and _count_for_tenant(unit, mark)):
        _count(unit, job, mark, said, (mark.account, mark.model), shared_breaker(mark.breaker))


def _close(unit: Unit, job: JobRow, mark: BreakerUpdate, said: Event) -> None:
    """The target answered: nobody need be kept from it."""
    found = [circuit for key in mark.keys if (circuit := unit.get(CIRCUIT, key)) is not None]
    since = min((each.opened_at for each in found if each.opened_at is not None), default=None)
    if since is not None:
        for circuit in found:  # with what a caller's own has counted, what it has counted for all is void
            unit.delete(CIRCUIT, circuit)
        decision = {"why": "the provider answered", "open_for_ms": (unit.now - since) // 1000}
        append(unit, job, _event("circuit_closed", mark, said, decision))


def _count(unit: Unit, job: JobRow, mark: BreakerUpdate, said: Event, key: Key, breaker: Breakers) -> Circuit:
    circuit = unit.get(CIRCUIT, key)
    is_new = circuit is None
    circuit = circuit or Circuit(account=key[0], model=key[1])
    opened = fail(circuit, mark.at, breaker, mark.why or "", mark.retry_after_ms, mark.call)
    if is_new:
        unit.insert(CIRCUIT, circuit)
    else:
        unit.change(CIRCUIT, circuit)
    if opened:
        append(unit, job, _event("circuit_opened", mark, said, _opening(circuit, mark.breaker)))
    return circuit


def _count_for_tenant(unit: Unit, mark: BreakerUpdate) -> bool:
    """Whether the failure is within its tenant's part of the circuit of all; counted then."""
    account = tenant_account(mark.account, mark.own or "")
    if account is None:
        return True
    key = (account, mark.model)
    found = unit.get(CIRCUIT, key)
    row = found or Circuit(account=key[0], model=key[1])
    counts = count_for_tenant(row, mark.at, mark.breaker)
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


def _event(name: str, mark: BreakerUpdate, said: Event, decision: dict[str, Any]) -> Event:
    event = Event(name, kind="model", provider=said.provider, model=mark.model, call_id=said.call_id)
    event.decision = {"target": f"{mark.account}/{mark.model}", **decision}
    event.agent_id, event.step, event.route, event.attempt = said.agent_id, said.step, said.route, said.attempt
    return event


class Note(msgspec.Struct):
    """A command: the mark of a call that goes on, in the log of its job."""

    job_id: str
    mark: BreakerUpdate
    said: Event

    def locks(self) -> Locks:
        return [(JOB, self.job_id), *((CIRCUIT, key) for key in self.mark.keys)]

    def decide(self, unit: Unit) -> None:
        note(unit, locked_job(unit, self.job_id), self.mark, self.said)


class ClaimProbe(msgspec.Struct):
    """A command: let this call be the probe. The outcome is whether it may, and the circuit as it is now (None: closed)."""

    key: Key
    call: str
    until: int

    def locks(self) -> Locks:
        return [(CIRCUIT, self.key)]

    def decide(self, unit: Unit) -> tuple[bool, Circuit | None]:
        circuit = unit.get(CIRCUIT, self.key)
        if circuit is None or circuit.opened_at is None:
            return True, None
        granted = claim(circuit, unit.now, self.call, self.until)
        if granted:
            unit.change(CIRCUIT, circuit)
        return granted, msgspec.structs.replace(circuit)


class ReleaseProbe(msgspec.Struct):
    """A command: the probe came to nothing."""

    key: Key
    call: str

    def locks(self) -> Locks:
        return [(CIRCUIT, self.key)]

    def decide(self, unit: Unit) -> None:
        circuit = unit.get(CIRCUIT, self.key)
        if circuit is not None and release(circuit, self.call):
            unit.change(CIRCUIT, circuit)


class CloseCircuit(msgspec.Struct):
    """A command: a person closes it. The outcome is what it was, None where it was closed and nothing was counted."""

    key: Key

    def locks(self) -> Locks:
        return [(CIRCUIT, self.key)]

    def decide(self, unit: Unit) -> Circuit | None:
        circuit = unit.get(CIRCUIT, self.key)
        if circuit is not None:
            unit.delete(CIRCUIT, circuit)
        return circuit


class ForgetCircuits(msgspec.Struct):
    """A command: drop what says nothing any more: closed ones unchanged since then, open ones that nobody asks for."""

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
    """All that failed lately or are open, by provider and model. Raises StoreUnavailable."""
    rows = await store.read(SQL["list_open_circuits" if only_open else "list_circuits"], {})
    return records_of(Circuit, rows)


async def forget_circuits(store: Store, closed_before: int, open_before: int) -> None:
    """See `ForgetCircuits`; times in microseconds. Raises StoreUnavailable."""
    values = {"closed_before": closed_before, "open_before": open_before}
    rows = await store.read(SQL["list_stale_circuits"], values)
    if rows:
        await store.commit(ForgetCircuits([(row[0], row[1]) for row in rows], closed_before, open_before))
