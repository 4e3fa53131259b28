"""The rows of stored responses. A row is written in the transaction that settles its call."""

from __future__ import annotations

from typing import Any

import msgspec

from overnight.domain import KeyScope, Recorded
from overnight.store import Table, Unit, statements
from overnight.wire_formats.request import Request

SQL = statements("overnight.gateway.stored_responses")
_INSERT, _DELETE, _FIND = SQL["insert_response"], SQL["delete_response"], SQL["find_response"]


class ResponseRow(msgspec.Struct):
    tenant_id: str
    response_id: str
    job_id: str
    called_seq: int
    answered_seq: int
    created_at: int


class StoredResponse(msgspec.Struct, frozen=True):
    """The id of a response, written with the settlement of its call. `called_seq` is the event of the request."""

    response_id: str
    called_seq: int

    def write(self, unit: Unit, answer: Recorded) -> None:
        row = ResponseRow(
            answer.tenant_id, self.response_id, answer.job_id, self.called_seq, answer.seq, created_at=unit.now
        )
        unit.append(_INSERT, row)


def stored_response_of(request: Request, response_id: str, called_seq: int) -> StoredResponse | None:
    """The stored response of a call; None for other formats, and with `store: false`."""
    store = request.fields.get("store")
    if request.format != "responses" or (store is not None and bytes(store) == b"false"):
        return None
    return StoredResponse(response_id, called_seq)


class DeleteResponse(msgspec.Struct):
    """Delete a response's id; the job's log stays. Returns whether there was one within the key's scope."""

    tenant_id: str
    response_id: str
    key_scope: KeyScope

    def locks(self) -> list[tuple[Table[Any], Any]]:
        return []

    def decide(self, unit: Unit) -> bool:
        values = {"tenant_id": self.tenant_id, "response_id": self.response_id}
        if not any(self.key_scope.allows(*row) for row in unit.query(_FIND, values)):
            return False
        unit.append(_DELETE, self)
        return True
