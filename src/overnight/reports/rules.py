"""The claim rules of a job: given with the job, or those of its agent in the brain version that the job began with."""

from overnight.domain import BadInput, NotFound
from overnight.domain.claim_rules import ClaimRule, claim_rules
from overnight.ledger import JobRow, Ledger, find_brain_version, read_brain_file


async def rules_of(ledger: Ledger, job: JobRow) -> tuple[ClaimRule, ...]:
    """The rules of both. A rule that cannot be read any more is left out."""
    return (*await _given(ledger, job), *await _of_agent(ledger, job))


async def _given(ledger: Ledger, job: JobRow) -> tuple[ClaimRule, ...]:
    created = await ledger.events(job.job_id, 0, 1)
    given = (created[0].facts.detail or {}).get("assert") if created else None
    try:
        return claim_rules(given, "assert") if given else ()
    except BadInput:
        return ()


async def _of_agent(ledger: Ledger, job: JobRow) -> tuple[ClaimRule, ...]:
    if not job.agent_id:
        return ()
    path = f"agents/{job.agent_id}.yaml"
    try:
        version = job.brain_version or await find_brain_version(ledger.store, "")
        body = await read_brain_file(ledger.store, version, path)
    except NotFound:
        return ()
    # Most jobs have no such file, and every command that reads jobs imports this module.
    from overnight.brain import read_agent

    definition, _ = read_agent(path, job.agent_id, body.decode("utf-8", "replace"))
    return definition.claims if definition is not None else ()
