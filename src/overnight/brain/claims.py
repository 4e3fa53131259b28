"""Rules for an agent or workflow that the caller claims, but its API key does not confirm."""

from collections.abc import Callable, Mapping

import msgspec

from overnight.brain.rules import PreparedRoute
from overnight.domain import CallFacts, Forbidden
from overnight.domain.policies import RouteDecision

Decide = Callable[[CallFacts], RouteDecision]


def confirmed(
    claimed: RouteDecision, facts: CallFacts, claim: str, decide: Decide, plans: Mapping[str, PreparedRoute]
) -> RouteDecision:
    """What holds of a decision that depends on a claim, such as "agent vip".

    The claim can only make the decision stricter. It keeps the targets that the same call could reach by naming the model,
    without the claim, and the lowest of the output caps and deadlines of both. Without such a target, the decision is the one
    without the claim.

    Args:
        claimed: the decision, by a rule that holds by the claim, or by the name of its route.
        decide: decides a call without regard to claims.
        plans: the routes by name.
    """
    own = facts.without_claims()
    if own.task in plans:
        own = msgspec.structs.replace(own, task=None)
    reached = {target: _reached(own, target, decide, plans) for target in claimed.targets}
    kept = {target: found for target, found in reached.items() if found is not None}
    why = f"the key is not bound to {claim}"
    if not kept:
        if (facts.model or "") in plans:
            own = msgspec.structs.replace(own, model="auto")
        found = decide(own)
        rejected = (*found.rejected, (claimed.route, why))
        return msgspec.structs.replace(found, requested_model=claimed.requested_model, rejected=rejected)
    caps = [each.output_cap for each in (claimed, *kept.values()) if each.output_cap is not None]
    closed = tuple((target, why) for target in claimed.targets if target not in kept)
    return msgspec.structs.replace(
        claimed,
        targets=tuple(kept),
        output_cap=min(caps, default=None),
        deadline_ms=min(each.deadline_ms for each in (claimed, *kept.values())),
        rejected=(*claimed.rejected, *closed),
    )


def _reached(own: CallFacts, target: str, decide: Decide, plans: Mapping[str, PreparedRoute]) -> RouteDecision | None:
    """The decision for the same call without the claim, but with this model; None if that does not lead to the model."""
    if target in plans:
        return None
    try:
        found = decide(msgspec.structs.replace(own, model=target))
    except (LookupError, Forbidden):
        return None
    plan = plans.get(found.route)
    variants = plan.variants if plan is not None else ()
    reachable = {*found.targets, *(each for variant in variants for each in variant.targets)}
    return found if target in reachable else None
