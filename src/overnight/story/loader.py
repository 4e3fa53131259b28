"""Reading what a story is told from: the job, its events, its child jobs, and content where it is needed."""

from collections.abc import Sequence

import msgspec

from overnight.domain import NotFound, Recorded
from overnight.ledger import JobRow, Ledger
from overnight.store import statements

SQL = statements("overnight.story")

MOST_JOBS = 200
DEEPEST = 8

Contents = dict[str, bytes | list[bytes]]


class Chapter(msgspec.Struct):
    """One job to tell. `contents` is by reference; `children` by job id, those that are told with it."""

    job: JobRow
    events: list[Recorded]
    contents: Contents = {}
    children: "dict[str, Chapter]" = {}


async def gather(ledger: Ledger, job: JobRow, *, with_content: bool = False) -> Chapter:
    """The job with its children, theirs, and so on: at most 200 jobs, 8 levels. The rest is named, not told."""
    chapter = Chapter(job, await ledger.events(job.job_id))
    level, told = [chapter], 1
    for _ in range(DEEPEST):
        following: list[Chapter] = []
        for parent in level:
            if not any(event.facts.event == "child_started" for event in parent.events):
                continue
            for child in (await ledger.children(parent.job.job_id))[: MOST_JOBS - told]:
                found = Chapter(child, await ledger.events(child.job_id))
                parent.children[child.job_id] = found
                following.append(found)
                told += 1
        level = following
        if not level:
            break
    await _read_contents(ledger, chapter, with_content)
    return chapter


async def tree_costs(ledger: Ledger, job_ids: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """(paid model calls, known cost, bound) of each job together with its child jobs and theirs, in micro-dollars."""
    values = {"job_ids": msgspec.json.encode(list(job_ids)).decode()}
    return {row[0]: (row[1], row[2], row[3]) for row in await ledger.store.read(SQL["sum_usage_trees"], values)}


async def _read_contents(ledger: Ledger, chapter: Chapter, with_content: bool) -> None:
    for event in chapter.events:
        facts = event.facts
        wanted = [facts.output_ref] if facts.event == "model_succeeded" and event.content is None else []
        if with_content:
            wanted += [facts.input_ref, facts.output_ref]
        for reference in wanted:
            if reference and reference not in chapter.contents:
                try:
                    chapter.contents[reference] = await ledger.content(event.tenant_id, reference)
                except NotFound:
                    chapter.contents[reference] = b'"(erased)"'
    for child in chapter.children.values():
        await _read_contents(ledger, child, with_content)
