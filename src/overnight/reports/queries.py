"""Bounded reads of what a receipt is made of.

Wire formats are imported where they are needed, since every command that reads jobs imports this module.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec

from overnight.domain import NotFound, Recorded
from overnight.effects import EffectRow
from overnight.ledger import JobRow, Ledger, parse_reference, recorded
from overnight.store import Statement, records_of, statements

from .entries import ReviewFacts, TreeJob
from .unexecuted import AskedCall

if TYPE_CHECKING:
    from overnight.wire_formats.tool_calls import ToolCallRef

SQL = statements("overnight.reports")
PAGE = 500
MAX_JOBS, MAX_LINES = 1_000, 1_000
MAX_REQUESTS, MAX_MESSAGES, MESSAGES_PAGE = 20_000, 100_000, 100
Json = dict[str, Any]


def _list(values: Iterable[str]) -> str:
    return msgspec.json.encode(list(values)).decode()


async def read_tree(ledger: Ledger, job_id: str) -> list[TreeJob]:
    """A job and its descendants, at most one more than `MAX_JOBS`."""
    values = {"job_id": job_id, "most": MAX_JOBS + 1}
    return records_of(TreeJob, await ledger.store.read(SQL["list_tree"], values))


async def count_effects(ledger: Ledger, job_ids: Iterable[str]) -> list[tuple[str, str | None, int]]:
    """(state, source, number) of all effects of these jobs."""
    rows = await ledger.store.read(SQL["count_effects"], {"job_ids": _list(job_ids)})
    return [(row[0], row[1], row[2]) for row in rows]


async def read_effects(ledger: Ledger, job_ids: Iterable[str]) -> list[EffectRow]:
    """The rows of at most `MAX_LINES` effects, those that can still change first; without their results."""
    values = {"job_ids": _list(job_ids), "most": MAX_LINES}
    return records_of(EffectRow, await ledger.store.read(SQL["list_effects_of_jobs"], values))


async def read_effects_of_keys(ledger: Ledger, tenant_id: str, keys: Sequence[str]) -> list[EffectRow]:
    """The rows with these keys, whichever job they belong to."""
    if not keys:
        return []
    rows = await ledger.store.read(SQL["list_effects_of_keys"], {"tenant_id": tenant_id, "keys": _list(keys)})
    return records_of(EffectRow, rows)


async def read_effects_of_key(ledger: Ledger, tenant_id: str, key: str) -> list[EffectRow]:
    """The rows with an idempotency key: a caller's own, or an effect's."""
    values = {"tenant_id": tenant_id, "key": key, "most": MAX_LINES}
    return records_of(EffectRow, await ledger.store.read(SQL["list_effects_of_key"], values))


async def read_agent_jobs(ledger: Ledger, tenant_id: str, agent_id: str, span: tuple[int, int]) -> list[str]:
    """The ids of the jobs of an agent that were created in a span of microseconds, at most one more than `MAX_JOBS`."""
    values = {"tenant_id": tenant_id, "agent_id": agent_id, "begin": span[0], "until": span[1], "most": MAX_JOBS + 1}
    return [row[0] for row in await ledger.store.read(SQL["list_agent_jobs"], values)]


async def each_review(ledger: Ledger, job_ids: Iterable[str]) -> AsyncIterator[ReviewFacts]:
    """The reviews of these jobs, oldest first."""
    ids, after = _list(job_ids), (0, "")
    while True:
        values = {"job_ids": ids, "after_at": after[0], "after_id": after[1], "most": PAGE}
        page = records_of(ReviewFacts, await ledger.store.read(SQL["list_reviews_of_jobs"], values))
        for review in page:
            yield review
        if len(page) < PAGE:
            return
        after = page[-1].requested_at, page[-1].review_id


async def each_tool_event(ledger: Ledger, job_id: str) -> AsyncIterator[Recorded]:
    """The events of a job about tools, in order. Only `tool_called` and `tool_refused` have their content, the arguments."""
    async for event in _events(ledger, SQL["list_tool_events"], job_id):
        yield event


async def _events(ledger: Ledger, statement: Statement, job_id: str) -> AsyncIterator[Recorded]:
    after = 0
    while rows := await ledger.store.read(statement, {"job_id": job_id, "after": after, "most": PAGE}):
        for row in rows:
            yield recorded(job_id, row)
        after = rows[-1][0]
        if len(rows) < PAGE:
            return


class _RequestFacts(msgspec.Struct):
    call_id: str | None = None
    input_ref: str | None = None
    detail: Json | None = None


class Conversations(msgspec.Struct):
    """The requests of jobs: `heads` refer to their messages; `with_tools` are the jobs that offered tools to a model.
    `is_partial`: there were more than `MAX_REQUESTS`."""

    heads: dict[int, set[str]] = {}
    with_tools: set[str] = set()
    is_partial: bool = False
    requests: int = 0


async def read_requests(ledger: Ledger, job_id: str, into: Conversations) -> None:
    """Add the requests of a job to models."""
    after = 0
    while into.requests < MAX_REQUESTS:
        values = {"job_id": job_id, "after": after, "most": PAGE}
        rows = await ledger.store.read(SQL["list_requests"], values)
        for seq, _, body in rows:
            after, facts = seq, msgspec.json.decode(body, type=_RequestFacts)
            if facts.input_ref is None:
                continue
            into.requests += 1
            if "tools_ref" in (facts.detail or {}):
                into.with_tools.add(job_id)
            is_chain, month, digest = parse_reference(facts.input_ref)
            if is_chain:
                into.heads.setdefault(month, set()).add(digest.hex())
        if len(rows) < PAGE:
            return
    into.is_partial = True


async def read_asked(ledger: Ledger, job_id: str) -> list[AskedCall]:
    """The tool calls in the recorded answers of a job, oldest first."""
    from overnight.wire_formats.tool_calls import asked_tools

    found: list[AskedCall] = []
    async for event in _events(ledger, SQL["list_tool_answers"], job_id):
        answer = await _answer(ledger, event)
        found += [AskedCall(job_id=job_id, ref=ref, at=event.at) for ref in asked_tools(answer)]
        if len(found) >= MAX_REQUESTS:
            break
    return found


async def read_results(ledger: Ledger, tenant_id: str, heads: dict[int, set[str]]) -> list[ToolCallRef]:
    """The results of tools in all messages of conversations; each message is read once, a hundred at a time."""
    from overnight.wire_formats.tool_calls import tool_results

    found: list[ToolCallRef] = []
    for month, digests in heads.items():
        place = {"tenant_id": tenant_id, "month": month}
        values = place | {"hashes": _list(sorted(digests)), "most": MAX_MESSAGES}
        rows = await ledger.store.read(SQL["list_chain_messages"], values)
        hashes = [bytes(row[0]).hex() for row in rows]
        for at in range(0, len(hashes), MESSAGES_PAGE):
            page = place | {"hashes": _list(hashes[at : at + MESSAGES_PAGE])}
            for (body,) in await ledger.store.read(SQL["list_result_messages"], page):
                found += tool_results(_object(bytes(body)))
    return found


async def final_text(ledger: Ledger, job: JobRow) -> str:
    """The final answer: the result of the job, or the last text of a model in an external job; "" if there is none."""
    if job.result is not None and job.result != b"null":
        try:
            value: Any = msgspec.json.decode(job.result)
        except msgspec.DecodeError:
            value = None
        return value if isinstance(value, str) else bytes(job.result).decode("utf-8", "replace")
    if job.runtime != "foreign":
        return ""
    from overnight.wire_formats.tool_calls import assistant_text

    rows = await ledger.store.read(SQL["read_last_answer"], {"job_id": job.job_id})
    return assistant_text(await _answer(ledger, recorded(job.job_id, rows[0]))) if rows else ""


async def _answer(ledger: Ledger, event: Recorded) -> Json:
    try:
        return _object(await ledger.answer(event) or b"{}")
    except NotFound:  # erased
        return {}


def _object(body: bytes) -> Json:
    try:
        value: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return cast(Json, value) if isinstance(value, dict) else {}
