"""The recurring work of a gateway: settle lost calls, expire reviews, wake waiting jobs, learn usual costs, end abandoned
jobs."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable

from overnight.budgets import wake_waiting_jobs
from overnight.domain import StoreUnavailable
from overnight.effects import expire_reviews
from overnight.store import Store

from .admission.abandoned_jobs import AbandonedJobs
from .admission.cost_alerts import CostAlerts
from .orphaned_calls import OrphanedCalls

log = logging.getLogger("overnight.gateway")
SWEEP_EVERY_S = 1.0
COSTS_EVERY = 20
"""Sweeps between two polls for the costs of finished jobs."""

WAKE_EVERY = 5
"""Sweeps between two searches for parked jobs that no process has woken after a top-up."""


class Housekeeping:
    """Runs in every gateway. `abandoned_hours` returns the present `limits.external_abandoned_hours`; `expire_claims` makes
    expired claims of effects unknown."""

    def __init__(
        self,
        store: Store,
        lost_calls: OrphanedCalls,
        cost_alerts: CostAlerts,
        abandoned_hours: Callable[[], int],
        expire_claims: Callable[[], Awaitable[None]],
    ) -> None:
        self._expire_claims = expire_claims
        self._store, self._lost_calls, self._cost_alerts = store, lost_calls, cost_alerts
        self._abandoned_jobs, self._abandoned_hours = AbandonedJobs(store), abandoned_hours

    async def run(self) -> None:
        """Work until cancelled."""
        for turn in itertools.count():
            await asyncio.sleep(SWEEP_EVERY_S)
            try:
                await self._lost_calls.sweep()
                await expire_reviews(self._store)
                await self._expire_claims()
                if turn % WAKE_EVERY == 0:
                    await wake_waiting_jobs(self._store)
                if turn % COSTS_EVERY == 0:
                    await self._cost_alerts.poll()
                await self._abandoned_jobs.sweep(self._abandoned_hours())
            except StoreUnavailable as error:
                log.warning("recovery of lost calls failed, will retry: %s", error)
            except Exception:
                log.exception("internal error in the recovery of lost calls, will retry")
