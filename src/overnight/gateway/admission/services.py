"""What the admission of calls needs of its process: shared by all calls of one gateway."""

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
        store: where commands are committed.
        owner: the name of this process in its reservations.
        policy: budgets and rate limits.
        fees: microdollars for one use of a tool that a provider runs.
        known_content: content that need not be written again.
        jobs: jobs and their ancestors.
        queue: the calls that wait for room.
        in_flight: the calls of foreign jobs that are under way.
        settlements: the reservations of this process that are open or due.
        loop_guard, cost_alerts: what watches jobs.
        usage_warnings: warnings of providers that report more than a request could use.
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
