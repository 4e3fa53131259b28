"""Rate limits as token buckets: a bucket holds the amount of one minute, a call takes its share, and it refills evenly.

A bucket is stored as one number, the time at which it is full again (GCRA). Times in microseconds.
"""

from collections.abc import Sequence

import msgspec

from overnight.store import Unit

from .policy import Key, Rate
from .rows import RATE, RateRow

MINUTE_US = 60_000_000


class Wait(msgspec.Struct, frozen=True):
    """A temporary obstacle. `what` is `budget` (outstanding reservations), `requests`, `tokens` or `concurrency`.

    Retry after a settlement in `tenant_id`, `scope`, `scope_id`, or at `until` if that is known.
    """

    scope: str
    scope_id: str
    tenant_id: str = ""
    what: str = "budget"
    until: int | None = None

    @property
    def key(self) -> Key:
        return (self.tenant_id, self.scope, self.scope_id)


class RateUsage(msgspec.Struct, array_like=True, frozen=True):
    """The share of a rate that a call took: `took_us` of the token bucket, which holds `per_minute` tokens."""

    tenant_id: str
    scope: str
    scope_id: str
    per_minute: int = 0
    took_us: int = 0


decode_passed = msgspec.json.Decoder(list[RateUsage]).decode
_encode = msgspec.json.Encoder().encode


def rate_of(unit: Unit, rate: Rate) -> RateRow:
    """The locked row of a rate, created on first use."""
    row = unit.get(RATE, rate.key)
    if row is None:
        row = RateRow(
            tenant_id=rate.tenant_id,
            scope=rate.scope,
            scope_id=rate.scope_id,
            requests_at=0,
            tokens_at=0,
            in_flight=0,
        )
        unit.insert(RATE, row)
    return row


def wait_for(unit: Unit, rates: Sequence[Rate], tokens: int) -> Wait | None:
    """The condition that a call with this number of tokens must wait for; None if it can start."""
    for rate in rates:
        row, now = rate_of(unit, rate), unit.now
        what, until = "", now
        if rate.concurrency is not None and row.in_flight >= rate.concurrency:
            return Wait(rate.scope, rate.scope_id, rate.tenant_id, "concurrency")
        if rate.requests_per_minute is not None:
            until = max(row.requests_at, now) + _took(1, rate.requests_per_minute) - MINUTE_US
            what = "requests"
        if rate.tokens_per_minute is not None:
            tokens_until = max(row.tokens_at, now) + _took(tokens, rate.tokens_per_minute) - MINUTE_US
            if tokens_until > until or not what:
                what, until = "tokens", tokens_until
        if until > now:
            return Wait(rate.scope, rate.scope_id, rate.tenant_id, what, until)
    return None


def _took(amount: int, per_minute: int) -> int:
    # Limited to the bucket size, so that a larger call can start when the bucket is full.
    return min(MINUTE_US, amount * MINUTE_US // per_minute)


def consume(unit: Unit, rates: Sequence[Rate], tokens: int) -> str:
    """Take the share of a call from each rate. Returns it as JSON, for the correction at the settlement."""
    passed: list[RateUsage] = []
    for rate in rates:
        row, took, per_minute = rate_of(unit, rate), 0, rate.tokens_per_minute or 0
        row.in_flight += 1
        if rate.requests_per_minute is not None:
            row.requests_at = max(row.requests_at, unit.now) + _took(1, rate.requests_per_minute)
        if rate.tokens_per_minute is not None:
            took = _took(tokens, rate.tokens_per_minute)
            row.tokens_at = max(row.tokens_at, unit.now) + took
        unit.change(RATE, row)
        passed.append(RateUsage(*rate.key, per_minute, took))
    return _encode(passed).decode()


def release(unit: Unit, passed: Sequence[RateUsage], tokens: int | None) -> None:
    """Release the concurrency of a finished call and correct its tokens to the actual number, which may exceed one
    minute's worth.

    None leaves the tokens unchanged.
    """
    for each in passed:
        row = unit.get(RATE, (each.tenant_id, each.scope, each.scope_id))
        if row is None:
            continue
        row.in_flight = max(0, row.in_flight - 1)
        if each.took_us and tokens is not None:
            more_us = tokens * MINUTE_US // each.per_minute - each.took_us
            # A full bucket accepts no refund but can be charged.
            row.tokens_at = more_us + (row.tokens_at if more_us < 0 else max(row.tokens_at, unit.now))
        unit.change(RATE, row)
