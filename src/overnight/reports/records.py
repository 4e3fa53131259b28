"""Records of a receipt: what a job did to the world, and how Overnight knows it."""

from typing import Literal

import msgspec

FoundBy = Literal["executed", "confirmed", "reported"]
OPEN = ("waiting", "approved", "claimed", "unknown")
"""The states of effects that can still change."""


class WaitsFor(msgspec.Struct, frozen=True, kw_only=True):
    """The review that an effect waits for. `by` are the people or roles that may decide; empty: everyone with the scope."""

    review_id: str
    kind: str
    by: tuple[str, ...] = ()
    expires_at: int | None = None


class EffectEntry(msgspec.Struct, kw_only=True):
    """One effect, in one line of the receipt.

    Fields:
        state: as in `EffectRow`; also `refused` for a call that was not begun, which has no `effect_id`.
        found_by: of a committed effect: executed (by Overnight), confirmed (by a status check, a signed webhook or a person), or
            reported (by the program alone).
        how: who or what found the state, in words. reason: why it was not done or is unknown; content.
        key: the caller's idempotency key, else the effect's own.
        replayed: the effect belongs to another job, whose result this job received; `job_id` names that job.
        arguments: those that were used, as JSON; content. None if they are longer than 16 KiB or erased.
        duplicates: further ids that the provider gave, for second executions.
        at, since: when the state was reached, and when the effect began, in microseconds.
    """

    job_id: str
    tool: str
    state: str
    at: int
    since: int
    effect_id: str | None = None
    found_by: str | None = None
    how: str = ""
    reason: str = ""
    error_class: str | None = None
    provider_id: str | None = None
    key: str | None = None
    about: str | None = None
    contract: str | None = None
    waits_for: WaitsFor | None = None
    decided_by: str | None = None
    edited: bool = False
    replayed: bool = False
    attempt: int = 1
    arguments: bytes | None = None
    duplicates: tuple[str, ...] = ()
    effect_key: str | None = None
    code_ref: str | None = None
    runtime: str = ""


class ReviewEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A review of the job that is about no effect, such as an approval that its code asked for. `question` is content.

    `state` is pending, decided, expired or superseded; `answer` is what was decided: approved, rejected or answered.
    """

    job_id: str
    review_id: str
    kind: str
    state: str
    question: str
    at: int
    answer: str | None = None
    decided_by: str | None = None
    by: tuple[str, ...] = ()
    expires_at: int | None = None


class UnexecutedCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that a model asked for. Neither an effect nor a result in a later request followed."""

    job_id: str
    tool: str
    call_id: str | None
    at: int


class CheckedClaim(msgspec.Struct, frozen=True, kw_only=True):
    """A statement of the final answer, and whether an effect supports it.

    `verdict` is supported, unsupported, pending (the effect waits or is unknown), or unchecked (the text takes too many steps).
    `text` and `arguments` (named groups of the pattern) are content.
    """

    text: str
    tool: str
    verdict: Literal["supported", "unsupported", "pending", "unchecked"]
    arguments: dict[str, str] = {}
    effect_id: str | None = None
    found_by: str | None = None


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What the status check says now: done, not_done, cannot_tell; or unverifiable here, and `why`.

    `is_early`: a call that is not done may still take effect.
    """

    outcome: str
    provider_id: str | None = None
    why: str = ""
    is_early: bool = False


class Receipt(msgspec.Struct, kw_only=True):
    """The receipt of a job and its child jobs.

    Fields:
        counts: effects by state, of all effects; `found_by` likewise of the committed ones. `effects` holds at most 1,000, those
            that can still change first; `more` is the number of the others.
        settled: all jobs have ended, and no effect can change without a late report.
        reviews: those that are about no effect, at most 1,000.
        tool_results: the results of tools that requests contained; counted where a job has no effect.
        jobs: the jobs of the tree. is_partial: the tree, or its model answers, were too many to read all.
    """

    job_id: str
    name: str
    state: str
    tenant_id: str
    runtime: str
    external_id: str | None
    counts: dict[str, int]
    found_by: dict[str, int]
    settled: bool
    effects: list[EffectEntry]
    unexecuted: list[UnexecutedCall]
    claims: list[CheckedClaim]
    reviews: list[ReviewEntry] = []
    more: int = 0
    tool_results: int = 0
    jobs: int = 1
    is_partial: bool = False

    @property
    def none(self) -> bool:
        """Whether no effect passed through Overnight."""
        return not self.counts
