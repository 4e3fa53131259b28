"""Key permissions: remove the routes and models that a key may not use from a routing decision, including fallbacks."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from overnight.domain import Attribution, Forbidden, allows, listed
from overnight.domain.policies import RouteDecision
from overnight.keys import VirtualKey


def permitted_decision(decision: RouteDecision, key: VirtualKey | Attribution | None) -> RouteDecision:
    """The decision without the targets that are not permitted; these are added to its `rejected`.

    Raises Forbidden, with the permitted names, if the route, the requested model or every target is not permitted.
    """
    if key is None or not (key.models or key.routes):
        return decision
    if not allows(key.routes, decision.route):
        raise Forbidden(f"the key does not permit route {decision.route}; permitted: {listed(key.routes)}")
    targets = tuple(model for model in decision.targets if allows(key.models, model))
    if targets == decision.targets:
        return decision
    first = decision.targets[0]
    if not targets or first == decision.requested_model != targets[0]:
        raise Forbidden(f"the key does not permit model {first}; permitted: {listed(key.models)}")
    closed = tuple((model, "not permitted by the key") for model in decision.targets if model not in targets)
    changed: Any = msgspec.structs.replace(cast(Any, decision), targets=targets, rejected=(*decision.rejected, *closed))
    return changed
