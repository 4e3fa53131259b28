"""Jobs whose code runs in somebody else's program: a LangGraph process, a script.

    with overnight.attach("nightly-2026-01-31") as job:
        model = ChatOpenAI(base_url=job.base_url, default_headers=job.headers, …)

The first start makes the job; each further start announces a new attempt, which fences the old one: recorded model calls are
then answered by the gateway from the ledger, and committed effects are given back instead of done again. There are no
positions here, so effects match on (tool, arguments, occurrence).
"""

import asyncio
import os
import threading
from collections import Counter
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from overnight import effects
from overnight.domain import Conflict, Event, Fenced, check_identifier, new_id
from overnight.ledger import JOB, NewJob, append, locked_job
from overnight.reviews import request_review
from overnight.store import Store, Unit, crash_point

from .asking import NotInJob
from .commands import Announce, Complete, CreateJob
from .encoding import encode, fingerprint
from .execution import error_facts

if TYPE_CHECKING:
    from .effecting import Effect

_attached: ContextVar["ForeignJob | None"] = ContextVar("overnight_foreign_job", default=None)
_latest: list["ForeignJob"] = []


class JobParked(BaseException):
    """The job waits for a person; the program should end and be started again after the decision.

    Not an Exception, so that an agent framework does not hand it to the model as a tool error.
    """


class ForeignJob:
    """One attempt of a foreign job in this process. `headers` go on every model call; `base_url` is the gateway's."""

    def __init__(self, store: Store, external_id: str, tenant_id: str, name: str, base_url: str) -> None:
        self.store, self.external_id, self.tenant_id, self.name = store, external_id, tenant_id, name
        self.base_url = base_url
        self.job_id = ""
        self.attempt = 0
        self.owner = new_id("process")
        self._seen: Counter[tuple[str, str]] = Counter()
        self._seen_lock = threading.Lock()

    @property
    def headers(self) -> dict[str, str]:
        """Attribution and the fence."""
        return {"x-job-id": self.job_id, "x-job-attempt": str(self.attempt), "x-tenant-id": self.tenant_id}

    def __enter__(self) -> "ForeignJob":
        new = NewJob(new_id("job"), self.tenant_id, "foreign", self.name, external_id=self.external_id, state="running")
        job, fresh = self.store.commit_blocking(CreateJob(new))
        if not fresh:
            if job.runtime != "foreign":
                raise Conflict(f"{self.external_id} is a job that Overnight runs itself; choose another id")
            job = self.store.commit_blocking(Announce(job.job_id, actor=f"pid {os.getpid()}"))
        self.job_id, self.attempt = job.job_id, job.attempt
        self._token = _attached.set(self)
        _latest.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        _attached.reset(self._token)
        _latest.remove(self)
        if raised is None:
            self.store.commit_blocking(Complete(self.job_id))
        elif isinstance(raised, Exception) and not isinstance(raised, Fenced):
            self.store.commit_blocking(Complete(self.job_id, "failed", error=error_facts(raised)))

    def occurrence(self, tool: str, digest: str) -> int:
        """How many times this attempt has asked for the same effect with the same arguments before."""
        with self._seen_lock:
            self._seen[tool, digest] += 1
            return self._seen[tool, digest] - 1


def present() -> ForeignJob | None:
    """The attached job of this context, or of this process when a framework's threads have lost the context."""
    return _attached.get() or (_latest[-1] if _latest else None)


class _Act(msgspec.Struct):
    """A command on an effect of a foreign job, fenced by the attempt."""

    foreign: Any
    key: str
    act: Any

    def locks(self) -> list[tuple[Any, Any]]:
        return [(JOB, self.foreign.job_id), (effects.EFFECT, (self.foreign.tenant_id, self.key))]

    def decide(self, unit: Unit) -> Any:
        job = locked_job(unit, self.foreign.job_id)
        if job.attempt != self.foreign.attempt:
            raise Fenced(f"attempt {self.foreign.attempt} of {job.job_id} is over: attempt {job.attempt} has begun")
        if job.state == "cancelled":
            raise Fenced(f"{job.job_id} was cancelled")
        return self.act(unit, job, unit.get(effects.EFFECT, (self.foreign.tenant_id, self.key)))


async def foreign_effect(tool: "Effect[..., Any]", args: Any, kwargs: Any) -> Any:
    """Do the effect for the attached job, or give back what an earlier attempt committed. Raises EffectFailed, JobParked."""
    from .effecting import CANNOT_TELL, Done

    foreign = present()
    if foreign is None:
        raise NotInJob(f"effect {tool.tool} needs a job: call it inside of one, or under `with overnight.attach(…)`")
    named = tool.arguments(args, kwargs)
    body = encode(named, f"the arguments of effect {tool.tool}")
    digest = fingerprint(msgspec.json.decode(body))
    occurrence = f"{digest}:{foreign.occurrence(tool.tool, digest)}"
    key = effects.effect_key(foreign.tenant_id, foreign.name, "", foreign.job_id, tool.tool, occurrence)
    wanted = effects.Claim(key, tool.tool, body, digest, foreign.owner)

    async def write(act: Any) -> Any:
        return await foreign.store.commit(_Act(foreign, key, act))

    while True:
        claimed = await write(lambda unit, job, _: effects.claim(unit, job, wanted, None))
        row = claimed.row
        if claimed.verdict == "committed":
            await write(lambda unit, job, _: _given_again(unit, job, row))
            return tool.outcome("tool_succeeded", row.result, None)
        if claimed.verdict == "in_progress":
            await asyncio.sleep(0.05)
            continue
        if claimed.verdict == "run":
            crash_point("effect_claimed")
            try:
                done = await tool.call(key, named)
            except tool.not_done as error:
                facts = error_facts(error)
                await write(lambda unit, job, row, facts=facts: effects.fail(unit, job, row, facts, None))
                return tool.outcome("tool_failed", None, facts)
            except Exception as error:
                why = f"{type(error).__name__}: {str(error)[:200]}"
                await write(lambda unit, job, row, why=why: effects.mark_unknown(unit, job, row, why))
            else:
                crash_point("effect_called")
                return await _commit(tool, write, done, None)
        found = await tool.ask_status(key, named)
        if isinstance(found, Done):
            return await _commit(tool, write, found, "the status check found it done")
        if found == CANNOT_TELL:
            review_id = await write(lambda unit, job, row: _quarantine(unit, job, tool.tool, key, body))
            raise JobParked(f"nobody knows whether {tool.tool} was done: `overnight reviews` has it as {review_id}")
        await write(lambda unit, job, row: effects.release(unit, job, row, "the status check found it not done"))


async def _commit(tool: "Effect[..., Any]", write: Any, done: Any, why: str | None) -> Any:
    result = encode(done.result, f"the result of effect {tool.tool}")
    await write(lambda unit, job, row: effects.commit(unit, job, row, result, done.provider_id, None, why=why))
    crash_point("effect_committed")
    return tool.outcome("tool_succeeded", result, None)


def _given_again(unit: Unit, job: Any, row: effects.EffectRow) -> None:
    event = Event("tool_succeeded", name=row.tool, kind="effect", idempotency_key=row.effect_key, attempt=job.attempt)
    event.decision = {"why": "committed by an earlier attempt; given again, not done again"}
    event.detail = {"replayed": True}
    append(unit, job, event)


def _quarantine(unit: Unit, job: Any, tool: str, key: str, body: bytes) -> str:
    question = f"Was {tool} done? Its process or its answer was lost, and there is no status check that can tell."
    detail = {"effect_key": key, "tool": tool, "arguments": msgspec.json.decode(body)}
    return request_review(unit, job, "quarantine", question, detail, None).review_id


def checked(external_id: str, tenant_id: str) -> tuple[str, str]:
    """The identifiers as given. Raises BadInput."""
    return check_identifier(external_id, "external_id"), check_identifier(tenant_id, "tenant_id")
