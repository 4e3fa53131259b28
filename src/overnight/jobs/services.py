"""What a job needs from rooms it may not import; the wiring hands it in."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from overnight.budgets import Policy
from overnight.domain import Recorded, StoreUnavailable
from overnight.ledger import JobRow, Ledger
from overnight.store import Store

from .tool_call_limits import ToolLimits

log = logging.getLogger(__name__)


class ModelRequest(msgspec.Struct, frozen=True):
    """A model call by job code: the OpenAI chat-completions body, its task, and where it stands in the job."""

    body: dict[str, Any]
    job: JobRow
    task: str | None
    step: str | None
    path: str
    ordinal: int
    fingerprint: str
    check: Callable[[], None] | None = None
    """The last statement before the request is sent; raises when the job's lease may have run out."""


class ModelPort(Protocol):
    """The gateway, as job code sees it."""

    async def call(self, request: ModelRequest) -> Recorded:
        """The durable answer: a `model_succeeded` or, when every target failed, `model_failed` event at that position.

        Raises BudgetStopped when a hard stop blocks the call.
        """
        ...

    async def settle_lost(self, job: JobRow) -> int:
        """Settle the calls that older leases of this job left in flight as lost; how many there were."""
        ...


class NoModel:
    """Stands where no gateway is wired."""

    async def call(self, request: ModelRequest) -> Recorded:  # noqa: ARG002
        raise RuntimeError("no gateway is wired to this worker; open the worker through overnight.app")

    async def settle_lost(self, job: JobRow) -> int:  # noqa: ARG002
        return 0


class Services:
    """Handed to every execution. `report` hears of what made a job leave; `nudge` tells the worker of new work."""

    def __init__(self, store: Store, model: ModelPort, owner: str, policy: Policy | None = None) -> None:
        self.store, self.model, self.owner = store, model, owner
        self.tool_limits = ToolLimits(policy, Ledger(store))
        self.problems: dict[str, str] = {}
        self.definitions: Mapping[str, Any] = {}

    def report(self, job_id: str, error: BaseException | None) -> None:
        if error is not None:
            self.problems[job_id] = f"{type(error).__name__}: {error}"
            if isinstance(error, StoreUnavailable):
                log.warning("%s cannot reach the store: %s", job_id, error)

    def nudge(self) -> None:
        """Replaced by the worker."""
