"""`/api/v1/circuits`: circuit breakers of targets that failed recently."""

from __future__ import annotations

from overnight.gateway import HttpResponse, list_circuits, public_circuit
from overnight.store import Store

from .json_bodies import json_answer, query_of
from .requests import Request


class Circuits:
    """Shared circuits, and those of the keys of the tenant."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, request: Request) -> HttpResponse:
        query_of(request)
        now = self._store.clock()
        shown = [public_circuit(circuit, now) for circuit in await list_circuits(self._store)]
        mine = [circuit for circuit in shown if circuit["tenant_id"] in (None, request.tenant_id)]
        return json_answer(200, {"circuits": mine})
