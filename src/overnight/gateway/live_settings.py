"""Apply a new version of the brain to the services of a running gateway."""

from __future__ import annotations

import msgspec

from overnight.brain import Routing
from overnight.circuit_breakers import CircuitBreakers
from overnight.pricing.provider_tools import FEES
from overnight.providers.targets import Targets

from .call.services import CallServices


def updated_services(
    services: CallServices, circuits: CircuitBreakers, routing: Routing, targets: Targets, prompts_version: str
) -> CallServices:
    """The services of the calls that start from now on. Calls in flight keep theirs, and their targets.

    Budgets, rate limits, guards, alarms and breakers change for all calls at once, since they share their state.
    """
    admission = services.admission
    admission.policy.update(routing.budgets, routing.rate_limits)
    admission.loop_guard.configure(routing.guards)
    admission.cost_alerts.configure(routing.alarms)
    circuits.configure(routing.breakers)
    return msgspec.structs.replace(
        services,
        admission=msgspec.structs.replace(admission, fees={**FEES, **routing.hosted_tools}),
        lookup=msgspec.structs.replace(services.lookup, prompts_version=prompts_version),
        targets=targets,
        retries=routing.retries,
    )
