"""Start an external job without a call, as `…/attempts` does for a job that does not exist."""

from __future__ import annotations

from overnight.domain import Attribution
from overnight.store import Store

from .admission.external_job_lifecycle import StartJob
from .job_ancestry import JobAncestry


async def start_job(jobs: JobAncestry, store: Store, who: Attribution, until: float) -> tuple[str, bool]:
    """Start the named external job, unless it exists. Returns its id, and whether it is new.

    Raises NotFound, Conflict, Forbidden, and StoreUnavailable at `until`, a time of the loop.
    """
    subject = await jobs.subject_of(who, None, until)
    return await store.commit(StartJob(subject))
