"""Model calls of job code in this process: the same path as over HTTP, recorded at a position of the job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from overnight.domain import Attribution, BadInput, Recorded
from overnight.ledger import JobRow
from overnight.wire_formats import CHAT

from .call.pipeline import CallPipeline
from .call.result import is_late
from .call_context import new_context
from .call_facts import routing_facts
from .gateway import Gateway
from .identity import BoundaryPosition, Subject

_encode = msgspec.json.Encoder().encode


class JobRequest(Protocol):
    """A call of job code: a chat-completions body, its task, and its position in the job."""

    @property
    def body(self) -> Mapping[str, Any]: ...
    @property
    def job(self) -> JobRow: ...
    @property
    def task(self) -> str | None: ...
    @property
    def step(self) -> str | None: ...
    @property
    def path(self) -> str: ...
    @property
    def ordinal(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def check(self) -> Callable[[], None] | None: ...
    @property
    def about(self) -> str | None: ...
    @property
    def prompts(self) -> tuple[str, ...]: ...


class JobCalls:
    """Model calls of job code."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def call(self, request: JobRequest) -> Recorded:
        """Make the call. Returns the durable event at its position: `model_succeeded`, or `model_failed` if every target failed.

        Raises BudgetStopped when a hard stop blocks the call, Fenced when another worker has the job, BadInput for an
        invalid body.
        """
        gateway, job = self._gateway, request.job
        try:
            body = _encode(request.body)
        except (TypeError, ValueError, RecursionError) as error:
            raise BadInput(f"chat(): {error}. Messages and parameters must be JSON") from None
        asked = gateway.read(CHAT, body)
        who = Attribution(
            job.tenant_id,
            job.job_id,
            agent_id=job.agent_id,
            session_id=job.session_id,
            task_id=request.task,
            step=request.step,
            workflow=job.workflow,
            about=request.about,
        )
        if gateway.keys.is_aged:
            await gateway.keys.refresh()  # the tenant's own keys of providers
        decision = gateway.decide(routing_facts(who, asked))
        subject = Subject(
            who=who,
            job_id=job.job_id,
            ancestors=await gateway.jobs.ancestors(job),
            known=True,
            # Replay compares this label. Without a task or a model it is "default".
            label=request.task or (asked.model if asked.model != "auto" else "default"),
            attempt=job.attempt,
            place=BoundaryPosition(request.path, request.ordinal, request.fingerprint, job.lease_epoch),
            lineage=gateway.jobs.lineage,
            prompts_version=await gateway.prompts.version_in(job.brain_version),
            prompts=tuple((name, job.brain_version or "") for name in request.prompts),
        )
        while True:
            pipeline = CallPipeline(gateway.services, new_context(subject, asked, decision, CHAT, check=request.check))
            try:
                result = await pipeline.run()
            finally:
                pipeline.release()
            if not is_late(result.recorded):
                return result.recorded
            # The call was declared lost, so this position has no answer. Repeat the call, as a recovery would.

    async def settle_lost(self, job: JobRow) -> int:
        """Settle the calls that older leases of this job left in flight as lost. Returns their number."""
        return await self._gateway.settle_lost(job)
