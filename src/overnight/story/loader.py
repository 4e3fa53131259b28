"""Loads a job with its events, child jobs and the content that a timeline needs."""

from collections.abc import Sequence

import msgspec

from overnight.domain import NotFound, Recorded
from overnight.ledger import JobRow, Ledger
from overnight.store import statements

SQL = statements("overnight.story")

MAX_JOBS = 200
MAX_DEPTH = 8

Contents = dict[str, bytes | list[bytes]]


class JobTree(msgspec.Struct):
    """A job with its events. `contents` is keyed by reference, `children` by job id."""

    job: JobRow
    events: list[Recorded]
    contents: Contents = {}
    children: "dict[str, JobTree]" = {}


async def load_job_tree(ledger: Ledger, job: JobRow, *, with_content: bool = False) -> JobTree:
    """Load the job and its descendants: at most 200 jobs and 8 levels. Further child jobs are only named."""
    tree = JobTree(job, await ledger.events(job.job_id))
    level, loaded = [tree], 1
    for _ in range(MAX_DEPTH):
        following: list[JobTree] = []
        for parent in level:
            if not any(event.facts.event == "child_started" for event in parent.events):
                continue
            for child in (await ledger.children(parent.job.job_id))[: MAX_JOBS - loaded]:
                found = JobTree(child, await ledger.events(child.job_id))
                parent.children[child.job_id] = found
                following.append(found)
                loaded += 1
        level = following
        if not level:
            break
    await _read_contents(ledger, tree, with_content)
    return tree


async def tree_costs(ledger: Ledger, job_ids: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """(paid model calls, known cost, bound) of each job including its descendants, in micro-dollars."""
    values = {"job_ids": msgspec.json.encode(list(job_ids)).decode()}
    return {row[0]: (row[1], row[2], row[3]) for row in await ledger.store.read(SQL["sum_usage_trees"], values)}


async def _read_contents(ledger: Ledger, tree: JobTree, with_content: bool) -> None:
    for event in tree.events:
        facts = event.facts
        wanted = [facts.output_ref] if facts.event == "model_succeeded" and event.content is None else []
        if with_content:
            wanted += [facts.input_ref, facts.output_ref]
        for reference in wanted:
            if reference and reference not in tree.contents:
                try:
                    tree.contents[reference] = await ledger.content(event.tenant_id, reference)
                except NotFound:
                    tree.contents[reference] = b'"(erased)"'
    for child in tree.children.values():
        await _read_contents(ledger, child, with_content)
