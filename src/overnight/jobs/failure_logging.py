"""Log failed jobs in the worker's log."""

import logging

from overnight.domain import ErrorFacts
from overnight.ledger import JobRow

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())  # a command in the foreground shows the end itself
MAX_MESSAGE = 300


def log_end(job: JobRow, state: str, error: ErrorFacts | None) -> None:
    """Log one line for a job that failed: its id and its error."""
    if state == "failed":
        why = f"{error.error_class}: {error.message[:MAX_MESSAGE]}" if error is not None else "no error given"
        log.error("job %s (%s) failed: %s", job.job_id, job.name, why, extra={"each": True})
