"""Jobs whose code runs in somebody else's program: a LangGraph process, a script.

    with overnight.attach("nightly-2026-01-31") as job:
        model = ChatOpenAI(base_url=job.base_url, default_headers=job.headers, …)

The first start makes the job; each further start announces a new attempt, which fences the old one: recorded model calls are
then answered by the gateway from the ledger, and committed effects are given back instead of done again. There are no
positions here, so effects match on (tool, arguments, occurrence).
"""

import os
import threading
from collections import Counter
from collections.abc import Sequence
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from overnight import effects
from overnight.budgets import Limit, Policy
from overnight.domain import BudgetStopped, Conflict, Event, Fenced, check_identifier, new_id
from overnight.keys import PREFIX, bound_to
from overnight.ledger import JobRow, Ledger, NewJob, append, locked_job
from overnight.store import Store, Unit

from .commands import Announce, Complete, CreateJob, ParkForeign
from .effect_execution import (
    Act,
    EffectCall,
    Known,
    UnderJob,
)
from .encoding import fingerprint
from .execution import error_facts
from .external_boundaries import NotInJob
from .tool_call_limits import ToolLimits
from .tracebacks import traceback_content
from .waiting_for_budget import budget_wait

if TYPE_CHECKING:
    from .effect_decorator import Effect

_attached: ContextVar["ForeignJob | None"] = ContextVar("overnight_foreign_job", default=None)
_latest: list["ForeignJob"] = []


class JobParked(BaseException):
    """The job waits for a person, or for room in a budget; the program should end and be started again afterwards.

    Not an Exception, so that an agent framework does not hand it to the model as a tool error.
    """

    def __init__(self, message: str, review_id: str, wait: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.review_id = review_id
        self.wait = wait or {"for": "quarantine", "review_id": review_id}


class ForeignJob:
    """One attempt of a foreign job in this process. `headers` go on every model call; `base_url` is the gateway's, and
    `api_key` the key for it: "none" where none is set, as clients want some."""

    def __init__(
        self,
        store: Store,
        external_id: str,
        tenant_id: str,
        name: str,
        base_url: str,
        api_key: str | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.tool_limits = ToolLimits(policy, Ledger(store))
        self.job: JobRow | None = None
        self.store, self.external_id, self.tenant_id, self.name = store, external_id, tenant_id, name
        self.base_url, self.api_key = base_url, api_key or "none"
        self.job_id = ""
        self.attempt = 0
        self.owner = new_id("process")
        self._seen: Counter[tuple[str, str]] = Counter()
        self._seen_lock = threading.Lock()

    @property
    def headers(self) -> dict[str, str]:
        """Attribution and the fence."""
        headers = {"x-job-id": self.job_id, "x-job-attempt": str(self.attempt), "x-tenant-id": self.tenant_id}
        if self.api_key.startswith(PREFIX):
            headers["x-api-key"] = self.api_key  # whatever key the client itself was given
        return headers

    def __enter__(self) -> "ForeignJob":
        agent_id, workflow = bound_to(self.store, self.api_key)  # whose calls these will be
        new = NewJob(
            new_id("job"),
            self.tenant_id,
            "foreign",
            self.name,
            external_id=self.external_id,
            agent_id=agent_id,
            workflow=workflow,
            state="running",
        )
        job, fresh = self.store.commit_blocking(CreateJob(new))
        if not fresh:
            if job.runtime != "foreign":
                raise Conflict(f"{self.external_id} is a job that Overnight runs itself; choose another id")
            job = self.store.commit_blocking(Announce(job.job_id, actor=f"pid {os.getpid()}"))
        self.job, self.job_id, self.attempt = job, job.job_id, job.attempt
        self._token = _attached.set(self)
        _latest.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        _attached.reset(self._token)
        _latest.remove(self)
        if isinstance(raised, JobParked):
            self.store.commit_blocking(ParkForeign(self.job_id, self.attempt, [raised.wait]))
        if raised is None:
            self.store.commit_blocking(Complete(self.job_id, attempt=self.attempt))
        elif isinstance(raised, Exception) and not isinstance(raised, Fenced):
            failed = Complete(self.job_id, "failed", error=error_facts(raised), attempt=self.attempt)
            failed.trace = traceback_content(raised)
            self.store.commit_blocking(failed)

    def occurrence(self, tool: str, digest: str) -> int:
        """How many times this attempt has asked for the same effect with the same arguments before."""
        with self._seen_lock:
            self._seen[tool, digest] += 1
            return self._seen[tool, digest] - 1


def present() -> ForeignJob | None:
    """The attached job of this context, or of this process when a framework's threads have lost the context."""
    return _attached.get() or (_latest[-1] if _latest else None)


async def foreign_effect(tool: "Effect[..., Any]", named: dict[str, Any]) -> Known:
    """Do the effect for the attached job, or give back what an earlier attempt committed. Raises JobParked, NotInJob."""
    foreign = present()
    if foreign is None:
        raise NotInJob(f"effect {tool.tool} needs a job: call it inside of one, or under `with overnight.attach(…)`")
    digest = fingerprint(named)
    occurrence = f"{digest}:{foreign.occurrence(tool.tool, digest)}"
    key = effects.effect_key(foreign.tenant_id, foreign.name, "", foreign.job_id, tool.tool, occurrence)

    def fence(unit: Unit) -> JobRow:
        job = locked_job(unit, foreign.job_id)
        if job.attempt != foreign.attempt or job.state == "cancelled":
            raise Fenced(
                f"attempt {foreign.attempt} of {job.job_id} is over: it is {job.state} at attempt {job.attempt}"
            )
        return job

    async def write(act: Act, limits: Sequence[Limit] = ()) -> Any:
        return await foreign.store.commit(UnderJob(foreign.job_id, foreign.tenant_id, key, fence, act, limits))

    limits = partial(foreign.tool_limits.of, foreign.job, None) if foreign.job is not None else None
    call = EffectCall(tool, key, named, write, foreign.store.clock, foreign.owner, check=_no_lease, limits=limits)
    try:
        known = await call.run()
    except BudgetStopped as stop:
        raise JobParked(f"{stop}: `overnight budget` shows it", "", budget_wait(stop)) from None
    if known is None:
        review_id = await call.request_review()
        message = f"nobody knows whether {tool.tool} was done: `overnight reviews` has it as {review_id}"
        raise JobParked(message, review_id)
    if known.again:
        await write(lambda unit, job: _given_again(unit, job, tool.tool, key))
    return known


def _no_lease() -> None:
    """A foreign program holds no lease: its attempt lasts until the next one is announced."""


def _given_again(unit: Unit, job: JobRow, tool: str, key: str) -> None:
    event = Event("tool_succeeded", name=tool, kind="effect", idempotency_key=key, attempt=job.attempt)
    event.decision = {"why": "replayed from an earlier attempt"}
    event.detail = {"replayed": True}
    append(unit, job, event)


def checked(external_id: str, tenant_id: str) -> tuple[str, str]:
    """The identifiers as given. Raises BadInput."""
    return check_identifier(external_id, "external_id"), check_identifier(tenant_id, "tenant_id")
