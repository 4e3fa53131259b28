"""Who a call belongs to."""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec


class Reach(NamedTuple):
    """How far a key reaches within its tenant: to the jobs of its agent and workflow, and what belongs to them; None is any."""

    agent_id: str | None = None
    workflow: str | None = None

    def covers(self, agent_id: str | None, workflow: str | None) -> bool:
        """Whether a job of this agent and workflow is within it. What is not does not exist for the key."""
        return self.agent_id in (None, agent_id) and self.workflow in (None, workflow)


EVERYWHERE = Reach()


class Attribution(msgspec.Struct, frozen=True):
    """The identifiers a call carries. All are checked text; `tenant_id` is never taken from another tenant's request.

    `span_id` is the caller's span, `trace_flags` its flags. `key_id` is the key it was asked with; `models` and `routes` are the
    globs of what that key may use (empty: everything), `reach` tells the jobs that are there for it, and `operates`
    whether it may begin attempts and reopen jobs. A session that
    `only_marks` is recorded, but its calls form no job.
    `headers` are those that routing rules look at, by their names in lower case; the values are bounded, not checked.
    """

    tenant_id: str = "default"
    job_id: str | None = None
    external_id: str | None = None
    agent_id: str | None = None
    session_id: str | None = None
    task_id: str | None = None
    step: str | None = None
    workflow: str | None = None
    actor: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    attempt: int | None = None
    trace_flags: str | None = None
    tags: tuple[str, ...] = ()
    key_id: str | None = None
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    reach: Reach = EVERYWHERE
    operates: bool = True
    only_marks: bool = False
    headers: Mapping[str, str] = {}
