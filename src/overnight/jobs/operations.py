"""Operations on jobs by people and programs: create, resume, cancel, decide a review."""

from typing import Any

from overnight.budgets import wake_topped_up
from overnight.domain import FINISHED, BadInput, Conflict, NotFound, new_id
from overnight.keys import VirtualKey
from overnight.ledger import JobRow, Ledger, NewJob, is_dead
from overnight.reviews import Decision, ReviewRow, check_answer, read_review
from overnight.store import Store, statements

from .commands import Cancel, CreateJob, ExpireLease, Resume
from .decisions import LimitOf, Renew, check_decider, is_named, prepared
from .definitions import JobFunction, input_of
from .edited_calls import EditedCall, FindPolicy
from .replay.history import fold
from .replay.retry_plan import stale_for_retry

SQL = statements("overnight.jobs")
ALIVE_US = 30_000_000


class Operations:
    """Operations on jobs. Each change is one transaction with its events."""

    def __init__(self, store: Store, tool_policy: FindPolicy | None = None) -> None:
        """`tool_policy` finds the contracts and rules in force, which edited arguments must fit; None: there are none."""
        self.store, self.ledger, self._tool_policy = store, Ledger(store), tool_policy

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

    async def decide(
        self,
        review_id: str,
        decision: Decision,
        *,
        key: VirtualKey | None = None,
        over_http: bool = False,
        limit_of: LimitOf | None = None,
    ) -> ReviewRow:
        """Decide a review, and wake its job. The same answer again changes nothing.

        - `key`: the API key of the request; `over_http`: it is required. `limit_of`: the limits that a top-up must not exceed.

        Raises BadInput for a decision that does not fit the question, NotFound, Forbidden, and Conflict for a review with
        another answer, another digest, or whose time is over.
        """
        review = await self.review(review_id, decision.tenant_id)
        await check_decider(self.ledger, review, decision.by, key, over_http=over_http)
        decision = check_answer(review, decision)
        edited = None
        if decision.arguments is not None:
            call = EditedCall(review, await self.ledger.job(review.job_id), decision.arguments)
            if (policy := self._tool_policy and self._tool_policy()) is not None:
                call.check(policy, lambda names: is_named(names, decision.by, key))
            edited = call.sha256
        command = await prepared(self.ledger, review, decision, limit_of, edited)
        decided = await self.store.commit(command)
        if decided.cancelled:
            await self.cancel_children(review.job_id, decision.by)
        if decided.top_up is not None:
            await wake_topped_up(self.store, decided.top_up, decided.budget)
        return decided.review

    async def review(self, review_id: str, tenant_id: str = "") -> ReviewRow:
        """A review of a tenant; "": of any. Raises NotFound."""
        try:
            found = await read_review(self.store, review_id)
        except BadInput:
            found = None
        if found is None or (tenant_id and found.tenant_id != tenant_id):
            raise NotFound(f"review {review_id}; `overnight reviews` lists pending reviews")
        return found

    async def renew(
        self,
        review_id: str,
        by: str,
        extend_us: int | None = None,
        *,
        tenant_id: str = "",
        key: VirtualKey | None = None,
        over_http: bool = False,
    ) -> ReviewRow:
        """Renew an expired review, or extend an open one; default: as long as at first. Raises as `decide`."""
        review = await self.review(review_id, tenant_id)
        await check_decider(self.ledger, review, by, key, over_http=over_http)
        command = Renew(
            review_id=review.review_id,
            job_id=review.job_id,
            tenant_id=review.tenant_id,
            effect_key=review.effect_key,
            by=by,
            extend_us=extend_us,
        )
        return await self.store.commit(command)

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
