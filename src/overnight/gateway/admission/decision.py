"""The decisions of an admission that need no store: whether recorded answers are looked up, and how long a call waits.

Pure functions of rows and times.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from overnight.budgets import Wait
from overnight.ledger import JobRow

from ..identity import Subject


class ReplayStep(Enum):
    """The handling of recorded answers of older attempts before a call is made."""

    NONE = 1
    TAKE_TURN = 2
    LOOK_UP = 3


def needs_ancestors(job: JobRow, subject: Subject) -> bool:
    """Whether the job has a parent that the subject does not include. The budgets of the parent apply too."""
    return job.parent_job_id is not None and subject.ancestors[-1] != job.job_id


def replay_step(job: JobRow, subject: Subject, *, is_new: bool, settles: bool, serial: bool) -> ReplayStep:
    """Whether recorded answers of older attempts are looked up.

    Args:
        job: the job under its lock.
        is_new: whether the job was created for this call.
        settles: whether the admission settles a failed attempt: the call was then not replayed.
        serial: whether it is the only admission of the job at this time, so that no answer is replayed twice.
    """
    is_repeatable = subject.fingerprint is not None and job.runtime == "foreign"
    if settles or is_new or not is_repeatable or job.attempt <= 1:
        return ReplayStep.NONE
    return ReplayStep.LOOK_UP if serial else ReplayStep.TAKE_TURN


def may_recall(subject: Subject, attempts: int) -> bool:
    """Whether a call may have a recorded answer, which it looks up before it waits."""
    is_repeatable = subject.place is None and subject.fingerprint is not None and not subject.unattributed
    return is_repeatable and attempts == 0


class PollAgain(msgspec.Struct, frozen=True):
    """Poll the store again after a settlement, or after `after_s` seconds if given."""

    after_s: float | None = None


class GiveUpWaiting(msgspec.Struct, frozen=True):
    """The queue time ends before there can be room."""


def waiting_decision(wait: Wait, now_us: int, loop_time: float, queue_deadline: float) -> PollAgain | GiveUpWaiting:
    """Decide how long a call waits for room.

    Args:
        wait: the reason to wait.
        now_us: the time of the store, in microseconds, as `wait.until` is.
        loop_time: the time of the loop, in seconds, as `queue_deadline` is.
        queue_deadline: the end of the stay in the queue, at the latest.
    """
    if wait.until is None:
        return PollAgain()
    pause_s = (wait.until - now_us) / 1_000_000
    # Tokens may be released early, when a call is settled below its reservation. Requests never are.
    if wait.what == "requests" and loop_time + pause_s > queue_deadline:
        return GiveUpWaiting()
    return PollAgain(pause_s)


def retry_after_s(wait: Wait, now_us: int) -> int:
    """The delay after which a rejected client should retry: whole seconds, at least one."""
    left_us = wait.until - now_us if wait.until is not None else 0
    return max(1, -(-left_us // 1_000_000))
