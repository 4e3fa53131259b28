"""The services that admissions use, shared by all calls of one gateway."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from overnight.budgets import Policy
from overnight.ledger import KnownContent
from overnight.store import Store

from ..job_ancestry import JobAncestry
from .admission_queue import AdmissionQueue
from .cost_alerts import CostAlerts, UsageWarnings
from .due_settlements import Settlements
from .in_flight import InFlightCalls
from .loop_guard import LoopGuard


class AdmissionServices(msgspec.Struct, frozen=True, kw_only=True):
    """The services of one gateway that admissions and settlements use.

    Fields:
        store: commits the commands.
        owner: the name of this process in its reservations.
        policy: budgets and rate limits.
        fees: microdollars for one use of a provider-run tool.
        known_content: content that need not be written again.
        jobs: jobs and their ancestors.
        queue: the calls that wait for room.
        in_flight: the calls of external jobs in flight.
        settlements: the open reservations and the deferred settlements of this process.
        loop_guard, cost_alerts: monitor jobs.
        usage_warnings: warns of providers that report more usage than a request allows.
        breakers_written: called when a breaker update is durable.
    """

    store: Store
    owner: str
    policy: Policy
    fees: Mapping[str, int]
    known_content: KnownContent
    jobs: JobAncestry
    queue: AdmissionQueue
    in_flight: InFlightCalls
    settlements: Settlements
    loop_guard: LoopGuard
    cost_alerts: CostAlerts
    usage_warnings: UsageWarnings
    breakers_written: Callable[[], None]
