"""`/api/v1/jobs`: jobs, events (also live), attempts, completion and cancellation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import msgspec

from overnight.domain import (
    BadInput,
    Conflict,
    ErrorFacts,
    Recorded,
    check_identifier,
    job_states,
    parse_whole,
    public_event,
)
from overnight.gateway import Gateway, HttpResponse, parse_job_name
from overnight.jobs import Complete, Operations
from overnight.keys import VirtualKey
from overnight.ledger import JOB, JobRow, Ledger, begin_attempt, locked_job, read_idleness
from overnight.store import Unit
from overnight.story import public_job, read_traceback, tree_costs

from .attribution import attribution, key_scope_of
from .content import reads_content, without_content
from .event_streams import EventStreams
from .json_bodies import (
    EmptyBody,
    body_of,
    json_answer,
    query_of,
    whole,
)
from .requests import Request

MAX_JOBS, MAX_EVENTS = 200, 1000
_encode = msgspec.json.Encoder().encode


class NewAttempt(msgspec.Struct, forbid_unknown_fields=True):
    """`recover`: replay every recorded answer. `retry`: re-run the calls after the last effect."""

    mode: Literal["recover", "retry"] = "recover"


class Completion(msgspec.Struct, forbid_unknown_fields=True):
    """The end of a job. `error` is a message, or an object with `class` and `message`."""

    state: Literal["succeeded", "failed"] = "succeeded"
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: str | ErrorFacts | None = None


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
        return begin_attempt(unit, job, self.mode, None, self.actor, self.answers_until).attempt


class Jobs:
    """All routes are limited to the tenant of the request, and the agent and workflow of its key. Other jobs are reported as
    not found."""

    def __init__(self, gateway: Gateway, ledger: Ledger) -> None:
        self._gateway = gateway
        self._ledger, self._operations = ledger, Operations(ledger.store)
        self._streams = EventStreams(ledger)

    async def _job(self, request: Request) -> JobRow:
        name = check_identifier(request.parts[3], "the job's id")
        return await self._ledger.job(name, request.tenant_id, key_scope_of(request.key))

    async def list(self, request: Request) -> HttpResponse:
        """`?state=&before=&limit=`: newest first; `before` is the last job_id of the previous page."""
        query = query_of(request, "state", "before", "limit")
        state, before = query.get("state", ""), query.get("before", "")
        if state and state not in job_states:
            raise BadInput(f"state: {state[:40]!r} is not one of {', '.join(job_states)}")
        if before and parse_job_name(before, "before")[0] is None:
            raise BadInput(f"before: {before[:40]!r} is not a job id; send the last job_id of the previous page")
        most = whole(query, "limit", 50, MAX_JOBS)
        found = await self._ledger.jobs(
            tenant_id=request.tenant_id,
            state=state,
            before=before,
            most=most,
            key_scope=key_scope_of(request.key),
        )
        return json_answer(200, {"jobs": await self._public(found, request.key)})

    async def one(self, request: Request) -> HttpResponse:
        job = await self._job(request)
        (shown,) = await self._public([job], request.key)
        if not reads_content(request.key):
            return json_answer(200, shown)
        shown["result"] = msgspec.Raw(job.result) if job.result else None
        shown["traceback"] = await read_traceback(self._ledger, job)
        return json_answer(200, shown)

    async def _public(self, jobs: Sequence[JobRow], key: VirtualKey | None) -> list[dict[str, Any]]:
        """As `overnight jobs --json`; costs include child jobs."""
        costs, now = await tree_costs(self._ledger, [job.job_id for job in jobs]), self._ledger.store.clock()
        idle = await read_idleness(self._ledger.store, jobs, now)
        shown = [public_job(job, *costs.get(job.job_id, (0, 0, 0)), now, idle.get(job.job_id)) for job in jobs]
        return shown if reads_content(key) else [without_content(each) for each in shown]

    async def events(self, request: Request) -> HttpResponse:
        """`?after=SEQ&limit=N`; with `Accept: text/event-stream`, live until the job finishes (`id` is the seq)."""
        job = await self._job(request)
        query = query_of(request, "after", "limit")
        after = whole(query, "after", 0, 2**53)
        if b"text/event-stream" in request.header(b"accept"):
            resumed = parse_whole(request.header(b"last-event-id"), 2**53)
            after = after if resumed is None else resumed
            encode = partial(_live_event, with_message=reads_content(request.key))
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            return HttpResponse(200, headers, pieces=self._streams.open(request, job, after, encode))
        found = await self._ledger.events(job.job_id, after, whole(query, "limit", MAX_EVENTS, MAX_EVENTS))
        last = found[-1].seq if found else after
        shown = [_public_event(event, with_message=reads_content(request.key)) for event in found]
        return json_answer(200, {"events": shown, "after": last})

    async def attempts(self, request: Request) -> HttpResponse:
        wanted = await body_of(request, NewAttempt)
        name = check_identifier(request.parts[3], "the job's id")
        job_id, external_id = parse_job_name(name, "the job's id")
        if external_id is not None:
            who = msgspec.structs.replace(
                attribution(request.headers, request.key), job_id=None, external_id=name, attempt=None
            )
            job_id, is_new = await self._gateway.start_job(who)
            if is_new:
                return json_answer(201, {"job_id": job_id, "attempt": 1})
        job = await self._job(request)
        until: int | None = None
        if wanted.mode == "retry":
            events = await self._ledger.events(job.job_id)
            until = max((event.seq for event in events if event.facts.event == "tool_succeeded"), default=0)
        attempt = await self._ledger.store.commit(
            Announced(job.job_id, wanted.mode, job.last_seq, until, request.actor)
        )
        return json_answer(201, {"job_id": job.job_id, "attempt": attempt})

    async def complete(self, request: Request) -> HttpResponse:
        body = await body_of(request, Completion)
        job = await self._job(request)
        error = ErrorFacts("failed", body.error[:500]) if isinstance(body.error, str) else body.error
        command = Complete(job.job_id, body.state, bytes(body.result), error, request.actor)
        (shown,) = await self._public([await self._ledger.store.commit(command)], request.key)
        return json_answer(200, shown)

    async def cancel(self, request: Request) -> HttpResponse:
        await body_of(request, EmptyBody)
        job = await self._job(request)
        state = await self._operations.cancel(job.job_id, request.actor)
        return json_answer(202 if state == "running" else 200, {"job_id": job.job_id, "state": state})


def _public_event(event: Recorded, *, with_message: bool) -> dict[str, Any]:
    shown = public_event(event)
    return shown if with_message else without_content(shown)


def _live_event(event: Recorded, *, with_message: bool) -> bytes:
    data = _encode(_public_event(event, with_message=with_message))
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.seq, event.facts.event.encode(), data)
