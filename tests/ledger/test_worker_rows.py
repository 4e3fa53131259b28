"""Rows of processes in `worker`: rows of dead processes are deleted, the others stay."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from machine_parts import make_job
from overnight.ledger import JOB, LEDGER_SQL, locked_job
from overnight.ledger.processes import RenewRegistration, this_host
from overnight.store import Store, Unit, open_store
from overnight.store.store import wall_clock_us
from overnight.testing import spawn_scripted_provider
from serving import serving

DAY_US = 24 * 3600 * 1_000_000


class Lease(msgspec.Struct):
    """A command: a process leases a job."""

    job_id: str
    owner: str

    def locks(self) -> list[tuple[Any, Any]]:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> None:
        job = locked_job(unit, self.job_id)
        job.lease_owner = self.owner
        unit.change(JOB, job)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


async def test_rows_of_dead_processes_are_deleted_after_a_day(
    store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overnight.gateway.housekeeping.SWEEP_EVERY_S", 0.05)
    gone, here = dead_pid(), this_host()
    with open_store(store_url, clock=lambda: wall_clock_us() - DAY_US - 60_000_000) as then:
        for worker_id, host, pid in (
            ("killed here", here, gone),
            ("killed elsewhere", "elsewhere/1", 1),
            ("alive here", here, os.getpid()),
            ("leasing", here, gone),
        ):
            then.commit_blocking(RenewRegistration(worker_id, "worker", host, pid, 1))
    with open_store(store_url, clock=lambda: wall_clock_us() - DAY_US + 60_000_000) as later:
        later.commit_blocking(RenewRegistration("killed today", "gateway", here, gone, 1))
    job_id = make_job(store)
    store.commit_blocking(Lease(job_id, "leasing"))
    with spawn_scripted_provider() as provider:
        async with serving(store, provider):
            async with asyncio.timeout(15):
                while len(found := await rows(store)) > 3:
                    await asyncio.sleep(0.05)
    assert found == {"alive here", "leasing", "killed today"}


async def rows(store: Store) -> set[str]:
    found = await store.read(LEDGER_SQL["list_old_processes"], {"before": wall_clock_us() - 3_600_000_000})
    return {row[0] for row in found}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the id of the boot from /proc")
def test_machines_of_the_same_name_are_different_hosts() -> None:
    """The first namespace of process ids has one number on every machine; the id of a boot is random."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    assert boot in this_host()
