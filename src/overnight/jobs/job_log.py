"""The end of a job as a line of its worker's log."""

import logging

from overnight.domain import ErrorFacts
from overnight.ledger import JobRow

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())  # a command in the foreground shows the end itself
LONGEST = 300


def log_end(job: JobRow, state: str, error: ErrorFacts | None) -> None:
    """One line per job that failed, with its id and why."""
    if state == "failed":
        why = f"{error.error_class}: {error.message[:LONGEST]}" if error is not None else "for no reason that it gave"
        log.error("job %s (%s) failed: %s", job.job_id, job.name, why, extra={"each": True})
