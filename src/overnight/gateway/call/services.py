"""The services of a gateway, shared by all calls of one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from overnight.circuit_breakers import CircuitBreakers
from overnight.domain.policies import Retries
from overnight.providers.targets import Targets

from ..admission.services import AdmissionServices
from ..cache import LookupServices


class CallServices(msgspec.Struct, frozen=True, kw_only=True):
    """The services of one gateway, handed down to each of its calls.

    Fields:
        loop: the event loop of all calls, kept since `get_running_loop` costs a system call.
        admission: the services of admissions and settlements.
        lookup: the services of cache lookups.
        targets: the targets by model name.
        circuits: the circuit breakers, as this process sees them.
        retries: the retry policies by class of failure.
        run_in_background: runs a coroutine to its end, also after the client has disconnected.
    """

    loop: asyncio.AbstractEventLoop
    admission: AdmissionServices
    lookup: LookupServices
    targets: Targets
    circuits: CircuitBreakers
    retries: Retries
    run_in_background: Callable[[Coroutine[Any, Any, None]], None]
