"""One row per effect, by its idempotency key."""

import hashlib

import msgspec

from overnight.domain import KeyScope
from overnight.store import Table, statements

SQL = statements("overnight.effects")


class EffectRow(msgspec.Struct):
    """One effect. `state` is one of

    - waiting: a person has to approve it. approved: a person did. expired: no one did in time.
    - claimed: it may be in progress. committed: it was done. failed: it was certainly not done.
    - unknown: its outcome is unknown. released: a status check or a person found it not done.
    - rejected: a person decided that it is not to be done.

    Fields:
        arguments_sha256: the digest of the arguments that were asked; `done_sha256`: of those that were used, after an edit.
        owner: the process, or the holder that a caller over HTTP named.
        claim_digest: the SHA-256 of the secrets of its claim, then those of earlier claims.
        expires_at: the end of the claim in microseconds, if it has one.
        contract: name and version of the tool's contract, as `refund@3`. tool_class: read, write or destructive.
        source: how its outcome is known: executed, confirmed or reported.
        key_id: the API key that asked. client_key: the idempotency key that it gave.
        asked_attempt: the attempt of the job that asked last. review_id: the review that it waits for.
        approval_id: the review that permits it, with the arguments of `done_sha256` if a person edited them.
        called_seq: the event `tool_called` of its last claim, in the log of its job.
        about: the record that the caller works on.
    """

    tenant_id: str
    effect_key: str
    job_id: str
    tool: str
    state: str
    arguments_sha256: str
    owner: str
    attempt: int
    lease_epoch: int
    provider_id: str | None
    result: bytes | None
    error: str | None
    claimed_at: int
    settled_at: int | None
    effect_id: str = ""
    claim_digest: bytes | None = None
    expires_at: int | None = None
    done_sha256: str | None = None
    contract: str | None = None
    source: str | None = None
    key_id: str | None = None
    tool_class: str | None = None
    client_key: str | None = None
    asked_attempt: int | None = None
    review_id: str | None = None
    approval_id: str | None = None
    called_seq: int | None = None
    about: str | None = None


def _effect_key(row: EffectRow) -> tuple[str, str]:
    return (row.tenant_id, row.effect_key)


EFFECT: Table[EffectRow] = Table(
    40,
    EffectRow,
    _effect_key,
    lock=SQL["lock_effect"],
    insert=SQL["insert_effect"],
    update=SQL["update_effect"],
)


def effect_key(tenant_id: str, workflow: str, step_path: str, subject: str, tool: str, occurrence: str) -> str:
    """The idempotency key: `tenant|workflow|step path|subject|sha256(tool, occurrence)`.

    It contains neither the attempt, the model's tool_call_id nor the arguments: a rewritten draft of the same mail is the
    same effect.
    """
    digest = hashlib.sha256(f"{tool}\0{occurrence}".encode()).hexdigest()
    return "|".join((tenant_id, workflow, step_path, subject, digest))


def http_effect_key(tenant_id: str, scope: KeyScope, tool: str, client_key: str, job_id: str | None) -> str:
    """The idempotency key of an effect over HTTP: `tenant|http|sha256(agent, workflow, tool, client key, job)`.

    - `scope`: that of the API key. Keys of another agent or workflow have other effects.
    - `client_key`: the key that the caller gave. `job_id`: None for a key that holds in all jobs of the tenant.
    """
    parts = (scope.agent_id or "", scope.workflow or "", tool, client_key, job_id or "")
    return f"{tenant_id}|http|{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}"
