"""Model calls of job code in this process: the same path as over HTTP, answered at a position of the job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from overnight.domain import Attribution, BadInput, Fenced, Recorded
from overnight.ledger import JobRow
from overnight.wire_formats import CHAT

from .call.pipeline import Flight
from .gateway import Gateway
from .identity import Place, Subject
from .routing_facts import facts_of

_encode = msgspec.json.Encoder().encode


class JobRequest(Protocol):
    """What job code asks: a chat-completions body, its task, and where it stands in the job."""

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


class JobCalls:
    """The gateway as job code sees it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def call(self, request: JobRequest) -> Recorded:
        """The durable answer: a `model_succeeded` or, when every target failed, `model_failed` event at that position.

        Raises BudgetStopped when a hard stop blocks the call, Fenced when another worker has the job, BadInput for a
        body that no provider could take.
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
        )
        if gateway.keys.aged:
            await gateway.keys.refresh()  # the tenant's own keys of providers
        decision = gateway.decide(facts_of(who, asked))
        # The label that the job's history is compared by: "auto" is what no model and no task become.
        label = request.task or (asked.model if asked.model != "auto" else "default")
        place = Place(request.path, request.ordinal, request.fingerprint, job.lease_epoch)
        kin = await gateway.ancestors(job)
        subject = Subject(
            who, job.job_id, kin, known=True, label=label, attempt=job.attempt, place=place, lineage=gateway.lineage
        )
        held_back: list[Fenced] = []

        def check() -> None:
            try:
                if request.check is not None:
                    request.check()
            except Fenced as gone:
                held_back.append(gone)
                raise

        subject.check = check
        while True:
            flight = Flight(gateway, subject, asked, decision)
            try:
                await flight.run()
            except Fenced as gone:
                if gone in held_back:
                    flight.sent_at = None  # the lease was gone before anything was sent
                raise
            finally:
                flight.landed()
            if flight.ended is None:
                raise RuntimeError("a call of job code ended without a record")
            if not flight.came_late:
                return flight.ended.recorded
            # It was declared lost, so no answer stands at this position of the job: ask again, as a recovery would.

    async def settle_lost(self, job: JobRow) -> int:
        """Settle the calls that older leases of this job left in flight as lost; how many there were."""
        return await self._gateway.settle_lost(job)
