"""What a key may use and decide, as plain functions."""

from __future__ import annotations

from typing import NamedTuple

from overnight.domain import Forbidden, allows, listed

from .rows import VirtualKey


class Requester(NamedTuple):
    """Who asked for a decision: the ids of the API keys that made the job and the request. None: no key."""

    job_key_id: str | None = None
    request_key_id: str | None = None


def check_tool(key: VirtualKey | None, tool: str) -> None:
    """Raises Forbidden if the key may not use a tool. Without a key, every tool is permitted."""
    if key is not None and not allows(key.tools, tool):
        raise Forbidden(f"the key {key.name} does not permit tool {tool}; permitted: {listed(key.tools)}")


def check_decision(key: VirtualKey | None, requester: Requester) -> None:
    """Raises Forbidden if the key may not decide a review.

    A key needs `reviews.decide`. A key that is bound to an agent decides nothing, and no key decides what it asked for itself:
    neither of the job that it made, nor of its own request. Without a key, only the operator's command line decides.
    """
    if key is None:
        raise Forbidden("a decision requires a key with the scope reviews.decide")
    if "reviews.decide" not in key.scopes:
        raise Forbidden(f"the key {key.name} lacks scope reviews.decide")
    if key.agent_id is not None:
        raise Forbidden(f"the key {key.name} is bound to agent {key.agent_id}; an agent decides no reviews")
    if key.key_id in (requester.job_key_id, requester.request_key_id):
        raise Forbidden(f"the key {key.name} made the job or the request; another key must decide")
