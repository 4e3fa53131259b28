"""The facts of a call that routing rules can test."""

from collections.abc import Callable, Mapping

import msgspec


def _nothing() -> str:
    return ""


class CallFacts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A call before routing. Names are checked text; header names are lower case.

    `format` is the client format, one of `ROUTED_FORMATS`. `job` is the job id or the external id.
    `has_key`: whether an API key identifies the caller. `key_agent` and `key_workflow` are its bindings; another agent or
    workflow is then a claim of the caller. `text` returns the prompt; it is called only for a rule with tiers.
    """

    model: str | None = None
    task: str | None = None
    agent: str | None = None
    workflow: str | None = None
    tags: tuple[str, ...] = ()
    headers: Mapping[str, str] = {}
    session: str | None = None
    job: str | None = None
    has_key: bool = False
    key_agent: str | None = None
    key_workflow: str | None = None
    format: str = "chat"
    text: Callable[[], str] = _nothing

    def without_claims(self) -> "CallFacts":
        """These facts with the identity of the key alone."""
        own = {"x-agent-name": self.key_agent, "x-workflow": self.key_workflow}
        headers = {name: text for name, text in self.headers.items() if name not in own}
        headers |= {name: text for name, text in own.items() if text is not None and name in self.headers}
        return msgspec.structs.replace(self, agent=self.key_agent, workflow=self.key_workflow, headers=headers)
