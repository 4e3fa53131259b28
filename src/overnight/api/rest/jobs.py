"""`/api/v1/jobs`: jobs, events (also live), attempts, completion and cancellation.

All are limited to the tenant of the request, and the agent and workflow of its key. Other jobs are reported as not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query
from pydantic import Field

from overnight.domain import (
    BadInput,
    Conflict,
    ErrorFacts,
    Recorded,
    check_identifier,
    job_states,
    parse_whole,
    public_event,
    without_texts,
)
from overnight.gateway import HttpResponse, parse_job_name
from overnight.jobs import Complete
from overnight.ledger import JOB, JobRow, begin_attempt, locked_job, read_idleness
from overnight.reports import load_receipt, public_receipt
from overnight.reviews import supersede_waits
from overnight.store import Unit
from overnight.story import public_job, read_traceback, tree_costs

from ..attribution import attribution
from ..content import reads_content, without_content
from .calls import Answer, ApiCall, ApiRoute, Call, json_answer
from .models import Body, EmptyBody, JobName, Parameters, ResponseModel, Text, responses, whole

MAX_JOBS, MAX_EVENTS = 200, 1000
MAX_SEQ = 2**53
_encode = msgspec.json.Encoder().encode
router = APIRouter(route_class=ApiRoute)


class JobQuery(Parameters):
    """`before` is the last job_id of the previous page."""

    state: Text = Field("", json_schema_extra={"enum": list(job_states)})
    before: Text = ""
    limit: Annotated[int, Field(ge=0, le=MAX_JOBS), whole(MAX_JOBS)] = 50


class EventQuery(Parameters):
    """`after`: only events with a higher seq."""

    after: Annotated[int, Field(ge=0, le=MAX_SEQ), whole(MAX_SEQ)] = 0
    limit: Annotated[int, Field(ge=0, le=MAX_EVENTS), whole(MAX_EVENTS)] = MAX_EVENTS


class NewAttempt(Body):
    """`recover`: replay every recorded answer. `retry`: re-run the calls after the last effect."""

    mode: Literal["recover", "retry"] = "recover"


class JobError(Body):
    """Why a job failed."""

    error_class: str = Field(alias="class")
    message: str = ""
    code: str | None = None
    retryable: bool = False


class Completion(Body):
    """The end of a job. `error` is a message, or an object with `class` and `message`."""

    state: Literal["succeeded", "failed"] = "succeeded"
    result: Any = None
    error: str | JobError | None = None


class JobShown(ResponseModel):
    job_id: str
    name: str
    state: str = Field(json_schema_extra={"enum": list(job_states)})
    runtime: Literal["python", "foreign"]
    tenant_id: str
    created_at: str
    cost_usd: float


class JobList(ResponseModel):
    jobs: list[JobShown]


class EventPage(ResponseModel):
    events: list[dict[str, Any]]
    after: int


class ReceiptShown(ResponseModel):
    job_id: str
    state: str = Field(json_schema_extra={"enum": list(job_states)})
    settled: bool
    none: bool
    counts: dict[str, int]
    effects: list[dict[str, Any]]
    unexecuted: list[dict[str, Any]]
    claims: list[dict[str, Any]]


class AttemptShown(ResponseModel):
    job_id: str
    attempt: int


class StateShown(ResponseModel):
    job_id: str
    state: str


class Announced(msgspec.Struct):
    """Command: start the next attempt of an external job."""

    job_id: str
    mode: str
    seen_seq: int
    answers_until: int | None
    actor: str

    def locks(self) -> list[tuple[Any, Any]]:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> int:
        job = locked_job(unit, self.job_id)
        if job.runtime != "foreign":
            raise Conflict(f"{self.job_id} is run by Overnight; use `overnight resume` to start a new attempt")
        if self.answers_until is not None and job.last_seq != self.seen_seq:
            raise Conflict(f"{self.job_id} changed meanwhile; try again")
        waits = job.waits
        begin_attempt(unit, job, self.mode, None, self.actor, self.answers_until)
        supersede_waits(unit, job, waits, "a new attempt began")
        return job.attempt


class _RawResult(msgspec.Struct):
    """The result as it was sent, so that no number in it changes."""

    result: msgspec.Raw = msgspec.Raw(b"null")


@router.get("/jobs", summary="Jobs, newest first", responses=responses(200, "A page of jobs.", JobList))
async def list_jobs(call: Call, query: Annotated[JobQuery, Query()]) -> Answer:
    state, before = query.state, query.before
    if state and state not in job_states:
        raise BadInput(f"state: {state[:40]!r} is not one of {', '.join(job_states)}")
    if before and parse_job_name(before, "before")[0] is None:
        raise BadInput(f"before: {before[:40]!r} is not a job id; send the last job_id of the previous page")
    found = await call.services.ledger.jobs(
        tenant_id=call.tenant_id,
        state=state,
        before=before,
        most=query.limit,
        key_scope=call.key_scope,
    )
    return json_answer(200, {"jobs": await _public(call, found)})


@router.get("/jobs/{job}", summary="One job, with its result", responses=responses(200, "The job.", JobShown))
async def one(call: Call, job: JobName) -> Answer:  # noqa: ARG001 - see JobName
    found = await _job(call)
    (shown,) = await _public(call, [found])
    if not reads_content(call.request.key):
        return json_answer(200, shown)
    shown["result"] = msgspec.Raw(found.result) if found.result else None
    shown["traceback"] = await read_traceback(call.services.ledger, found)
    return json_answer(200, shown)


@router.get(
    "/jobs/{job}/events",
    summary="Its events, also live",
    responses=responses(
        200, "A page of events, or a live stream.", EventPage, content={"text/event-stream": {"schema": {}}}
    ),
)
async def events(call: Call, job: JobName, query: Annotated[EventQuery, Query()]) -> Answer:  # noqa: ARG001 - see JobName
    """With `Accept: text/event-stream`, live until the job finishes; `id` is the seq."""
    found, after, request = await _job(call), query.after, call.request
    if b"text/event-stream" in request.header(b"accept"):
        resumed = parse_whole(request.header(b"last-event-id"), MAX_SEQ)
        after = after if resumed is None else resumed
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        if request.method == "HEAD":
            return Answer(HttpResponse(200, headers))
        encode = partial(_live_event, with_content=reads_content(request.key))
        return Answer(HttpResponse(200, headers, pieces=call.tools.streams.open(request, found, after, encode)))
    page = await call.services.ledger.events(found.job_id, after, query.limit)
    last = page[-1].seq if page else after
    shown = [_public_event(event, with_content=reads_content(request.key)) for event in page]
    return json_answer(200, {"events": shown, "after": last})


@router.get(
    "/jobs/{job}/receipt",
    summary="Its effects, and how they are known",
    responses=responses(200, "The receipt.", ReceiptShown),
)
async def receipt(call: Call, job: JobName) -> Answer:  # noqa: ARG001 - see JobName
    """With its child jobs. Arguments, reasons and statements only for keys with the scope content.read."""
    found = await load_receipt(call.services.ledger, await _job(call))
    return json_answer(200, public_receipt(found, with_content=reads_content(call.request.key)))


@router.post(
    "/jobs/{job}/attempts",
    status_code=201,
    summary="Start the next attempt of an external job",
    responses=responses(201, "The attempt.", AttemptShown),
)
async def attempts(call: Call, job: JobName, body: NewAttempt) -> Answer:  # noqa: ARG001 - see JobName
    """The first attempt of a job that has an external id starts the job."""
    name = check_identifier(call.request.names[0], "the job's id")
    _, external_id = parse_job_name(name, "the job's id")
    if external_id is not None:
        who = attribution(call.request.headers, call.request.key)
        who = msgspec.structs.replace(who, job_id=None, external_id=name, attempt=None)
        job_id, is_new = await call.services.start_job(who)
        if is_new:
            return json_answer(201, {"job_id": job_id, "attempt": 1})
    found, ledger = await _job(call), call.services.ledger
    until: int | None = None
    if body.mode == "retry":
        events = await ledger.events(found.job_id)
        until = max((event.seq for event in events if event.facts.event == "tool_succeeded"), default=0)
    attempt = await ledger.store.commit(Announced(found.job_id, body.mode, found.last_seq, until, call.actor))
    return json_answer(201, {"job_id": found.job_id, "attempt": attempt})


@router.post("/jobs/{job}/complete", summary="Complete an external job", responses=responses(200, "The job.", JobShown))
async def complete(call: Call, job: JobName, body: Completion) -> Answer:  # noqa: ARG001 - see JobName
    found, store = await _job(call), call.services.ledger.store
    result = msgspec.json.decode(call.request.body, type=_RawResult).result
    command = Complete(
        found.job_id,
        body.state,
        bytes(result),
        _error_facts(body.error),
        call.actor,
        parent_job_id=found.parent_job_id,
    )
    return json_answer(200, (await _public(call, [await store.commit(command)]))[0])


@router.post(
    "/jobs/{job}/cancel",
    summary="Stop a job and its child jobs",
    responses=responses(200, "It has stopped.", StateShown) | responses(202, "It is asked to stop.", StateShown),
)
async def cancel(call: Call, job: JobName, body: EmptyBody) -> Answer:  # noqa: ARG001 - see JobName
    found = await _job(call)
    state = await call.tools.operations.cancel(found.job_id, call.actor)
    return json_answer(202 if state == "running" else 200, {"job_id": found.job_id, "state": state})


async def _job(call: ApiCall) -> JobRow:
    name = check_identifier(call.request.names[0], "the job's id")
    return await call.services.ledger.job(name, call.tenant_id, call.key_scope)


async def _public(call: ApiCall, jobs: Sequence[JobRow]) -> list[dict[str, Any]]:
    """As `overnight jobs --json`; costs include child jobs."""
    ledger = call.services.ledger
    costs, now = await tree_costs(ledger, [job.job_id for job in jobs]), ledger.store.clock()
    idle = await read_idleness(ledger.store, jobs, now)
    shown = [public_job(job, *costs.get(job.job_id, (0, 0, 0)), now, idle.get(job.job_id)) for job in jobs]
    return shown if reads_content(call.request.key) else [without_content(each) for each in shown]


def _error_facts(error: str | JobError | None) -> ErrorFacts | None:
    if isinstance(error, str):
        return ErrorFacts("failed", error[:500])
    return error and ErrorFacts(error.error_class, error.message, error.code, error.retryable)


def _public_event(event: Recorded, *, with_content: bool) -> dict[str, Any]:
    return public_event(event if with_content else without_texts(event))


def _live_event(event: Recorded, *, with_content: bool) -> bytes:
    data = _encode(_public_event(event, with_content=with_content))
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.seq, event.facts.event.encode(), data)
