"""Queries: jobs, their events, content by reference, and sums of cost."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import msgspec

from overnight.domain import ALL_JOBS, FINISHED, Event, KeyScope, NotFound, Recorded, restore_texts
from overnight.store import Store, records_of

from .content import parse_reference
from .rows import SQL, JobRow

PAGE = 1000
_decode = msgspec.json.Decoder(Event).decode


def recorded(job_id: str, row: Sequence[Any]) -> Recorded:
    """Build an event from the columns seq, at, path, ordinal, fingerprint, body, content, tenant_id, texts."""
    seq, at, path, ordinal, fingerprint, body, content, tenant_id, texts = row
    inline = bytes(content) if content is not None else None
    facts = _decode(body)
    restore_texts(facts, texts)
    return Recorded(
        job_id=job_id,
        seq=seq,
        at=at,
        facts=facts,
        path=path,
        ordinal=ordinal,
        fingerprint=fingerprint,
        content=inline,
        tenant_id=tenant_id,
    )


class Ledger:
    """Reads the ledger; writes nothing."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def job(self, name: str, tenant_id: str = "", key_scope: KeyScope = ALL_JOBS) -> JobRow:
        """A job by its job id or external id. Raises NotFound if there is none, or it is outside of `key_scope`.

        `tenant_id`: empty means every tenant, and `default` for an external id.
        """
        rows = await self.store.read(SQL["read_job"], {"job_id": name, "tenant_id": tenant_id})
        if not rows:
            rows = await self.store.read(
                SQL["read_job_external"], {"tenant_id": tenant_id or "default", "external_id": name}
            )
        job = records_of(JobRow, rows)[0] if rows else None
        if job is None or not key_scope.allows(job.agent_id, job.workflow, job.scope_name):
            raise NotFound(f"job {name}. `overnight jobs` lists jobs")
        return job

    async def jobs(
        self,
        *,
        tenant_id: str = "",
        state: str = "",
        before: str = "",
        most: int = 50,
        key_scope: KeyScope = ALL_JOBS,
    ) -> list[JobRow]:
        """A page of at most `most` jobs in `key_scope`, newest first. `before`: the job id that the previous page ends with."""
        values = {"tenant_id": tenant_id, "state": state, "before": before, "most": most}
        values |= {"agent_id": key_scope.agent_id or "", "workflow": key_scope.workflow or ""}
        values["names"] = msgspec.json.encode(key_scope.jobs).decode()
        return records_of(JobRow, await self.store.read(SQL["list_jobs"], values))

    async def children(self, job_id: str) -> list[JobRow]:
        """The child jobs of a job, oldest first."""
        return records_of(JobRow, await self.store.read(SQL["list_children"], {"job_id": job_id}))

    async def costs(self, job_ids: Sequence[str]) -> dict[str, tuple[int, int, int]]:
        """(model calls, known cost, bound) by job id; amounts in micro-dollars."""
        values = {"job_ids": msgspec.json.encode(list(job_ids)).decode()}
        return {row[0]: (row[1], row[2], row[3]) for row in await self.store.read(SQL["list_jobs_cost"], values)}

    async def usage(self, job_id: str) -> list[tuple[str, int, int, int, int, int, int]]:
        """(model, calls, input, cached, output tokens, known cost, bound) per model of a job; amounts in micro-
        dollars."""
        return [tuple(row) for row in await self.store.read(SQL["sum_usage_jobs"], {"job_id": job_id})]  # type: ignore[misc]

    async def usage_days(self, tenant_id: str, first: int, last: int) -> list[tuple[Any, ...]]:
        """(day, agent, model, calls, input, cached, output, known cost, bound) per day. Days as YYYYMMDD, amounts in
        micro-dollars."""
        return await self.store.read(SQL["sum_usage_days"], {"tenant_id": tenant_id, "first": first, "last": last})

    async def events(self, job_id: str, after: int = 0, most: int | None = None) -> list[Recorded]:
        """The events of a job with seq > `after`, in order; at most `most` of them."""
        found: list[Recorded] = []
        while most is None or len(found) < most:
            page = PAGE if most is None else min(PAGE, most - len(found))
            values = {"job_id": job_id, "after": after, "most": page}
            rows = await self.store.read(SQL["read_events"], values)
            found += [recorded(job_id, row) for row in rows]
            if len(rows) < page:
                break
            after = rows[-1][0]
        return found

    async def heads(self, job_ids: Iterable[str]) -> dict[str, tuple[int, str]]:
        """(last seq, state) of each job that exists, in one query."""
        values = {"job_ids": msgspec.json.encode(list(job_ids)).decode()}
        return {row[0]: (row[1], row[2]) for row in await self.store.read(SQL["list_job_heads"], values)}

    async def follow(self, job_id: str, after: int = 0, every_s: float = 0.1) -> AsyncIterator[Recorded]:
        """Yield the events of a job as they are recorded, until the job has ended. Polls every `every_s` seconds."""
        while True:
            job = await self.job(job_id)
            fresh = await self.events(job_id, after)
            for event in fresh:
                after = event.seq
                yield event
            if not fresh:
                if job.state in FINISHED:
                    return
                await asyncio.sleep(every_s)

    async def content(self, tenant_id: str, reference: str, *, until: float | None = None) -> bytes | list[bytes]:
        """The bytes of a blob, or the messages of a chain, of this tenant; `until` as for `Store.read`. Raises NotFound."""
        is_chain, month, digest = parse_reference(reference)
        values = {"tenant_id": tenant_id, "month": month, "hash": digest}
        rows = await self.store.read(SQL["read_chain" if is_chain else "read_blob"], values, until=until)
        if not rows:
            raise NotFound(f"content {reference}: unknown for this tenant, or erased")
        bodies = [bytes(row[0]) for row in rows]
        return bodies if is_chain else bodies[0]

    async def last_messages(self, tenant_id: str, references: Iterable[str]) -> dict[str, bytes]:
        """The last message of each conversation by its reference, as canonical JSON. Erased messages are absent."""
        by_month: dict[int, dict[bytes, str]] = {}
        for reference in references:
            is_chain, month, digest = parse_reference(reference)
            if is_chain:
                by_month.setdefault(month, {})[digest] = reference
        found: dict[str, bytes] = {}
        for month, named in by_month.items():
            wanted = msgspec.json.encode([digest.hex() for digest in named]).decode()
            values = {"tenant_id": tenant_id, "month": month, "hashes": wanted}
            for digest, body in await self.store.read(SQL["list_last_messages"], values):
                found[named[bytes(digest)]] = bytes(body)
        return found

    async def answer(self, event: Recorded, *, until: float | None = None) -> bytes | None:
        """The JSON result of an answer: inline, or read by its output reference. `until` as for `Store.read`."""
        if event.content is not None or event.facts.output_ref is None:
            return event.content
        body = await self.content(event.tenant_id, event.facts.output_ref, until=until)
        return body if isinstance(body, bytes) else None
