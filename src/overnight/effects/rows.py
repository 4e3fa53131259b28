"""One row per effect, by its idempotency key."""

import hashlib

import msgspec

from overnight.store import Table, statements

SQL = statements("overnight.effects")


class EffectRow(msgspec.Struct):
    """One effect. `state` is one of

    - claimed: it may be in progress. committed: it was done. failed: it was certainly not done.
    - unknown: its outcome is unknown. released: a status check or a person found it not done.
    - rejected: a person decided that it is not to be done.
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
