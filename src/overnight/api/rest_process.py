"""What `/api/v1` is given in a process of its own: no providers, no queue of calls, no recovery of lost ones."""

from __future__ import annotations

import asyncio

from overnight.brain import Brain
from overnight.budgets import Policy
from overnight.domain import Attribution
from overnight.gateway import JobAncestry, start_job, store_timeout_s
from overnight.keys import Keyring
from overnight.ledger import Ledger
from overnight.outgoing import AddressPolicy
from overnight.tools import policy_of

from .body_memory import BodyMemory
from .rest_services import RestServices


class RestProcess:
    """The services of a process that serves `/api/v1` alone. It changes with the brain, and closes with `close`."""

    def __init__(self, ledger: Ledger, keyring: Keyring, brain: Brain) -> None:
        self._ledger, self._keyring, self._brain = ledger, keyring, brain
        self._policy = Policy(brain.routing.budgets, brain.routing.rate_limits)
        self._jobs = JobAncestry(ledger, brain.version)
        self._keyring.read_timeout_s = store_timeout_s(brain.routing.time_limits)

    def services(self, public_url: str, outgoing: AddressPolicy) -> RestServices:
        return RestServices(
            ledger=self._ledger,
            keyring=self._keyring,
            start_job=self._start_job,
            policy=lambda: self._policy,
            providers=lambda: [each.name for each in self._brain.routing.providers],
            memory=BodyMemory(lambda: self._brain.routing.limits.max_body_bytes),
            public_url=public_url,
            tool_policy=lambda: policy_of(self._brain.tools),
            outgoing=outgoing,
        )

    async def reload(self, brain: Brain) -> None:
        """Change to another version of the brain."""
        self._brain, self._jobs.brain_version = brain, brain.version
        self._policy.update(brain.routing.budgets, brain.routing.rate_limits)
        self._keyring.read_timeout_s = store_timeout_s(brain.routing.time_limits)

    async def close(self) -> None:
        """Note the last uses of keys. Raises StoreUnavailable."""
        await self._keyring.close()

    async def _start_job(self, who: Attribution) -> tuple[str, bool]:
        until = asyncio.get_running_loop().time() + store_timeout_s(self._brain.routing.time_limits)
        return await start_job(self._jobs, self._ledger.store, who, until)
