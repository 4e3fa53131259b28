"""The facts of a call: the input of the routing rules, and the fields of its events that allow the decision to be repeated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import msgspec

from overnight.domain import Attribution, CallFacts
from overnight.domain.policies import RouteDecision
from overnight.wire_formats import routed_format
from overnight.wire_formats.request import Request

_decode = msgspec.json.Decoder().decode


def routing_facts(who: Attribution, request: Request) -> CallFacts:
    """The facts of a call for the routing rules."""
    return CallFacts(
        model=request.model,
        task=who.task_id,
        agent=who.agent_id,
        workflow=who.workflow,
        tags=who.tags,
        headers=who.headers,
        session=who.session_id,
        job=who.job_id or who.external_id,
        has_key=who.key_id is not None,
        key_agent=who.key_scope.agent_id,
        key_workflow=who.key_scope.workflow,
        format=routed_format(request.format),
        text=lambda: last_user_text([link.body for link in request.links]),
    )


def last_user_text(messages: list[bytes]) -> str:
    """The text of the last user message; "" without one. `messages` are recorded ones, in any wire format.

    Tool turns after that message belong to its answer, so they do not change the result.
    """
    for body in reversed(messages):
        if body.find(b"user") < 0:
            continue
        message = _decode(body)
        if isinstance(message, dict) and cast("dict[str, Any]", message).get("role") == "user":
            fields = cast("dict[str, Any]", message)
            text = "\n".join(_texts(fields.get("content", fields.get("parts"))))
            if text:
                return text
    return ""


def _texts(content: Any) -> Iterable[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in cast("list[Any]", content):
            text = cast("dict[str, Any]", part).get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                yield text


def decision_facts(decision: RouteDecision) -> dict[str, Any]:
    """A routing decision, as events record it."""
    facts: dict[str, Any] = {"route": decision.route, "why": decision.why, "targets": decision.targets}
    if decision.rejected:
        facts["rejected"] = [{"name": name, "why": why} for name, why in decision.rejected]
    if decision.tier is not None:
        facts["tier"] = decision.tier
    if decision.complexity is not None:
        facts["complexity"] = decision.complexity
    return facts


def caller_facts(who: Attribution, request_format: str) -> dict[str, Any]:
    """The facts of a call that have no field of their own in an event."""
    facts: dict[str, Any] = {}
    if who.tags:
        facts["tags"] = who.tags
    if who.headers:
        facts["headers"] = who.headers
    if who.key_id is not None:
        own = who.key_scope
        named = {"agent": (who.agent_id, own.agent_id), "workflow": (who.workflow, own.workflow)}
        if claims := [kind for kind, (name, bound) in named.items() if name is not None and name != bound]:
            facts["claimed"] = claims
    if request_format != "chat":
        facts["format"] = request_format
    return facts
