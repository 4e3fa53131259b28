"""The facts of a call that routing rules may use, and those that its events record, so that the decision can be repeated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import msgspec

from overnight.domain import Attribution, CallFacts
from overnight.domain.policies import RouteDecision
from overnight.wire_formats.request import Request

_decode = msgspec.json.Decoder().decode


def facts_of(who: Attribution, request: Request) -> CallFacts:
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
        format=request.format,
        text=lambda: asked_text([link.body for link in request.links]),
    )


def asked_text(messages: list[bytes]) -> str:
    """What the user asked last, as text; "" where nobody did. `messages` are recorded ones, in any wire format.

    The turns of tools after it are the way to its answer: they do not make the question another one.
    """
    for body in reversed(messages):
        if b"user" not in body:
            continue
        message = _decode(body)
        if isinstance(message, dict) and cast("dict[str, Any]", message).get("role") == "user":
            text = "\n".join(_texts(cast("dict[str, Any]", message).get("content")))
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
    said: dict[str, Any] = {"route": decision.route, "why": decision.why, "targets": decision.targets}
    if decision.rejected:
        said["rejected"] = [{"name": name, "why": why} for name, why in decision.rejected]
    if decision.tier is not None:
        said["tier"] = decision.tier
    if decision.complexity is not None:
        said["complexity"] = decision.complexity
    return said


def caller_facts(who: Attribution, request_format: str) -> dict[str, Any]:
    """The facts that have no field of their own in an event."""
    said: dict[str, Any] = {}
    if who.tags:
        said["tags"] = who.tags
    if who.headers:
        said["headers"] = who.headers
    if request_format != "chat":
        said["format"] = request_format
    return said
