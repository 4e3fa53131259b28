"""The outcomes of claims and reports over HTTP, as sum types."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from overnight.domain import OvernightError
from overnight.effects import EffectRow

RefusalCode = Literal[
    "arguments_invalid",
    "budget",
    "claim_lost",
    "denied",
    "expired",
    "fenced",
    "in_progress",
    "key_reused",
    "rejected",
    "unknown",
]


class EffectRefused(OvernightError):
    """The caller may not go on as it asked.

    Fields:
        code: the reason, as a problem names it. effect_id, review_id: the effect and the review that it waits for.
        retry_after_s: the time after which the same request may be answered otherwise. next_step: what to do.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        effect_id: str | None = None,
        review_id: str | None = None,
        retry_after_s: int | None = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.effect_id, self.review_id = code, effect_id, review_id
        self.retry_after_s, self.next_step = retry_after_s, next_step


class ClaimAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a claim found: the effect, as it was then.

    Fields:
        verdict: run, committed or waiting. arguments: those to use, as JSON. token: the secret of the claim, of `run`.
        expires_at: the end of the claim, or of the review that it waits for, in microseconds.
    """

    verdict: Literal["run", "committed", "waiting"]
    effect_id: str
    job_id: str
    attempt: int
    arguments: bytes = b"null"
    expires_at: int | None = None
    review_id: str | None = None
    provider_id: str | None = None
    result: bytes | None = None
    token: str = ""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A claim or report that changes nothing more. It becomes an `EffectRefused` after the commit."""

    code: RefusalCode
    message: str
    effect_id: str | None = None
    review_id: str | None = None
    retry_after_s: int | None = None
    next_step: str | None = None

    def error(self) -> EffectRefused:
        facts = {name: getattr(self, name) for name in ("effect_id", "review_id", "retry_after_s", "next_step")}
        return EffectRefused(self.code, self.message, **facts)


class NeedsAncestors(msgspec.Struct, frozen=True):
    """The job exists and has a parent, whose budgets count too."""

    job_id: str


class Moved(msgspec.Struct, frozen=True):
    """Another job has claimed the effect since it was looked up."""

    job_id: str


class ReportAnswer(msgspec.Struct, frozen=True):
    """The effect after a report, and whether the report changed it."""

    row: EffectRow
    repeated: bool = False


ClaimOutcome = ClaimAnswer | Refusal | NeedsAncestors
ReportOutcome = ReportAnswer | Refusal | Moved | None


def why_not(row: EffectRow, now: int) -> Refusal:
    """The refusal of a claim for an effect that somebody has, that a person has to settle, or that is not to be done."""
    facts: dict[str, Any] = {"effect_id": row.effect_id, "review_id": row.review_id}
    where = f"/api/v1/effects/{row.effect_id}?wait_ms=30000"
    match row.state:
        case "claimed":
            left_s = 1 if row.expires_at is None else max(1, -(-(row.expires_at - now) // 1_000_000))
            message = f"effect {row.tool} is being executed by another holder"
            next_step = f"wait for its end: GET {where}, or claim again"
            return Refusal(
                code="in_progress",
                message=message,
                retry_after_s=min(left_s, MAX_RETRY_S),
                next_step=next_step,
                **facts,
            )
        case "unknown":
            message = f"the outcome of effect {row.tool} is unknown: it may have been done. Do not repeat it"
            next_step = f"a person settles review {row.review_id}; GET {where} waits for the decision"
            return Refusal(code="unknown", message=message, next_step=next_step, **facts)
        case "expired":
            message = f"nobody approved effect {row.tool} in time, which is not a rejection"
            next_step = f"renew review {row.review_id}, or start a new attempt of the job"
            return Refusal(code="expired", message=message, next_step=next_step, **facts)
        case _:
            why = f": {row.error}" if row.error else ""
            return Refusal(code="rejected", message=f"effect {row.tool} is not to be done{why}", **facts)


MAX_RETRY_S = 10
"""The longest `Retry-After`, in seconds: a holder usually reports long before its claim expires."""
