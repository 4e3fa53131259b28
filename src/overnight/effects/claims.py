"""Claims of effects: claim → call → commit. A claim without a commit is unknown: it is neither a success nor repeated."""

import hashlib
import hmac
import os
from typing import Any, Literal

import msgspec

from overnight.domain import Conflict, ErrorFacts, Event, new_id
from overnight.ledger import JobRow, append
from overnight.store import Unit

from .rows import EFFECT, SQL, EffectRow
from .transitions import EffectPosition, at, check_transition, end_review, enter, mark_expired, mark_unknown

BEGUN = frozenset({"claimed", "committed", "unknown"})
MAX_CLAIM_DIGESTS, MAX_TOKENS = 24, 8
"""Stored digests of an effect, and tokens of one claim. The oldest ones are dropped."""
_DIGEST_BYTES = 32
_FORMER = bytes(_DIGEST_BYTES)
"""Stored between the tokens of the last claim and those of former claims."""


class EffectClaim(msgspec.Struct, frozen=True):
    """The request to execute an effect.

    - `arguments`: those that were asked, as JSON; `arguments_sha256`: their digest. `done_arguments`: those of a person
      who edited them.
    - `owner`: the process, or the holder that a caller over HTTP names. `about`: the record that the caller works on.
    - `claim_digest`, `lease_us`: of a claim by a token that expires; see `new_claim_token`.
    - `asks_again`: an expired approval is asked again, as in a new attempt.
    """

    effect_key: str
    tool: str
    arguments: bytes
    arguments_sha256: str
    owner: str
    step: str | None = None
    call_id: str | None = None
    about: str | None = None
    done_arguments: bytes | None = None
    claim_digest: bytes | None = None
    lease_us: int | None = None
    tool_class: str | None = None
    contract: str | None = None
    key_id: str | None = None
    client_key: str | None = None
    asks_again: bool = False


Verdict = Literal["run", "committed", "in_progress", "unknown", "rejected", "waiting", "expired"]


class ClaimResult(msgspec.Struct, frozen=True):
    """The answer to a claim, and the effect's row. `verdict` is one of

    - run: execute it now. committed: the row has its result. in_progress: another caller executes it.
    - unknown: its outcome has to be found out. rejected: a person decided that it is not to be done.
    - waiting: a person has to approve it. expired: no one did in time; a renewal or a new attempt asks again.
    """

    verdict: Verdict
    row: EffectRow


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def new_claim_token() -> tuple[str, bytes]:
    """A secret that proves a claim, and its digest, which alone is stored."""
    token = f"clm_{os.urandom(32).hex()}"
    return token, claim_digest(token)


def claim_digest(token: str) -> bytes:
    """The digest of a claim token."""
    return hashlib.sha256(token.encode()).digest()


def claim_of(row: EffectRow, token: str) -> Literal["current", "former"] | None:
    """Whether the token is that of the last claim, of a former one, or of none. Its time is constant."""
    return claim_by(row, claim_digest(token))


def claim_by(row: EffectRow, digest: bytes) -> Literal["current", "former"] | None:
    """As `claim_of`, by the digest."""
    digests = _digests(row)
    matches = [hmac.compare_digest(each, digest) for each in digests]
    if not any(matches):
        return None
    return "current" if any(matches[: _size_of_last(digests)]) else "former"


def _digests(row: EffectRow) -> list[bytes]:
    stored = row.claim_digest or b""
    return [stored[start : start + _DIGEST_BYTES] for start in range(0, len(stored), _DIGEST_BYTES)]


def _size_of_last(digests: list[bytes]) -> int:
    """The number of tokens of the last claim: its holder receives another one with each extension, and any of them is valid."""
    return digests.index(_FORMER) if _FORMER in digests else len(digests)


# ── whether it may begin ─────────────────────────────────────────────────────────────────────────────────────────────


def is_outdated(row: EffectRow | None, arguments_sha256: str) -> bool:
    """Whether the effect waits, or is approved, with other arguments than these: the caller supersedes that review first."""
    return row is not None and row.state in {"waiting", "approved"} and row.arguments_sha256 != arguments_sha256


def begins(job: JobRow, row: EffectRow | None, *, asks_again: bool = False) -> bool:
    """Whether a claim would be granted now, if the rules permit it: the effect never began, or is known not to be done."""
    if row is None:
        return True
    # An external program begins a new attempt at every start; a rejection must outlast its process.
    if row.state == "rejected":
        return row.attempt != job.attempt and job.runtime != "foreign"
    if row.state == "expired":
        return asks_again or row.job_id != job.job_id or row.asked_attempt != job.attempt
    return row.state not in BEGUN and row.state != "waiting"


def refuse(
    unit: Unit,
    job: JobRow,
    row: EffectRow | None,
    wanted: EffectClaim,
    error: ErrorFacts,
    decision: dict[str, Any],
    position: EffectPosition | None,
) -> int:
    """Record that the effect may not begin: bad arguments, a rule, a limit. Returns the seq of `tool_refused`.

    `error`: what the caller receives. `decision`: `why`, and the rule. An effect with a review is superseded first.
    """
    check_transition("refuse", "none" if row is None else row.state, wanted.tool)
    event = _event("tool_refused", job, wanted)
    event.error, event.decision = error, decision
    return append(unit, job, event, content=wanted.arguments, **at(position))


def wait(unit: Unit, job: JobRow, row: EffectRow | None, wanted: EffectClaim, review_id: str) -> EffectRow:
    """Record that the effect waits for this approval. The caller requests the review in the same unit."""
    check_transition("wait", "none" if row is None else row.state, wanted.tool)
    if row is None:
        row = _new_row(unit, job, wanted, "waiting")
        unit.insert(EFFECT, row)
    else:
        end_review(unit, job, row, "it is asked again")
        enter(row, "wait", "waiting")
        _asked(row, job, wanted)
        unit.change(EFFECT, row)
    row.review_id, row.approval_id, row.done_sha256 = review_id, None, None
    return row


def is_first_use(unit: Unit, tenant_id: str, wanted: EffectClaim) -> bool:
    """Whether the API key has begun no other effect of this tool. False without a key."""
    if wanted.key_id is None:
        return False
    for row in unit.loaded(EFFECT):
        is_other = row.tenant_id == tenant_id and row.effect_key != wanted.effect_key
        if is_other and (row.key_id, row.tool) == (wanted.key_id, wanted.tool) and row.called_seq is not None:
            return False
    values = {"tenant_id": tenant_id, "effect_key": wanted.effect_key, "tool": wanted.tool, "key_id": wanted.key_id}
    return not unit.query(SQL["find_use"], values)


# ── claims ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def claim(unit: Unit, job: JobRow, wanted: EffectClaim, position: EffectPosition | None) -> ClaimResult:
    """Decide whether the effect may be executed now, and write the claim before it is.

    The caller has asked the rules if the effect `begins`. Raises Conflict if the key was used with other arguments for an
    effect that has begun, or that has a review.
    """
    row = unit.get(EFFECT, (job.tenant_id, wanted.effect_key))
    if row is None:
        row = _new_row(unit, job, wanted, "claimed")
        _take(unit, row, job, wanted)
        unit.insert(EFFECT, row)
        _called(unit, job, row, wanted, position)
        return ClaimResult("run", row)
    fixed = row.state in BEGUN or row.state in {"waiting", "approved"}
    if fixed and row.arguments_sha256 != wanted.arguments_sha256:
        raise Conflict(
            f"effect {wanted.tool} is {row.state} with other arguments under the idempotency key {wanted.effect_key};"
            " use another key for other arguments"
        )
    if row.state == "claimed":
        return _claimed_before(unit, job, row, wanted, position)
    if begins(job, row, asks_again=wanted.asks_again):
        _check_edited(row, wanted)
        enter(row, "claim", "claimed")
        _asked(row, job, wanted)
        _take(unit, row, job, wanted)
        unit.change(EFFECT, row)
        _called(unit, job, row, wanted, position)
        return ClaimResult("run", row)
    verdicts: dict[str, Verdict] = {
        "committed": "committed",
        "unknown": "unknown",
        "rejected": "rejected",
        "waiting": "waiting",
        "expired": "expired",
    }
    return ClaimResult(verdicts[row.state], row)


def repeat(
    unit: Unit, job: JobRow, row: EffectRow, wanted: EffectClaim, why: str, position: EffectPosition | None
) -> None:
    """Claim an unknown effect again under the same key, which its provider ignores if it was done.

    `claimed_at` stays that of the first call, from which the provider remembers the key.
    """
    _check_edited(row, wanted)
    enter(row, "repeat", "claimed")
    first = row.claimed_at
    end_review(unit, job, row, "the effect is repeated under the same key")
    _take(unit, row, job, wanted)
    row.claimed_at = first
    unit.change(EFFECT, row)
    _called(unit, job, row, wanted, position, why)


def _claimed_before(
    unit: Unit, job: JobRow, row: EffectRow, wanted: EffectClaim, position: EffectPosition | None
) -> ClaimResult:
    """The answer to a claim of an effect that is claimed: the same holder extends it, another one waits for its end."""
    if mark_expired(unit, job, row):
        return _found_out(row)
    same_job, same_attempt = row.job_id == job.job_id, row.attempt == job.attempt
    if row.expires_at is not None:
        if same_job and not same_attempt:
            why = "a newer attempt began between the claim and its report"
            mark_unknown(unit, job, row, "newer_attempt", why, position, about=wanted.about)
            return _found_out(row)
        if row.owner != wanted.owner or wanted.claim_digest is None or wanted.lease_us is None:
            return ClaimResult("in_progress", row)
        enter(row, "extend", "claimed")
        row.claim_digest, row.expires_at = _with_token(row, wanted.claim_digest), unit.now + wanted.lease_us
        unit.change(EFFECT, row)
        return ClaimResult("run", row)
    if same_job and same_attempt and (row.lease_epoch, row.owner) == (job.lease_epoch, wanted.owner):
        return ClaimResult("in_progress", row)
    why = "its worker was lost between the claim and the commit"
    mark_unknown(unit, job, row, "worker_lost", why, position, about=wanted.about)
    return _found_out(row)


def _found_out(row: EffectRow) -> ClaimResult:
    """The answer after a claim has ended: unknown, unless an earlier holder has reported it done since."""
    return ClaimResult("committed" if row.state == "committed" else "unknown", row)


def extend(unit: Unit, row: EffectRow, lease_us: int) -> None:
    """Extend a claim by its token, from now."""
    enter(row, "extend", "claimed")
    row.expires_at = unit.now + lease_us
    unit.change(EFFECT, row)


def _new_row(unit: Unit, job: JobRow, wanted: EffectClaim, state: str) -> EffectRow:
    return EffectRow(
        tenant_id=job.tenant_id,
        effect_key=wanted.effect_key,
        job_id=job.job_id,
        tool=wanted.tool,
        state=state,
        arguments_sha256=wanted.arguments_sha256,
        owner=wanted.owner,
        attempt=job.attempt,
        lease_epoch=job.lease_epoch,
        provider_id=None,
        result=None,
        error=None,
        claimed_at=unit.now,
        settled_at=None,
        effect_id=new_id("eff"),
        asked_attempt=job.attempt,
        tool_class=wanted.tool_class,
        contract=wanted.contract,
        key_id=wanted.key_id,
        client_key=wanted.client_key,
        about=wanted.about,
    )


def _check_edited(row: EffectRow, wanted: EffectClaim) -> None:
    edited = row.done_sha256 is not None and row.arguments_sha256 == wanted.arguments_sha256
    if edited and wanted.done_arguments is None:
        raise Conflict(f"the edited arguments of effect {wanted.tool} are missing")


def _asked(row: EffectRow, job: JobRow, wanted: EffectClaim) -> None:
    if row.arguments_sha256 != wanted.arguments_sha256:
        row.approval_id, row.done_sha256 = None, None
    row.job_id, row.owner, row.attempt, row.lease_epoch = job.job_id, wanted.owner, job.attempt, job.lease_epoch
    row.arguments_sha256, row.asked_attempt = wanted.arguments_sha256, job.attempt
    row.tool_class, row.contract = wanted.tool_class, wanted.contract
    row.key_id, row.client_key, row.about = wanted.key_id, wanted.client_key, wanted.about
    row.settled_at, row.error = None, None


def _take(unit: Unit, row: EffectRow, job: JobRow, wanted: EffectClaim) -> None:
    """Write the holder. A former token stays valid for reports, which may be the only sign of a second execution."""
    row.owner, row.attempt, row.lease_epoch = wanted.owner, job.attempt, job.lease_epoch
    row.claimed_at, row.settled_at, row.error, row.review_id = unit.now, None, None, None
    row.provider_id, row.result, row.source = None, None, None
    row.claim_digest = _with_former(row, wanted.claim_digest)
    row.expires_at = None if wanted.lease_us is None else unit.now + wanted.lease_us


def _with_former(row: EffectRow, digest: bytes | None) -> bytes | None:
    """The digests of a new claim, before those of former claims. A claim without a token makes all former, too."""
    if row.claim_digest is None:
        return digest
    return ((digest or b"") + _FORMER + row.claim_digest)[: MAX_CLAIM_DIGESTS * _DIGEST_BYTES]


def _with_token(row: EffectRow, digest: bytes) -> bytes:
    """The digests with another token of the last claim."""
    digests = _digests(row)
    size = _size_of_last(digests)
    return b"".join([digest, *digests[: min(size, MAX_TOKENS - 1)], *digests[size:]][:MAX_CLAIM_DIGESTS])


def _called(
    unit: Unit,
    job: JobRow,
    row: EffectRow,
    wanted: EffectClaim,
    position: EffectPosition | None,
    why: str | None = None,
) -> None:
    event = _event("tool_called", job, wanted)
    event.detail = {"effect_id": row.effect_id}
    if why is not None:
        event.decision = {"why": why}
    if row.approval_id is not None:
        event.detail["review_id"] = row.approval_id
    if row.done_sha256 is not None:
        event.detail["edited"] = True
    content = wanted.arguments if row.done_sha256 is None else wanted.done_arguments
    row.called_seq = append(unit, job, event, content=content, **at(position))


def _event(name: str, job: JobRow, wanted: EffectClaim) -> Event:
    event = Event(name, name=wanted.tool, kind="effect", step=wanted.step, idempotency_key=wanted.effect_key)
    event.attempt, event.call_id, event.about = job.attempt, wanted.call_id, wanted.about
    return event
