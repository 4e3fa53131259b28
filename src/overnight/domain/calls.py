"""What a routing rule may look at."""

from collections.abc import Callable, Mapping

import msgspec


def _nothing() -> str:
    return ""


class CallFacts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A call before it is routed. Names are checked text; header names are lower case.

    `format` is the client's: chat, responses, messages or embeddings. `job` is our id or the one given from outside.
    `key_agent` and `key_workflow` are what the API key is bound to. `text` gives the prompt; it is asked for only when a rule
    with tiers weighs it.
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
