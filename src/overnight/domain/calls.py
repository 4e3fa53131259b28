"""The facts of a call that routing rules can test."""

from collections.abc import Callable, Mapping

import msgspec


def _nothing() -> str:
    return ""


class CallFacts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A call before routing. Names are checked text; header names are lower case.

    `format` is the client format, one of `ROUTED_FORMATS`. `job` is the job id or the external id.
    `key_agent` and `key_workflow` are the bindings of the API key. `text` returns the prompt; it is called
    only for a rule with tiers.
    """

    model: str | None = None
    task: str | None = None
    agent: str | None = None
    workflow: str | None = None
    tags: tuple[str, ...] = ()
    headers: Mapping[str, str] = {}
    session: str | None = None
    job: str | None = None
    key_agent: str | None = None
    key_workflow: str | None = None
    format: str = "chat"
    text: Callable[[], str] = _nothing
