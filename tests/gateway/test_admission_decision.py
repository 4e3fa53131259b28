"""The decisions of an admission, without a gateway and a store: replay or not, wait or give up."""

from typing import Any

import msgspec
import pytest

from overnight.budgets import Wait
from overnight.domain import Attribution
from overnight.gateway.admission.decision import (
    GiveUpWaiting,
    PollAgain,
    ReplayStep,
    may_recall,
    needs_ancestors,
    replay_step,
    retry_after_s,
    waiting_decision,
)
from overnight.gateway.identity import BoundaryPosition, Subject
from overnight.ledger import JobRow

NOW_US = 1_000_000_000_000
SECOND_US = 1_000_000


def job(**changed: Any) -> JobRow:
    empty: dict[str, Any] = dict.fromkeys(JobRow.__struct_fields__)
    row: dict[str, Any] = {
        "job_id": "job_1",
        "tenant_id": "default",
        "root_job_id": "job_1",
        "runtime": "foreign",
        "attempt": 2,
    }
    return JobRow(**(empty | row | changed))


def subject(**changed: Any) -> Subject:
    fields: dict[str, Any] = {"who": Attribution(), "job_id": "job_1", "ancestors": ("job_1",), "known": True}
    fields |= {"label": "default", "fingerprint": "f" * 64}
    return Subject(**(fields | changed))


def step(row: JobRow | None = None, of: Subject | None = None, **flags: bool) -> ReplayStep:
    given = {"is_new": False, "settles": False, "serial": False, **flags}
    return replay_step(row or job(), of or subject(), **given)


def test_repeated_request_is_serialized_before_the_lookup() -> None:
    assert step() is ReplayStep.TAKE_TURN
    assert step(serial=True) is ReplayStep.LOOK_UP


@pytest.mark.parametrize("serial", [False, True])
def test_calls_without_possible_records_are_not_replayed(serial: bool) -> None:
    none = ReplayStep.NONE
    assert step(job(attempt=1), serial=serial) is none, "the first attempt has no older one"
    assert step(job(runtime="overnight"), serial=serial) is none, "job code is answered by position"
    assert step(of=subject(fingerprint=None), serial=serial) is none, "it cannot be recognised"
    assert step(is_new=True, serial=serial) is none
    assert step(settles=True, serial=serial) is none, "the call is live already"


def test_a_child_job_needs_its_ancestors_once() -> None:
    child = job(job_id="job_2", parent_job_id="job_1")
    assert needs_ancestors(child, subject(job_id="job_9", ancestors=("job_9",), known=False))
    assert not needs_ancestors(child, subject(job_id="job_2", ancestors=("job_1", "job_2")))
    assert not needs_ancestors(job(), subject())


def test_only_the_first_attempt_of_a_call_is_recalled() -> None:
    assert may_recall(subject(), 0)
    assert not may_recall(subject(), 1)
    assert not may_recall(subject(unattributed=True), 0)
    assert not may_recall(subject(place=BoundaryPosition("", 1, "f", 1)), 0)
    assert not may_recall(subject(fingerprint=None), 0)


BUDGET = Wait("job", "job_1", "default")
REQUESTS = Wait("tenant", "default", "default", what="requests", until=NOW_US + 5 * SECOND_US)


def test_budget_wait_has_no_known_end() -> None:
    assert waiting_decision(BUDGET, NOW_US, 100.0, 100.5) == PollAgain(None)
    assert retry_after_s(BUDGET, NOW_US) == 1


def test_rate_limit_wait_ends_within_the_queue_time() -> None:
    assert waiting_decision(REQUESTS, NOW_US, 100.0, 105.0) == PollAgain(5.0)
    assert waiting_decision(REQUESTS, NOW_US, 100.0, 104.9) == GiveUpWaiting()


def test_token_limit_wait_may_end_early() -> None:
    tokens = msgspec.structs.replace(REQUESTS, what="tokens")
    assert waiting_decision(tokens, NOW_US, 100.0, 101.0) == PollAgain(5.0)


@pytest.mark.parametrize(("left_us", "seconds"), [(-SECOND_US, 1), (0, 1), (1, 1), (SECOND_US, 1), (SECOND_US + 1, 2)])
def test_rejected_client_receives_whole_seconds(left_us: int, seconds: int) -> None:
    assert retry_after_s(msgspec.structs.replace(REQUESTS, until=NOW_US + left_us), NOW_US) == seconds
