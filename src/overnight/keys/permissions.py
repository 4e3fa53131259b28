"""Checks of the permissions of a key, as pure functions."""

from __future__ import annotations

from typing import NamedTuple

from overnight.domain import Forbidden, allows, listed

from .rows import VirtualKey


class Requester(NamedTuple):
    """The origin of a review: the ids of the API keys that created the job and the request. None: no key."""

    job_key_id: str | None = None
    request_key_id: str | None = None


def check_tool(key: VirtualKey | None, tool: str) -> None:
    """Raises Forbidden if the key may not use a tool. Without a key, every tool is permitted."""
    if key is not None and not allows(key.tools, tool):
        raise Forbidden(f"the key {key.name} does not permit tool {tool}; permitted: {listed(key.tools)}")


def check_decision(key: VirtualKey | None, requester: Requester) -> None:
    """Raises Forbidden if the key may not decide a review.

    A key needs `reviews.decide`, must not be bound to an agent, and must not have created the job or the request. Decisions
    without a key come only from the operator's command line.
    """
    if key is None:
        raise Forbidden("a decision requires a key with the scope reviews.decide")
    if "reviews.decide" not in key.scopes:
        raise Forbidden(f"the key {key.name} lacks scope reviews.decide")
    if key.agent_id is not None:
        raise Forbidden(f"the key {key.name} is bound to agent {key.agent_id}; keys of agents cannot decide reviews")
    if key.key_id in (requester.job_key_id, requester.request_key_id):
        raise Forbidden(f"the key {key.name} created the job or the request; another key must decide")
