"""Checks of all model calls in a store (see `tests/crash/ends.py`)."""

from typing import Any

import msgspec
from crash.ends import ENDS, check_ends

from machine_parts import rows

__all__ = ["ENDS", "check_all_ends", "check_ends"]


def check_all_ends(url: str) -> int:
    """Assert it of every job of a store; how many calls there were."""
    by_job: dict[str, list[Any]] = {}
    for job_id, body in rows(url, "SELECT job_id, body FROM event ORDER BY job_id, seq"):
        by_job.setdefault(job_id, []).append(msgspec.json.decode(bytes(body)))
    in_flight = [call_id for (call_id,) in rows(url, "SELECT call_id FROM reservation")]
    return sum(check_ends(bodies, in_flight) for bodies in by_job.values())
