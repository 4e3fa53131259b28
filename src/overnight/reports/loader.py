"""Loads the receipt of a job and its child jobs."""

from overnight.effects import EffectRow
from overnight.ledger import JobRow, Ledger

from . import queries
from .assembly import ReceiptAssembly
from .claims import ClaimChecker, find_statements
from .entries import add_event, add_review, entry_of, key_in
from .records import EffectEntry, Receipt, UnexecutedCall
from .rules import rules_of
from .unexecuted import AskedCall, without_effect, without_result


async def load_receipt(ledger: Ledger, job: JobRow) -> Receipt:
    """The receipt of a job and its descendants, at most 1,000 jobs, as of now. Content is included."""
    jobs = await queries.read_tree(ledger, job.job_id)
    is_partial, jobs = len(jobs) > queries.MAX_JOBS, jobs[: queries.MAX_JOBS]
    ids = [each.job_id for each in jobs]
    rules = await rules_of(ledger, job)
    statements = find_statements(rules, await queries.final_text(ledger, job)) if rules else []
    conversations = queries.Conversations()
    for job_id in ids:
        await queries.read_requests(ledger, job_id, conversations)
    asked = [call for job_id in conversations.with_tools for call in await queries.read_asked(ledger, job_id)]
    assembly = ReceiptAssembly(
        jobs,
        await queries.count_effects(ledger, ids),
        await queries.read_effects(ledger, ids),
        checker=ClaimChecker(statements),
        asked=frozenset(call.ref.name for call in asked if call.ref.name is not None),
    )
    async for review in queries.each_review(ledger, ids):
        assembly.add_review(review)
    for job_id in ids:
        async for event in queries.each_tool_event(ledger, job_id):
            assembly.add_event(event)
    missing = assembly.missing_keys()
    assembly.add_other_rows(await queries.read_effects_of_keys(ledger, job.tenant_id, missing))
    unexecuted, results = await _unexecuted(ledger, job.tenant_id, asked, assembly, conversations)
    return assembly.receipt(job, unexecuted, tool_results=results, is_partial=is_partial or conversations.is_partial)


async def _unexecuted(
    ledger: Ledger,
    tenant_id: str,
    asked: list[AskedCall],
    assembly: ReceiptAssembly,
    conversations: queries.Conversations,
) -> tuple[list[UnexecutedCall], int]:
    """The calls that nothing followed, and the number of results that requests contained."""
    left = without_effect(asked, assembly.uses())
    if not left:
        return [], 0
    results = await queries.read_results(ledger, tenant_id, conversations.heads)
    return without_result(left, results), len(results)


async def load_effects_of_key(ledger: Ledger, tenant_id: str, key: str) -> list[EffectEntry]:
    """The effects with an idempotency key of a caller, or an effect's own key; oldest first."""
    return await load_entries(ledger, await queries.read_effects_of_key(ledger, tenant_id, key))


async def load_entries(ledger: Ledger, rows: list[EffectRow]) -> list[EffectEntry]:
    """The entries of these effects, with what the reviews and events of their jobs know."""
    entries = {row.effect_key: entry_of(row) for row in rows}
    by_review = {row.review_id: entries[row.effect_key] for row in rows if row.review_id}
    for job_id in dict.fromkeys(row.job_id for row in rows):
        found = await ledger.job(job_id)
        for entry in entries.values():
            if entry.job_id == job_id:
                entry.code_ref, entry.runtime = found.code_ref, found.runtime
        async for review in queries.each_review(ledger, [job_id]):
            entry = by_review.get(review.review_id) or entries.get(key_in(review) or "")
            if entry is not None:
                add_review(entry, review)
        async for event in queries.each_tool_event(ledger, job_id):
            if (entry := entries.get(event.facts.idempotency_key or "")) is not None:
                add_event(entry, event)
    return list(entries.values())


async def load_day(ledger: Ledger, tenant_id: str, agent_id: str, span: tuple[int, int]) -> tuple[list[Receipt], bool]:
    """The receipts of the jobs of an agent that were created in a span of microseconds, and whether there are more.

    A child job of one of them is part of its receipt, and has none of its own.
    """
    ids = await queries.read_agent_jobs(ledger, tenant_id, agent_id, span)
    chosen = set(ids[: queries.MAX_JOBS])
    jobs = [await ledger.job(job_id) for job_id in ids[: queries.MAX_JOBS]]
    roots = [job for job in jobs if not await _has_ancestor_in(ledger, job, chosen)]
    return [await load_receipt(ledger, job) for job in roots], len(ids) > queries.MAX_JOBS


async def _has_ancestor_in(ledger: Ledger, job: JobRow, chosen: set[str]) -> bool:
    while job.parent_job_id is not None:
        if job.parent_job_id in chosen:
            return True
        job = await ledger.job(job.parent_job_id)
    return False
