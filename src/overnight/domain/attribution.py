"""The attribution of a call: tenant, job, agent, session, trace and API key."""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from .errors import Forbidden
from .globs import allows, listed


class KeyScope(NamedTuple):
    """The part of a tenant that an API key can access: jobs of one agent and workflow, and their data. None allows any.

    `jobs` are globs of job names: the external id, or the name of a job without one; empty allows all. A job outside the scope
    is reported to the key as not found.
    """

    agent_id: str | None = None
    workflow: str | None = None
    jobs: tuple[str, ...] = ()

    def allows(self, agent_id: str | None, workflow: str | None, job_name: str) -> bool:
        """Whether the key can access a job of this agent, workflow and name."""
        bound = self.agent_id in (None, agent_id) and self.workflow in (None, workflow)
        return bound and allows(self.jobs, job_name)

    def check_job(self, external_id: str, place: str) -> None:
        """Raises Forbidden, naming `place`, if the key may not use a job of this name."""
        if not allows(self.jobs, external_id):
            raise Forbidden(f"{place}: the key does not permit job {external_id}; permitted: {listed(self.jobs)}")


ALL_JOBS = KeyScope()


class Attribution(msgspec.Struct, frozen=True):
    """The identifiers a call carries. All are checked text; `tenant_id` is never taken from another tenant's request.

    `span_id` and `trace_flags` are those of the caller's span. `key_id` names the API key of the request. `models` and `routes`
    are globs of what the key may use; empty allows everything. `key_scope` limits the jobs that the key can access. `operates`
    allows the key to begin attempts and to reopen jobs. With `only_marks`, the session is recorded but forms no job.
    `parent` names the parent of a job that the call starts, by its job id or external id.
    `about` is the record that the caller works on.
    `headers` holds the request headers that routing rules match, by lower-case name; their values are bounded, not checked.
    """

    tenant_id: str = "default"
    job_id: str | None = None
    external_id: str | None = None
    agent_id: str | None = None
    session_id: str | None = None
    task_id: str | None = None
    step: str | None = None
    workflow: str | None = None
    about: str | None = None
    actor: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    attempt: int | None = None
    trace_flags: str | None = None
    tags: tuple[str, ...] = ()
    key_id: str | None = None
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    key_scope: KeyScope = ALL_JOBS
    operates: bool = True
    only_marks: bool = False
    parent: str | None = None
    headers: Mapping[str, str] = {}
