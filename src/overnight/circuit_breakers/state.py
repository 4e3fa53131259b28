"""The circuit of one target (an account at a provider, and a model): closed, open, half-open.

Pure: times come from outside, in microseconds.

    closed ── `failures` within `window_ms` ──▶ open ── its time is over ──▶ half-open ── the probe succeeds ──▶ closed
                                                 ▲                              │
                                                 └── the probe fails: twice as long, up to the most ┘

Half-open lets one call through, the probe. It is claimed with an end, so that a prober that died does not block it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from overnight.domain import iso_utc
from overnight.domain.policies import Breakers

State = Literal["closed", "open", "half_open"]
LONGEST_WAIT_MS = 3_600_000
"""Of what a provider asks for, unless `max_cool_down_ms` is longer: a mistaken header must not switch a target off for a day."""

MARK_OF_CALLER = "&"
"""No identifier has it."""

_times = msgspec.json.Decoder(list[int]).decode


class Circuit(msgspec.Struct):
    """As it is stored. `failed_at` is JSON: the times of the failures that count; `not_before` is what the provider asked for.

    `opened_at` is None while closed. `openings` counts since it was last closed. `probe` is the call that may try.
    `account` is the provider, `provider@tenant` where a tenant calls with a key of its own. After an `&` comes the caller whose
    failures alone the row counts, and whom alone it keeps out: its tenant and its key (see `caller_account`). A row with a tenant
    and no further `&` only counts (see `tenant_account`).
    """

    account: str
    model: str
    failed_at: str = "[]"
    not_before: int = 0
    opened_at: int | None = None
    open_until: int = 0
    openings: int = 0
    probe: str | None = None
    probe_until: int = 0
    why: str = ""
    changed_at: int = 0

    @property
    def target(self) -> str:
        return f"{self.account.partition(MARK_OF_CALLER)[0]}/{self.model}"

    @property
    def caller(self) -> tuple[str, str] | None:
        """The tenant and the key (empty: without one) that it is for; None where it is for all."""
        _, mark, caller = self.account.partition(MARK_OF_CALLER)
        tenant_id, _, key_id = caller.partition(MARK_OF_CALLER)
        return (tenant_id, key_id) if mark else None

    @property
    def tenant_id(self) -> str | None:
        """Whose it is; None where it is of the house."""
        shared = self.account.partition(MARK_OF_CALLER)[0]
        return self.caller[0] if self.caller else shared.partition("@")[2] or None

    @property
    def failures(self) -> int:
        return len(_times(self.failed_at))

    def state(self, now: int) -> State:
        if self.opened_at is None:
            return "closed"
        return "open" if now < self.open_until else "half_open"

    @property
    def blocked_until(self) -> int:
        """From when on a call may try; 0 while closed."""
        return 0 if self.opened_at is None else max(self.open_until, self.probe_until)


def caller_account(account: str, tenant_id: str, key_id: str | None) -> str:
    """The account of a caller's own circuit: what one caller's requests run into need not be the target's fault."""
    return f"{account}{MARK_OF_CALLER}{tenant_id}{MARK_OF_CALLER}{key_id or ''}"


def shared_breaker(breaker: Breakers) -> Breakers:
    return msgspec.structs.replace(breaker, failures=max(breaker.failures, 2))


def tenant_account(account: str, own: str) -> str | None:
    """The account of the row that counts what a tenant's callers have contributed to the circuit of all. It opens for nobody.
    None where the target's account is the tenant's own: then all callers are of that tenant."""
    return None if "@" in account else own.rpartition(MARK_OF_CALLER)[0]


def counts_for_all(own: Circuit, now: int, breaker: Breakers) -> bool:
    """Does a failure at `now`, counted in its caller's own circuit already, count for the circuit of all too? The first ones
    within the window do, up to half of those that open it: the others must be other callers'. Probes of its own never do.

    Where there is a row of its tenant, `count_for_tenant` must agree."""
    if own.openings > 1 or own.opened_at not in (None, now):
        return False
    since = now - breaker.window_ms * 1000
    return sum(since < each <= now for each in _times(own.failed_at)) <= most_of_one(breaker)


def most_of_one(breaker: Breakers) -> int:
    """How many failures of one key, and of one tenant, count for all within a window."""
    return (breaker.failures + 1) // 2


def count_for_tenant(row: Circuit, now: int, breaker: Breakers) -> bool:
    """Count a failure at `now` in the row of its tenant. False where the tenant has contributed its part to the circuit of all
    within the window, with whatever keys."""
    since = now - breaker.window_ms * 1000
    times = [each for each in _times(row.failed_at) if each > since]
    row.changed_at = max(row.changed_at, now)
    if len(times) >= most_of_one(breaker):
        return False
    row.failed_at = msgspec.json.encode(sorted([*times, now])).decode()
    return True


def fail(
    circuit: Circuit, now: int, breaker: Breakers, why: str, retry_after_ms: int | None = None, call: str | None = None
) -> bool:
    """A call failed in a way that speaks of the target. `call` is its name if it was the probe. True when this opened the
    circuit, also once more. What the circuit is open for already is never shortened."""
    if retry_after_ms:
        longest = max(LONGEST_WAIT_MS, breaker.max_cool_down_ms)
        circuit.not_before = max(circuit.not_before, now + min(retry_after_ms, longest) * 1000)
    circuit.changed_at = max(circuit.changed_at, now)
    if circuit.opened_at is None:
        times = sorted([*_times(circuit.failed_at), now])
        since = times[-1] - breaker.window_ms * 1000
        times = [each for each in times if each > since][-breaker.failures :]
        circuit.failed_at = msgspec.json.encode(times).decode()
        if len(times) < breaker.failures:
            return False
        circuit.opened_at = now
    else:
        circuit.open_until = max(circuit.open_until, circuit.not_before)
        if call is None or call != circuit.probe:  # it was under way when the circuit opened, and says nothing new
            return False
    circuit.openings += 1
    circuit.why = why
    circuit.open_until = max(
        circuit.open_until, now + cool_down_ms(circuit.openings, breaker) * 1000, circuit.not_before
    )
    circuit.probe, circuit.probe_until = None, 0
    return True


def cool_down_ms(opening: int, breaker: Breakers) -> int:
    """How long the circuit stays open the `opening`th time in a row (from 1)."""
    return min(breaker.max_cool_down_ms, breaker.cool_down_ms << min(opening - 1, 40))


def claim(circuit: Circuit, now: int, call: str, until: int) -> bool:
    """Let `call` be the probe, at most `until` then. False where the circuit is not half-open, or another one probes."""
    if circuit.opened_at is None or now < circuit.blocked_until:
        return False
    circuit.probe, circuit.probe_until, circuit.changed_at = call, until, max(circuit.changed_at, now)
    return True


def release(circuit: Circuit, call: str) -> bool:
    """The probe `call` came to nothing that speaks of the target: another one may try. True where it still was the probe."""
    if circuit.probe != call:
        return False
    circuit.probe, circuit.probe_until = None, 0
    return True


def public_circuit(circuit: Circuit, now: int) -> dict[str, Any]:
    """With stable public names; times as text in UTC."""
    state = circuit.state(now)
    return {
        "target": circuit.target,
        "provider": circuit.account.partition(MARK_OF_CALLER)[0].partition("@")[0],
        "tenant_id": circuit.tenant_id,
        "for_all": circuit.caller is None,
        "key_id": (circuit.caller[1] or None) if circuit.caller else None,
        "model": circuit.model,
        "state": state,
        "failures": circuit.failures,
        "openings": circuit.openings,
        "opened_at": iso_utc(circuit.opened_at) if circuit.opened_at is not None else None,
        "open_until_at": iso_utc(circuit.open_until) if circuit.opened_at is not None else None,
        "probing": circuit.probe is not None and now < circuit.probe_until,
        "why": circuit.why or None,
    }
