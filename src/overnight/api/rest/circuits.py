"""`/api/v1/circuits`: circuit breakers of targets that failed recently."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from overnight.gateway import list_circuits, public_circuit

from .calls import Answer, ApiRoute, Call, json_answer
from .models import ResponseModel, responses

router = APIRouter(route_class=ApiRoute)


class CircuitList(ResponseModel):
    circuits: list[dict[str, Any]]


@router.get("/circuits", summary="Targets that failed lately", responses=responses(200, "The circuits.", CircuitList))
async def list_open(call: Call) -> Answer:
    """Shared circuits, and those of the keys of the tenant."""
    store = call.services.ledger.store
    now = store.clock()
    shown = [public_circuit(circuit, now) for circuit in await list_circuits(store)]
    mine = [circuit for circuit in shown if circuit["tenant_id"] in (None, call.tenant_id)]
    return json_answer(200, {"circuits": mine})
