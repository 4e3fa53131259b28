"""Key permissions: routes and models that a key may not use are removed from a routing decision, fallbacks included."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from overnight.domain import Attribution, Forbidden
from overnight.domain.policies import RouteDecision
from overnight.keys import VirtualKey, allows


def permitted_decision(decision: RouteDecision, key: VirtualKey | Attribution | None) -> RouteDecision:
    """The decision with those targets left that are allowed; the others are among its `rejected`.

    Raises Forbidden, saying what is allowed, where the route is not, no target is, or the very model that was asked for.
    """
    if key is None or not (key.models or key.routes):
        return decision
    if not allows(key.routes, decision.route):
        raise Forbidden(f"the key does not permit route {decision.route}; permitted: {_listed(key.routes)}")
    targets = tuple(model for model in decision.targets if allows(key.models, model))
    if targets == decision.targets:
        return decision
    first = decision.targets[0]
    if not targets or first == decision.requested_model != targets[0]:
        raise Forbidden(f"the key does not permit model {first}; permitted: {_listed(key.models)}")
    closed = tuple((model, "not permitted by the key") for model in decision.targets if model not in targets)
    changed: Any = msgspec.structs.replace(cast(Any, decision), targets=targets, rejected=(*decision.rejected, *closed))
    return changed


def _listed(globs: tuple[str, ...]) -> str:
    return ", ".join(globs[:20]) + (", …" if len(globs) > 20 else "")
