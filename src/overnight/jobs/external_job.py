"""External jobs: jobs whose code runs in a program outside Overnight, such as a LangGraph program or a script.

    with overnight.attach("nightly-2026-01-31") as job:
        model = ChatOpenAI(base_url=job.base_url, default_headers=job.headers, …)

The first start creates the job. Each further start begins a new attempt, which fences the previous one: the gateway then
replays recorded model calls, and committed effects are replayed instead of executed again. There are no positions here, so
effects match on (tool, arguments, occurrence).
"""

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Generator, Sequence
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import Any

from overnight import effects
from overnight.budgets import Policy
from overnight.domain import BudgetStopped, Conflict, Event, Fenced, check_identifier, new_id
from overnight.domain.claim_rules import ClaimRule
from overnight.keys import PREFIX, bound_to
from overnight.ledger import JobRow, Ledger, NewJob, append, locked_job
from overnight.store import Store, Unit
from overnight.tools import FindRules, no_rules

from .commands import BeginAttempt, Complete, CreateJob, ParkExternal
from .current_record import current_record
from .effect_execution import EffectCall
from .effect_records import EffectAction, EffectCommand, EffectHolder, EffectOutcome, EffectWait, Tool
from .encoding import fingerprint
from .execution import NotInJob
from .job_parked import JobParked
from .lease import AttemptCheck
from .remote_job import RemoteJob
from .tool_call_limits import ToolCallLimits
from .tracebacks import error_facts, traceback_content
from .waiting_for_budget import budget_wait

_attached: ContextVar["ExternalJob | RemoteJob | None"] = ContextVar("overnight_external_job", default=None)
_latest: list["ExternalJob | RemoteJob"] = []


class ExternalJob:
    """One attempt of an external job in this process.

    - `headers`: send them with every model call. `base_url`: the URL of the gateway.
    - `api_key`: the key for the gateway; "none" without one, since clients require a key.
    """

    def __init__(
        self,
        store: Store,
        external_id: str,
        tenant_id: str,
        name: str,
        base_url: str,
        api_key: str | None = None,
        policy: Policy | None = None,
        tool_rules: FindRules = no_rules,
        claims: Sequence[ClaimRule] = (),
    ) -> None:
        self.tool_rules, self.claims = tool_rules, claims
        self.tool_limits = ToolCallLimits(policy, Ledger(store))
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
        """The headers that attribute a model call to this attempt, and to the record of `overnight.about`."""
        headers = {"x-job-id": self.job_id, "x-job-attempt": str(self.attempt), "x-tenant-id": self.tenant_id}
        if self.api_key.startswith(PREFIX):
            headers["x-api-key"] = self.api_key  # takes precedence over the key of the client itself
        if (record := current_record()) is not None:
            headers["x-record"] = record
        return headers

    def __enter__(self) -> "ExternalJob":
        scope = bound_to(self.store, self.api_key)  # the attribution of its calls
        scope.check_job(self.external_id, "external_id")
        new = NewJob(
            job_id=new_id("job"),
            tenant_id=self.tenant_id,
            runtime="foreign",
            name=self.name,
            external_id=self.external_id,
            agent_id=scope.agent_id,
            workflow=scope.workflow,
            state="running",
            claims=self.claims,
        )
        job, fresh = self.store.commit_blocking(CreateJob(new))
        if not fresh:
            if job.runtime != "foreign":
                raise Conflict(f"{self.external_id} is a job run by Overnight; choose another id")
            job = self.store.commit_blocking(BeginAttempt(job.job_id, actor=f"pid {os.getpid()}"))
        self.job, self.job_id, self.attempt = job, job.job_id, job.attempt
        self._token = _attached.set(self)
        _latest.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        _attached.reset(self._token)
        _latest.remove(self)
        parent = self.job.parent_job_id if self.job is not None else None
        if isinstance(raised, JobParked):
            self.store.commit_blocking(ParkExternal(self.job_id, self.attempt, [raised.wait]))
        if raised is None:
            self.store.commit_blocking(Complete(self.job_id, attempt=self.attempt, parent_job_id=parent))
        elif isinstance(raised, Exception) and not isinstance(raised, Fenced):
            failed = Complete(
                self.job_id, "failed", error=error_facts(raised), attempt=self.attempt, parent_job_id=parent
            )
            failed.trace = traceback_content(raised)
            self.store.commit_blocking(failed)

    def occurrence(self, tool: str, digest: str) -> int:
        """The number of earlier requests of this attempt for the same effect with the same arguments."""
        with self._seen_lock:
            self._seen[tool, digest] += 1
            return self._seen[tool, digest] - 1


@contextlib.contextmanager
def remote_attempt(job: RemoteJob) -> Generator[RemoteJob]:
    """Run the block as the next attempt of an external job, through its gateway."""
    job.begin()
    token = _attached.set(job)
    _latest.append(job)
    try:
        yield job
    except BaseException as raised:
        job.end(raised)
        raise
    else:
        job.end(None)
    finally:
        _attached.reset(token)
        _latest.remove(job)


def attached_job() -> ExternalJob | RemoteJob | None:
    """The attached job of this context, or of this process if a framework's threads have lost the context."""
    return _attached.get() or (_latest[-1] if _latest else None)


async def external_effect(tool: Tool, named: dict[str, Any]) -> EffectOutcome:
    """Execute an effect for the attached job, or replay what an earlier attempt committed. Raises JobParked, NotInJob."""
    attached = attached_job()
    if attached is None:
        raise NotInJob(f"effect {tool.tool} requires a job: call it in a job, or inside `with overnight.attach(…)`")
    if isinstance(attached, RemoteJob):
        return await attached.execute(tool, named)
    digest = fingerprint(named)
    occurrence = f"{digest}:{attached.occurrence(tool.tool, digest)}"
    key = effects.effect_key(attached.tenant_id, attached.name, "", attached.job_id, tool.tool, occurrence)

    def fence(unit: Unit) -> JobRow:
        job = locked_job(unit, attached.job_id)
        if job.attempt != attached.attempt or job.state == "cancelled":
            raise Fenced(
                f"attempt {attached.attempt} of {job.job_id} has ended: the job is {job.state} at attempt {job.attempt}"
            )
        return job

    def command(act: EffectAction) -> EffectCommand:
        return EffectCommand(job_id=attached.job_id, tenant_id=attached.tenant_id, key=key, fence=fence, act=act)

    attempt = AttemptCheck(attached.store, partial(command, _nothing))
    holder = EffectHolder(
        store=attached.store,
        job_id=attached.job_id,
        tenant_id=attached.tenant_id,
        owner=attached.owner,
        commit=attached.store.commit,
        fence=fence,
        check=attempt.check,
        begin=attempt.begin,
        rules=attached.tool_rules,
        limits=partial(attached.tool_limits.of, attached.job, None) if attached.job is not None else None,
    )
    call = EffectCall(tool, holder, key=key, named=named, about=current_record())
    try:
        outcome = await call.run()
    except BudgetStopped as stop:
        raise JobParked(f"{stop}. See `overnight budget`", "", budget_wait(stop)) from None
    if isinstance(outcome, EffectWait):
        waits = {"for": outcome.wait_for, "review_id": outcome.review_id}
        raise JobParked(_wait_text(tool.tool, outcome), outcome.review_id, waits)
    if outcome.replayed:
        await attached.store.commit(command(lambda unit, job: _record_replay(unit, job, tool.tool, key)))
    return outcome


def _wait_text(tool: str, wait: EffectWait) -> str:
    what = "waits for approval" if wait.wait_for == "approval" else "has an unknown outcome"
    return (
        f"effect {tool} {what}. Decide review {wait.review_id} with `overnight reviews`, then start the program again"
    )


def _nothing(unit: Unit, job: JobRow) -> None:
    """Only the fence is checked."""


def _record_replay(unit: Unit, job: JobRow, tool: str, key: str) -> None:
    event = Event("tool_succeeded", name=tool, kind="effect", idempotency_key=key, attempt=job.attempt)
    event.about = current_record()
    event.decision = {"why": "replayed from an earlier attempt"}
    event.detail = {"replayed": True}
    append(unit, job, event)


def check_identifiers(external_id: str, tenant_id: str) -> tuple[str, str]:
    """Check both identifiers, and return them. Raises BadInput."""
    return check_identifier(external_id, "external_id"), check_identifier(tenant_id, "tenant_id")
