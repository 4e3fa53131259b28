"""Effects at a vendor in a process of its own, which keeps every arrival: the hardest cases of one call.

Further ones: a lost 201 is claimed again by its holder, tests/gateway/test_effects_killed.py; a holder that slept past its lease,
tests/api/test_effects_http.py; a key that is too old, test_unknown_outcomes.py; a yes, a no and an expiry at once,
tests/reviews/test_review_machine.py; an edit before a kill, test_effect_approvals.py.
"""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import overnight
from job_runs import run, story
from overnight.ledger import Ledger
from overnight.store import Store
from vendor_client import Refused, VendorClient, spawn_vendor

vendors: list[VendorClient] = []


@pytest.fixture(scope="module", autouse=True)
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VendorClient]:
    with spawn_vendor(tmp_path_factory.mktemp("vendor")) as started:
        vendors.append(started)
        yield started
        vendors.clear()


@overnight.effect(not_done=(Refused,), repeat_safe=True)
def keyed(subject: str, idempotency_key: str) -> Any:
    return overnight.Done(vendors[0].do("keyed", subject, subject, idempotency_key), subject)


@overnight.effect(not_done=(Refused,), settle_after_s=0.8)
def lagging(subject: str, idempotency_key: str) -> Any:
    return overnight.Done(vendors[0].do("lagging", subject, subject, idempotency_key), subject)


@lagging.status_check
def find_lagging(subject: str, idempotency_key: str) -> Any:
    _, provider_id = vendors[0].status("lagging", idempotency_key)
    return overnight.NOT_DONE if provider_id is None else overnight.Done(provider_id, subject)


@overnight.job
async def does_keyed(subject: str) -> str:
    return await keyed(subject)


@overnight.job
async def does_lagging(subject: str) -> str:
    return await lagging(subject)


@pytest.mark.parametrize("behaviour", ["hangs_after", "resets_after", "errs_after", "truncates", "works_late"])
async def test_work_done_and_answer_lost_with_a_key_is_once(store: Store, vendor: VendorClient, behaviour: str) -> None:
    subject = f"key-{behaviour}-{id(store)}"
    vendor.plan(**{subject: [behaviour]})
    job = await run(store, does_keyed, subject)
    assert job.state == "succeeded"
    assert len(vendor.done(subject)) == 1
    assert len({each["key"] for each in vendor.asked(subject)}) == 1


async def test_refusal_of_a_repetition_says_nothing_about_the_first_call(store: Store, vendor: VendorClient) -> None:
    """A vendor may refuse a repetition before it looks at the key: the first call may have done it all the same."""
    subject = f"refused-{id(store)}"
    vendor.plan(**{subject: ["errs_after", "refuses"]})
    job = await run(store, does_keyed, subject)
    assert len(vendor.done(subject)) == 1
    assert "tool_failed" not in await story(store, job.job_id)
    assert job.state == "succeeded"


async def test_lagging_status_is_asked_until_it_has_settled(store: Store, vendor: VendorClient) -> None:
    subject = f"lag-{id(store)}"
    vendor.plan(**{subject: ["resets_after"]})
    job = await run(store, does_lagging, subject)
    assert job.state == "succeeded"
    assert len(vendor.asked(subject)) == len(vendor.done(subject)) == 1


PROGRAM = """
    import sys
    import overnight
    from overnight.jobs import ExternalJob
    from overnight.store import open_store
    from vendor_client import VendorClient

    @overnight.effect
    def note(subject: str, idempotency_key: str) -> str:
        return overnight.Done(VendorClient(sys.argv[2]).do("truthful", subject, subject, idempotency_key), subject)

    @note.status_check
    def find(subject: str, idempotency_key: str):
        _, provider_id = VendorClient(sys.argv[2]).status("truthful", idempotency_key)
        return overnight.NOT_DONE if provider_id is None else overnight.Done(provider_id, subject)

    with open_store(sys.argv[1]) as store, ExternalJob(store, "twice", "default", "twice", ""):
        note.run(sys.argv[3])
        note.run(sys.argv[3])
"""


@pytest.mark.parametrize("point", ["effect_claimed:2", "effect_called:2", "effect_committed:2"])
async def test_two_equal_effects_of_a_killed_program_are_both_replayed(
    store: Store, store_url: str, tmp_path: Path, vendor: VendorClient, point: str
) -> None:
    """Asked for twice in one attempt, an effect is two; killed and started again, the same two."""
    path, subject = tmp_path / "twice.py", f"equal-{tmp_path.name}"
    path.write_text(textwrap.dedent(PROGRAM))

    def start(**more: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(path), store_url, vendor.address, subject]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), **more}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    assert start(OVERNIGHT_CRASH_AT=point).returncode == -signal.SIGKILL
    again = start()
    assert again.returncode == 0, again.stderr
    assert len(vendor.done(subject)) == 2
    assert len({each["key"] for each in vendor.asked(subject)}) == 2
    job = await Ledger(store).job("twice", "default")
    assert (job.state, job.attempt) == ("succeeded", 2)
