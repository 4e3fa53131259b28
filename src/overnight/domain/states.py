"""Job states and what a parked job waits for."""

from enum import StrEnum
from typing import Final

job_states: Final = ("queued", "running", "parked", "succeeded", "failed", "cancelled")
FINISHED: Final = frozenset({"succeeded", "failed", "cancelled"})


class Waiting(StrEnum):
    """The reasons a job can be parked for; a parked job carries the set of them."""

    approval = "approval"
    quarantine = "quarantine"
    budget = "budget"
    timer = "timer"
    signal = "signal"
    child = "child"
    backoff = "backoff"
    divergence = "divergence"
