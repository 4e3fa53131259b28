"""The decisions of an admission that need no store: when a recorded answer is looked for, and how long a call waits.

Plain functions of what the rows and the clock say.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from overnight.budgets import Wait
from overnight.ledger import JobRow

from ..identity import Subject


class ReplayStep(Enum):
    """What to do about the recorded answers of older attempts before a call is made."""

    NONE = 1
    TAKE_TURN = 2
    LOOK_UP = 3


def needs_ancestors(job: JobRow, subject: Subject) -> bool:
    """Whether the job turned out to have a parent that the caller did not know of: its budgets hold too."""
    return job.parent_job_id is not None and subject.ancestors[-1] != job.job_id


def replay_step(job: JobRow, subject: Subject, *, is_new: bool, settles: bool, serial: bool) -> ReplayStep:
    """Whether recorded answers of older attempts are looked up.

    Args:
        job: the job under its lock.
        is_new: whether the job was made for this call.
        settles: whether the admission settles a failed attempt: this call is then live already.
        serial: whether it is the only admission of the job at this time, so that no answer is given twice.
    """
    is_repeatable = subject.fingerprint is not None and job.runtime == "foreign"
    if settles or is_new or not is_repeatable or job.attempt <= 1:
        return ReplayStep.NONE
    return ReplayStep.LOOK_UP if serial else ReplayStep.TAKE_TURN


def may_recall(subject: Subject, attempts: int) -> bool:
    """Whether a call may have a recorded answer that it should look for before it waits for anything."""
    is_repeatable = subject.place is None and subject.fingerprint is not None and not subject.unattributed
    return is_repeatable and attempts == 0


class AskAgain(msgspec.Struct, frozen=True):
    """Ask the store again after a settlement, and after `after_s` seconds where that is known."""

    after_s: float | None = None


class GiveUpWaiting(msgspec.Struct, frozen=True):
    """The queue time ends before there can be room."""


def waiting_decision(wait: Wait, now_us: int, loop_time: float, queue_deadline: float) -> AskAgain | GiveUpWaiting:
    """How long a call waits for room.

    Args:
        wait: what is in the way.
        now_us: the time of the store, in microseconds, as `wait.until` is.
        loop_time: the time of the loop, in seconds, as `queue_deadline` is.
        queue_deadline: when the stay in the queue must end.
    """
    if wait.until is None:
        return AskAgain()
    pause_s = (wait.until - now_us) / 1_000_000
    # Tokens may come back, when a call is settled at less than was reserved; requests never do.
    if wait.what == "requests" and loop_time + pause_s > queue_deadline:
        return GiveUpWaiting()
    return AskAgain(pause_s)


def retry_after_s(wait: Wait, now_us: int) -> int:
    """When a client that is refused for `wait` should try again: whole seconds, at least one."""
    left_us = wait.until - now_us if wait.until is not None else 0
    return max(1, -(-left_us // 1_000_000))
