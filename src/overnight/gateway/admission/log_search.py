"""Search the log of a locked job within a unit of work."""

from __future__ import annotations

from collections.abc import Iterator

from overnight.domain import Recorded
from overnight.ledger import LEDGER_SQL, JobRow, recorded
from overnight.store import Unit, statements

_SEARCH_LOG = statements("overnight.gateway.admission")["search_log"]
_INSERT_EVENT = LEDGER_SQL["insert_event"]


def search_log(unit: Unit, job: JobRow, text: str, most: int) -> Iterator[Recorded]:
    """The latest events whose facts, as JSON, contain `text`, newest first.

    Events that this batch has appended are included. At most `most` events are read from the database.
    """
    wanted = text.encode()
    for row in reversed(unit.appended(_INSERT_EVENT)):
        if row.job_id == job.job_id and wanted in row.body:
            columns = (row.seq, row.at, row.path, row.ordinal, row.fingerprint, row.body, row.content, row.tenant_id)
            yield recorded(job.job_id, (*columns, row.texts))
    for found in unit.query(_SEARCH_LOG, {"job_id": job.job_id, "text": wanted, "most": most}):
        yield recorded(job.job_id, found)
