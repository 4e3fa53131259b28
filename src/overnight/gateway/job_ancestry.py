"""The ancestors of jobs, whose budgets a call draws on too. They never change, so they are kept in memory."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from overnight.budgets import BudgetJob
from overnight.domain import ALL_JOBS, Attribution, BadInput, Conflict, KeyScope, new_id
from overnight.ledger import JobRow, Ledger
from overnight.wire_formats.request import Request

from .call_deadlines import store_answers_by
from .identity import Subject, other_parent, session_name

AncestryKey = tuple[str, str, KeyScope]
"""The tenant, the job's name, and the scope of the key of the lookup."""

MAX_KNOWN_JOBS = 50_000


class JobAncestry:
    """The jobs named by calls, and their ancestors.

    Attributes:
        lineage: names and start times of jobs with children.
        brain_version: recorded in the jobs that calls create.
    """

    def __init__(self, ledger: Ledger, brain_version: str | None) -> None:
        self._ledger, self.brain_version = ledger, brain_version
        self._known: OrderedDict[AncestryKey, tuple[str, ...]] = OrderedDict()
        self.lineage: OrderedDict[str, BudgetJob] = OrderedDict()

    async def subject_of(self, who: Attribution, request: Request | None, until: float) -> Subject:
        """The subject of a call: the named job, the job of its session, or a new job, below the named parent.

        Raises NotFound, also for an unknown parent, Conflict for a job with another parent, Forbidden for a job that the key does
        not permit, BadInput for an attempt without a job, and StoreUnavailable at `until`, a time of the loop.
        """
        external_id, job_id = who.external_id, who.job_id
        if job_id is None and external_id is None and who.session_id is not None and not who.only_marks:
            external_id = session_name(who)
        if external_id is not None:
            who.key_scope.check_job(external_id, "x-job-id" if who.external_id is not None else "x-session-id")
        name = job_id or external_id
        if name is None and who.attempt is not None:
            raise BadInput("x-job-attempt: an attempt belongs to a job; name the job in x-job-id")
        above = () if who.parent is None else await self._parent_and_above(who, name, until)
        ancestors = self._known.get((who.tenant_id, name, who.key_scope)) if name is not None else None
        if ancestors is None and job_id is not None:
            async with store_answers_by(until):
                found = await self._find_ancestors(job_id, who.tenant_id, who.key_scope)
            ancestors = self._remember((who.tenant_id, job_id, who.key_scope), found)
        if ancestors is not None and above and ancestors[:-1] != above:
            raise Conflict(other_parent(ancestors[-1], above[-1]))
        job = new_id("job") if ancestors is None else ancestors[-1]
        return Subject(
            who=who,
            job_id=job,
            ancestors=ancestors or (*above, job),
            known=ancestors is not None,
            label=who.task_id or (request.model if request is not None else None) or "default",
            external_id=external_id,
            unattributed=name is None,
            brain_version=self.brain_version,
            attempt=who.attempt or 1,
            lineage=self.lineage,
            fingerprint=request.fingerprint(who.task_id) if request is not None else None,
            parent_job_id=above[-1] if above else None,
        )

    async def _parent_and_above(self, who: Attribution, name: str | None, until: float) -> tuple[str, ...]:
        """The named parent and its ancestors, root first. Raises NotFound, Conflict for a job that names itself."""
        parent = who.parent or ""
        if parent == name:
            raise Conflict(f"x-parent-job-id: {parent} cannot be its own parent")
        key = (who.tenant_id, parent, who.key_scope)
        found = self._known.get(key)
        if found is None or found[-1] not in self.lineage:
            async with store_answers_by(until):
                job = await self._ledger.job(parent, who.tenant_id, who.key_scope)
                found = self._remember(key, await self._find_ancestors(job.job_id, who.tenant_id))
            self._add_lineage(job)
        return found

    async def with_ancestors(self, subject: Subject, job_id: str) -> Subject:
        """The subject of a job that exists and has a parent. Raises NotFound, StoreUnavailable."""
        ancestors = await self._find_ancestors(job_id, subject.who.tenant_id, subject.who.key_scope)
        return msgspec.structs.replace(subject, job_id=job_id, ancestors=ancestors, known=True)

    def update_subject(self, subject: Subject, job_id: str, attempt: int) -> Subject:
        """The subject, updated with the job and attempt that an admission found."""
        if subject.known:
            if subject.attempt == attempt:
                return subject
            return msgspec.structs.replace(subject, attempt=attempt)
        ancestors = subject.ancestors if job_id == subject.job_id else (job_id,)
        if subject.external_id is not None:
            self._remember((subject.who.tenant_id, subject.external_id, subject.who.key_scope), ancestors)
        return msgspec.structs.replace(subject, job_id=job_id, ancestors=ancestors, known=True, attempt=attempt)

    async def ancestors(self, job: JobRow) -> tuple[str, ...]:
        """The job's ancestors and itself, root first. Raises NotFound, StoreUnavailable."""
        if job.parent_job_id is None:
            return (job.job_id,)
        if job.parent_job_id == job.root_job_id and job.root_job_id in self.lineage:
            return (job.root_job_id, job.job_id)
        key = (job.tenant_id, job.job_id, ALL_JOBS)
        return self._known.get(key) or self._remember(key, await self._find_ancestors(job.job_id, job.tenant_id))

    def _remember(self, key: AncestryKey, ancestors: tuple[str, ...]) -> tuple[str, ...]:
        self._known[key] = ancestors
        if len(self._known) > MAX_KNOWN_JOBS:
            self._known.popitem(last=False)
        return ancestors

    async def _find_ancestors(self, job_id: str, tenant_id: str, key_scope: KeyScope = ALL_JOBS) -> tuple[str, ...]:
        job = await self._ledger.job(job_id, tenant_id, key_scope)
        found = [job.job_id]
        while job.parent_job_id is not None:
            job = await self._ledger.job(job.parent_job_id, tenant_id)
            found.append(job.job_id)
            self._add_lineage(job)
        return tuple(reversed(found))

    def _add_lineage(self, job: JobRow) -> None:
        self.lineage[job.job_id] = BudgetJob(job.job_id, job.workflow or job.name, job.started_at)
        while len(self.lineage) > MAX_KNOWN_JOBS:
            self.lineage.popitem(last=False)
