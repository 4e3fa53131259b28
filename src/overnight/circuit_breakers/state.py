"""The circuit of one target, which is a provider account and a model: closed, open, half-open.

Pure: the caller passes the time, in microseconds.

    closed ── `failures` within `window_ms` ──▶ open ── cool-down ends ──▶ half-open ── the probe succeeds ──▶ closed
                                                 ▲                           │
                                                 └── the probe fails: the cool-down doubles, up to its maximum ┘

Half-open admits one call, the probe. The claim of a probe expires, so that a crashed process does not block the
circuit.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from overnight.domain import iso_utc
from overnight.domain.policies import Breakers

State = Literal["closed", "open", "half_open"]
MAX_RETRY_AFTER_MS = 3_600_000
"""The maximum of a Retry-After, unless `max_cool_down_ms` is longer: a wrong header must not block a target for a day."""

CALLER_SEPARATOR = "&"
"""Separates account, tenant and key. No identifier contains it."""

_times = msgspec.json.Decoder(list[int]).decode


class Circuit(msgspec.Struct):
    """A stored circuit.

    - `account`: the provider, or `provider@tenant` if the tenant has its own provider key. The circuit of one caller
    appends
      `&tenant&key` (see `caller_account`). A row with only `&tenant` counts failures and never opens (see
          `tenant_account`).
    - `failed_at`: the times of counted failures, as JSON.
    - `not_before`: the earliest next call, as requested by the provider.
    - `opened_at`: None while closed; `openings`: consecutive openings since it was last closed.
    - `probe`, `probe_until`: the call that holds the probe, and the end of its claim.
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
        return f"{self.account.partition(CALLER_SEPARATOR)[0]}/{self.model}"

    @property
    def caller(self) -> tuple[str, str] | None:
        """The tenant and key (empty: no key) of a caller's own circuit; None for the shared circuit."""
        _, update, caller = self.account.partition(CALLER_SEPARATOR)
        tenant_id, _, key_id = caller.partition(CALLER_SEPARATOR)
        return (tenant_id, key_id) if update else None

    @property
    def tenant_id(self) -> str | None:
        """The tenant of the circuit; None if it belongs to the operator."""
        shared = self.account.partition(CALLER_SEPARATOR)[0]
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
        """The earliest time for the next call; 0 while closed."""
        return 0 if self.opened_at is None else max(self.open_until, self.probe_until)


def caller_account(account: str, tenant_id: str, key_id: str | None) -> str:
    """The account of a caller's own circuit. Failures of one caller's requests need not be a fault of the target."""
    return f"{account}{CALLER_SEPARATOR}{tenant_id}{CALLER_SEPARATOR}{key_id or ''}"


def shared_breaker(breaker: Breakers) -> Breakers:
    return msgspec.structs.replace(breaker, failures=max(breaker.failures, 2))


def tenant_account(account: str, own: str) -> str | None:
    """The account of the row that counts a tenant's failures towards the shared circuit. The row never opens.

    Returns None if the account belongs to the tenant, since all its callers are then of that tenant.
    """
    return None if "@" in account else own.rpartition(CALLER_SEPARATOR)[0]


def counts_for_all(own: Circuit, now: int, breaker: Breakers) -> bool:
    """Whether a failure at `now`, already counted in the caller's own circuit, also counts for the shared circuit.

    Up to half of the failures that open a circuit count per caller and window; the rest must come from other callers.
    Failed probes of the caller's own circuit never count. If the tenant has a row, `count_for_tenant` must agree.
    """
    if own.openings > 1 or own.opened_at not in (None, now):
        return False
    since = now - breaker.window_ms * 1000
    return sum(since < each <= now for each in _times(own.failed_at)) <= max_failures_per_caller(breaker)


def max_failures_per_caller(breaker: Breakers) -> int:
    """The number of failures per window that one key, or one tenant, contributes to the shared circuit."""
    return (breaker.failures + 1) // 2


def count_for_tenant(row: Circuit, now: int, breaker: Breakers) -> bool:
    """Count a failure at `now` in the tenant's row. Returns False if the tenant's share of the window is used up."""
    since = now - breaker.window_ms * 1000
    times = [each for each in _times(row.failed_at) if each > since]
    row.changed_at = max(row.changed_at, now)
    if len(times) >= max_failures_per_caller(breaker):
        return False
    row.failed_at = msgspec.json.encode(sorted([*times, now])).decode()
    return True


def count_failure(
    circuit: Circuit, now: int, breaker: Breakers, why: str, retry_after_ms: int | None = None, call: str | None = None
) -> bool:
    """Count a failure of the target.

    Args:
        circuit: the circuit, changed in place.
        now: the time of the failure, in microseconds.
        breaker: the policy.
        why: the failure.
        retry_after_ms: the wait that the provider requested. It never shortens an open circuit.
        call: the call id if the call may hold the probe.

    Returns: whether the circuit opened, or opened again.
    """
    if retry_after_ms:
        longest = max(MAX_RETRY_AFTER_MS, breaker.max_cool_down_ms)
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
        if (
            call is None or call != circuit.probe
        ):  # the call started before the circuit opened, so its failure is no new information
            return False
    circuit.openings += 1
    circuit.why = why
    circuit.open_until = max(
        circuit.open_until, now + cool_down_ms(circuit.openings, breaker) * 1000, circuit.not_before
    )
    circuit.probe, circuit.probe_until = None, 0
    return True


def cool_down_ms(opening: int, breaker: Breakers) -> int:
    """The duration of the nth consecutive opening, counted from 1."""
    return min(breaker.max_cool_down_ms, breaker.cool_down_ms << min(opening - 1, 40))


def claim_probe(circuit: Circuit, now: int, call: str, until: int) -> bool:
    """Claim the probe for `call` until `until`. Returns False if the circuit is not half-open or has another probe."""
    if circuit.opened_at is None or now < circuit.blocked_until:
        return False
    circuit.probe, circuit.probe_until, circuit.changed_at = call, until, max(circuit.changed_at, now)
    return True


def release_probe(circuit: Circuit, call: str) -> bool:
    """Release a probe without a result. Returns whether `call` held it."""
    if circuit.probe != call:
        return False
    circuit.probe, circuit.probe_until = None, 0
    return True


def public_circuit(circuit: Circuit, now: int) -> dict[str, Any]:
    """The public form of a circuit, with times as UTC text."""
    state = circuit.state(now)
    return {
        "target": circuit.target,
        "provider": circuit.account.partition(CALLER_SEPARATOR)[0].partition("@")[0],
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
