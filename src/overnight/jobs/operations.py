"""Operations on jobs by people and programs: create, resume, cancel, decide a review."""

from typing import Any

import msgspec

from overnight import effects
from overnight.domain import FINISHED, BadInput, Conflict, Event, NotFound, new_id
from overnight.ledger import JOB, JobRow, Ledger, NewJob, append, is_dead, lifecycle, locked_job
from overnight.reviews import REVIEW, ReviewRow, decide_review, read_review
from overnight.store import Store, Unit, statements

from .commands import Cancel, CreateJob, ExpireLease, Resume
from .definitions import JobFunction, input_of
from .encoding import fingerprint
from .replay.history import fold
from .replay.retry_plan import stale_for_retry

SQL = statements("overnight.jobs")
ALIVE_US = 30_000_000


class Operations:
    """Operations on jobs. Each change is one transaction with its events."""

    def __init__(self, store: Store) -> None:
        self.store, self.ledger = store, Ledger(store)

    async def create(
        self,
        function: JobFunction[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        tenant_id: str = "default",
        external_id: str | None = None,
        actor: str | None = None,
        brain_version: str | None = None,
        session_id: str | None = None,
    ) -> JobRow:
        """Queue a run of a job function. Returns its row.

        - `args`, `kwargs`: its arguments. Raises BadInput if they do not fit, or have no JSON form.
        - `external_id`: the caller's own identifier. If a job has it, that job is returned; Conflict if its function or
          input differs.
        - `actor`: the caller; `brain_version`, `session_id`: recorded with the job.
        """
        new = NewJob(
            job_id=new_id("job"),
            tenant_id=tenant_id,
            runtime="python",
            name=function.name,
            external_id=external_id,
            agent_id=function.agent,
            workflow=function.name,
            session_id=session_id,
            code_ref=function.code_ref,
            brain_version=brain_version,
            input=input_of(function, args, kwargs or {}),
            actor=actor,
            claims=function.claims,
        )
        job, _ = await self.store.commit(CreateJob(new))
        return job

    async def resume(self, job_id: str, actor: str) -> str:
        """Queue a parked job, or retry a failed one. Returns the new state. Raises Conflict in any other state."""
        job = await self.ledger.job(job_id)
        if job.runtime == "foreign":
            raise Conflict(f"{job_id} is run by an external program; restart that program as a new attempt")
        plan = stale_for_retry(fold(await self.ledger.events(job.job_id))) if job.state == "failed" else None
        return await self.store.commit(Resume(job.job_id, actor, job.last_seq, plan))

    async def cancel(self, job_id: str, actor: str) -> str:
        """Cancel a job and its children. Returns its state now: `running` until its worker has stopped it."""
        job = await self.ledger.job(job_id)
        state = await self.store.commit(Cancel(job.job_id, job.parent_job_id, actor))
        if state == "cancelled":
            await self.cancel_children(job.job_id, actor)
        return state

    async def cancel_children(self, job_id: str, actor: str) -> None:
        """Cancel every unfinished child, and their children."""
        for child in await self.ledger.children(job_id):
            if child.state not in FINISHED:
                try:
                    await self.cancel(child.job_id, actor)
                except Conflict:
                    continue  # it has finished

    async def decide(self, review_id: str, decision: "Decision") -> ReviewRow:
        """Decide a review, and wake its job. Raises BadInput if the decision does not fit the question."""
        review = await read_review(self.store, review_id)
        if decision.tenant_id and review.tenant_id != decision.tenant_id:
            raise NotFound(f"review {review_id}")
        detail: dict[str, Any] = msgspec.json.decode(review.detail)
        if review.kind == "quarantine" and decision.approved and decision.done is None:
            raise BadInput(
                f"{review_id} is about the outcome of effect {detail.get('tool')}: use --done (with the provider's id, if known)"
                " or --not-done (the effect is repeated)"
            )
        return await self.store.commit(
            Decide(
                review_id=review_id,
                job_id=review.job_id,
                effect_key=detail.get("effect_key"),
                tenant_id=review.tenant_id,
                decision=decision,
            )
        )

    async def expire_leases(self, owner: str) -> int:
        """End the leases of a worker that is known to be dead. Returns how many it held."""
        rows = await self.store.read(SQL["list_owned"], {"owner": owner})
        return sum([await self.store.commit(ExpireLease(row[0], owner)) for row in rows])

    async def expire_dead_workers(self) -> int:
        """End the leases of all workers of this host whose process is dead. Returns how many they held."""
        rows = await self.store.read(SQL["list_leasing_workers"], {})
        return sum([await self.expire_leases(worker_id) for worker_id, host, pid in rows if is_dead(host, pid)])

    async def workers_alive(self) -> int:
        """The number of workers whose heartbeat is at most half a minute old."""
        return len(await self.store.read(SQL["list_workers"], {"since": self.store.clock() - ALIVE_US}))


class Decision(msgspec.Struct, frozen=True):
    """The decision of a person on a review.

    `done`, `provider_id` and `result` (JSON) are for effects whose outcome was unknown; with `tenant_id`, reviews of other
    tenants are not found.
    """

    approved: bool
    by: str
    note: str | None = None
    done: bool | None = None
    provider_id: str | None = None
    result: bytes | None = None
    tenant_id: str = ""


class Decide(msgspec.Struct):
    """Close a review, write its consequences, and wake the job. Outcome: the review."""

    review_id: str
    job_id: str
    effect_key: str | None
    tenant_id: str
    decision: Decision

    def locks(self) -> list[tuple[Any, Any]]:
        wanted: list[tuple[Any, Any]] = [(JOB, self.job_id), (REVIEW, self.review_id)]
        if self.effect_key is not None:
            wanted.append((effects.EFFECT, (self.tenant_id, self.effect_key)))
        return wanted

    def decide(self, unit: Unit) -> ReviewRow:
        decision = self.decision
        job = locked_job(unit, self.job_id)
        row = decide_review(
            unit.get(REVIEW, self.review_id),
            approved=decision.approved,
            by=decision.by,
            note=decision.note,
            now=unit.now,
        )
        unit.change(REVIEW, row)
        event = Event("review_decided", kind=row.kind, name=row.question[:200], actor=decision.by, attempt=job.attempt)
        event.decision = {"approved": decision.approved} | ({"note": decision.note} if decision.note else {})
        event.detail = {"review_id": row.review_id, "review": row.kind, "digest": row.digest}
        if row.kind == "approval":
            append(unit, job, event, path=row.path, ordinal=row.ordinal)
        else:
            append(unit, job, event)
            if self.effect_key is not None:
                self._settle_effect(unit, job, row)
        lifecycle.wake(unit, job)
        return msgspec.structs.replace(row)

    def _settle_effect(self, unit: Unit, job: JobRow, review: ReviewRow) -> None:
        decision = self.decision
        effect = unit.get(effects.EFFECT, (self.tenant_id, self.effect_key))
        if effect is None or effect.state != "unknown":
            return
        position = None
        if job.runtime == "python":
            position = effects.EffectPosition(review.path, review.ordinal, fingerprint(effect.tool))
        if not decision.approved:
            effects.reject(unit, job, effect, decision.note or f"{decision.by} rejected it", position, decision.by)
        elif decision.done:
            why = f"confirmed by {decision.by}"
            effects.commit(unit, job, effect, decision.result or b"null", decision.provider_id, position, why=why)
        else:
            effects.release(unit, job, effect, f"{decision.by} reports that it was not done", decision.by)
