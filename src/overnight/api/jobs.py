"""Overnight's own routes: jobs, their events (live too), attempts, completion, cancelling."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qsl

import msgspec

from overnight.domain import (
    BadInput,
    Conflict,
    ErrorFacts,
    Recorded,
    check_identifier,
    job_states,
    public_event,
)
from overnight.gateway import Answer
from overnight.jobs import Complete, Operations
from overnight.ledger import JOB, JobRow, Ledger, announce, locked_job
from overnight.store import Unit
from overnight.story import public_job, tree_costs

from .attributing import tenant_of
from .http import Request, read_body

T = TypeVar("T")
MOST_BODY = 8 * 1024 * 1024
MOST_JOBS, MOST_EVENTS = 200, 1000
_encode = msgspec.json.Encoder().encode


class NewAttempt(msgspec.Struct, forbid_unknown_fields=True):
    """`recover`: every recorded answer holds. `retry`: answers after the last effect are asked for anew."""

    mode: Literal["recover", "retry"] = "recover"


class Completion(msgspec.Struct, forbid_unknown_fields=True):
    """How the job ended. `error` is a message, or an object with `class` and `message`."""

    state: Literal["succeeded", "failed"] = "succeeded"
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: str | ErrorFacts | None = None


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """No fields."""


class Announced(msgspec.Struct):
    """A command: begin the next attempt of a foreign job."""

    job_id: str
    mode: str
    seen_seq: int
    answers_until: int | None

    def locks(self) -> list[tuple[Any, Any]]:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> int:
        job = locked_job(unit, self.job_id)
        if job.runtime != "foreign":
            raise Conflict(f"{self.job_id} is run by Overnight itself; `overnight resume` starts a new attempt of it")
        if self.answers_until is not None and job.last_seq != self.seen_seq:
            raise Conflict(f"{self.job_id} has changed meanwhile; try again")
        return announce(unit, job, self.mode, None, "api", self.answers_until).attempt


class Jobs:
    """`/api/v1/jobs`. Everything is within the request's tenant: another tenant's job does not exist."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._operations = ledger, Operations(ledger.store)

    async def _job(self, request: Request) -> JobRow:
        return await self._ledger.job(check_identifier(request.parts[3], "the job's id"), tenant_of(request.headers))

    async def list(self, request: Request) -> Answer:
        """`?state=&before=&limit=`: newest first; `before` is the job_id that the page before ended with."""
        query = _query(request, "state", "before", "limit")
        state, before = query.get("state", ""), query.get("before", "")
        if state and state not in job_states:
            raise BadInput(f"state: {state[:40]!r} is none of {', '.join(job_states)}")
        most = _whole(query, "limit", 50, MOST_JOBS)
        found = await self._ledger.jobs(tenant_id=tenant_of(request.headers), state=state, before=before, most=most)
        return _json(200, {"jobs": await self._public(found)})

    async def one(self, request: Request) -> Answer:
        job = await self._job(request)
        (shown,) = await self._public([job])
        shown["result"] = msgspec.Raw(job.result) if job.result else None
        return _json(200, shown)

    async def _public(self, jobs: Sequence[JobRow]) -> list[dict[str, Any]]:
        """As `overnight jobs --json` shows them; costs include child jobs."""
        costs, now = await tree_costs(self._ledger, [job.job_id for job in jobs]), self._ledger.store.clock()
        return [public_job(job, *costs.get(job.job_id, (0, 0)), now) for job in jobs]

    async def events(self, request: Request) -> Answer:
        """`?after=SEQ&limit=N`; with `Accept: text/event-stream`, live until the job is over (`id` is the seq)."""
        job = await self._job(request)
        query = _query(request, "after", "limit")
        after = _whole(query, "after", 0, 2**53)
        if b"text/event-stream" in request.header(b"accept"):
            resumed = request.header(b"last-event-id")
            after = int(resumed) if resumed.isdigit() and len(resumed) < 17 else after
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            return Answer(200, headers, pieces=self._live(job.job_id, after))
        found = await self._ledger.events(job.job_id, after, _whole(query, "limit", MOST_EVENTS, MOST_EVENTS))
        last = found[-1].seq if found else after
        return _json(200, {"events": [public_event(event) for event in found], "after": last})

    async def _live(self, job_id: str, after: int) -> AsyncIterator[bytes]:
        async for event in self._ledger.follow(job_id, after):
            yield _live_event(event)

    async def attempts(self, request: Request) -> Answer:
        wanted = await _body(request, NewAttempt)
        job = await self._job(request)
        until: int | None = None
        if wanted.mode == "retry":
            events = await self._ledger.events(job.job_id)
            until = max((event.seq for event in events if event.facts.event == "tool_succeeded"), default=0)
        attempt = await self._ledger.store.commit(Announced(job.job_id, wanted.mode, job.last_seq, until))
        return _json(201, {"job_id": job.job_id, "attempt": attempt})

    async def complete(self, request: Request) -> Answer:
        said = await _body(request, Completion)
        job = await self._job(request)
        error = ErrorFacts("failed", said.error[:500]) if isinstance(said.error, str) else said.error
        command = Complete(job.job_id, said.state, bytes(said.result), error, "api")
        return _json(200, (await self._public([await self._ledger.store.commit(command)]))[0])

    async def cancel(self, request: Request) -> Answer:
        await _body(request, Nothing)
        job = await self._job(request)
        state = await self._operations.cancel(job.job_id, "api")
        return _json(202 if state == "running" else 200, {"job_id": job.job_id, "state": state})


def _live_event(event: Recorded) -> bytes:
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.seq, event.facts.event.encode(), _encode(public_event(event)))


def _json(status: int, body: Any) -> Answer:
    return Answer(status, [(b"content-type", b"application/json")], _encode(body))


async def _body(request: Request, kind: type[T]) -> T:
    """The body as `kind`; an empty one is its defaults. Raises BadInput that names the field."""
    body = await read_body(request.receive, MOST_BODY) or b"{}"
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        fields = ", ".join(getattr(kind, "__struct_fields__", ())) or "none"
        raise BadInput(f"the body: {error}; its fields are: {fields}") from None


def _query(request: Request, *names: str) -> Mapping[str, str]:
    """The query's parameters. Raises BadInput for one that is not known here."""
    try:
        pairs = parse_qsl(request.query.decode("ascii"), keep_blank_values=True, max_num_fields=20, errors="strict")
    except ValueError:
        raise BadInput("the query string cannot be read; send name=value pairs, percent-encoded") from None
    for name, _ in pairs:
        if name not in names:
            near = get_close_matches(name, names, 1)
            meant = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(names)}"
            raise BadInput(f"the query parameter {name[:40]!r} is not known; {meant}")
    return dict(pairs)


def _whole(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 17 and int(text) <= most):
        raise BadInput(f"{name}: must be a whole number from 0 to {most:,}")
    return int(text)
