"""Who a call belongs to."""

import msgspec


class Attribution(msgspec.Struct, frozen=True):
    """The identifiers a call carries. All are checked text; `tenant_id` is never taken from another tenant's request."""

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
