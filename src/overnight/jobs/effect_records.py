"""The records of effects in process: what an effect function is to its execution, and who executes it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from overnight import effects
from overnight.budgets import Limit, locks
from overnight.domain import ErrorFacts
from overnight.ledger import JOB, JobRow
from overnight.store import Store, Unit
from overnight.tools import FindRules


class Done(msgspec.Struct, frozen=True):
    """Returned by an effect or its status check: it was done. `provider_id`: its id at the provider; `result`: its result."""

    provider_id: str | None = None
    result: Any = None


NOT_DONE = "not_done"
CANNOT_TELL = "cannot_tell"

Check = Callable[[], None]
"""Raises LeaseLost if the caller may no longer act."""
Late = Callable[[Done], None]
"""Takes the result of a call that its caller has given up. It blocks, in the thread of the call."""


class Tool(Protocol):
    """The interface of an effect function for its execution."""

    tool: str
    not_done: tuple[type[Exception], ...]
    settle_after_s: float
    repeat_safe: bool
    key_lifetime_s: float | None

    async def call(self, key: str, named: dict[str, Any], check: Check, late: Late) -> Done: ...

    async def ask_status(self, key: str, named: dict[str, Any], check: Check) -> Done | str: ...

    def restore(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call from their JSON. Raises BadInput if they do not fit the function."""
        ...


class EffectOutcome(msgspec.Struct, frozen=True):
    """The outcome of an effect: `tool_succeeded` with its result as JSON, `tool_failed`, or `tool_refused`.

    `seq`: its event; 0 if it was not written by this call. `replayed`: an earlier caller executed the effect.
    """

    event: str
    seq: int
    content: bytes | None = None
    error: ErrorFacts | None = None
    replayed: bool = False


class EffectWait(msgspec.Struct, frozen=True):
    """The effect waits for a person: for an approval, or for a decision about its outcome (`quarantine`)."""

    wait_for: Literal["approval", "quarantine"]
    review_id: str


EffectAction = Callable[[Unit, JobRow], Any]


class EffectCommand(msgspec.Struct):
    """An action under the locks of a job and an effect. `fence` raises if the caller may no longer write."""

    job_id: str
    tenant_id: str
    key: str
    fence: Callable[[Unit], JobRow]
    act: EffectAction
    limits: Sequence[Limit] = ()

    def locks(self) -> list[tuple[Any, Any]]:
        counted = locks(self.tenant_id, self.limits)
        return [(JOB, self.job_id), *counted, (effects.EFFECT, (self.tenant_id, self.key))]

    def decide(self, unit: Unit) -> Any:
        return self.act(unit, self.fence(unit))


class EffectHolder(msgspec.Struct, frozen=True):
    """Who executes an effect: one lease of a job, or one attempt of an external program.

    - `commit`: commits a command of this holder. `fence`: the locked job; raises Fenced once the holder has lost it.
    - `check`: runs directly before the function, in its thread. `begin`: runs before a claim is written. With it, a failed
      check is no end: the call is tried again once a further write has shown that the holder still has the job.
    - `owner`: the process. `limits`: finds the limits that the call counts in. `rules`: finds the rules in force.
    """

    store: Store
    job_id: str
    tenant_id: str
    owner: str
    commit: Callable[[EffectCommand], Awaitable[Any]]
    fence: Callable[[Unit], JobRow]
    check: Check
    rules: FindRules
    limits: Callable[[], Awaitable[Sequence[Limit]]] | None = None
    begin: Callable[[], None] | None = None
