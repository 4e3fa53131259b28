"""Services that a worker hands to its executions: the store, the gateway, and what `app.py` wires in."""

import logging
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from overnight.budgets import Policy
from overnight.domain import Recorded, StoreUnavailable
from overnight.ledger import JobRow, Ledger
from overnight.store import Store
from overnight.tools import FindRules, no_rules

from .stored_prompts import StoredPrompts
from .tool_call_limits import ToolCallLimits

log = logging.getLogger(__name__)


class ModelRequest(msgspec.Struct, frozen=True):
    """A model call by job code: the OpenAI chat-completions body, its task, and its position in the job."""

    body: dict[str, Any]
    job: JobRow
    task: str | None
    step: str | None
    path: str
    ordinal: int
    fingerprint: str
    check: Callable[[], None] | None = None
    """The last statement before the request is sent; raises if the job's lease may have run out."""
    about: str | None = None
    prompts: tuple[str, ...] = ()
    """The names of the prompts among its messages."""


class ModelPort(Protocol):
    """The interface of the gateway for job code."""

    async def call(self, request: ModelRequest) -> Recorded:
        """The durable answer: a `model_succeeded` or, if every target failed, `model_failed` event at that position.

        Raises BudgetStopped if a hard limit blocks the call, LoopStopped if the loop guard does.
        """
        ...

    async def settle_lost(self, job: JobRow) -> int:
        """Settle the calls that earlier leases of this job left in flight as lost. Returns their number."""
        ...


class NoModel:
    """The model port of a worker without a gateway."""

    async def call(self, request: ModelRequest) -> Recorded:  # noqa: ARG002
        raise RuntimeError("no gateway is wired to this worker; open the worker through overnight.app")

    async def settle_lost(self, job: JobRow) -> int:  # noqa: ARG002
        return 0


class Services:
    """Shared by all executions of a worker.

    `notify` tells the worker that a new job may be due. `tool_rules` finds the rules about effects that are in force now.
    `problems` holds the last error of each job, for diagnosis.
    """

    def __init__(
        self,
        store: Store,
        model: ModelPort,
        owner: str,
        policy: Policy | None,
        notify: Callable[[], None],
        tool_rules: FindRules = no_rules,
    ) -> None:
        self.store, self.model, self.owner, self.notify = store, model, owner, notify
        self.prompts = StoredPrompts(store)
        self.tool_limits = ToolCallLimits(policy, Ledger(store))
        self.tool_rules = tool_rules
        self.problems: dict[str, str] = {}

    def report(self, job_id: str, error: BaseException | None) -> None:
        """Keep the error that made a job leave; None is no error."""
        if error is not None:
            self.problems[job_id] = f"{type(error).__name__}: {error}"
            if isinstance(error, StoreUnavailable):
                log.warning("%s cannot reach the store: %s", job_id, error)
