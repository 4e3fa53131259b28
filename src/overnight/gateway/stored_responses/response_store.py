"""The store of responses: read by id, and prepended to the requests that continue them."""

from __future__ import annotations

from typing import Any

import msgspec

from overnight.domain import (
    ALL_JOBS,
    Attribution,
    Event,
    KeyScope,
    NotFound,
    Recorded,
)
from overnight.domain.json_text import decode_for_display
from overnight.ledger import Ledger, recorded
from overnight.wire_formats import responses as form
from overnight.wire_formats.request import Request

from ..call_deadlines import store_answers_by
from ..error_responses import BodyTooLarge, UnknownPreviousResponse, UnknownResponse
from .input_items import listed
from .rows import SQL, DeleteResponse

Json = dict[str, Any]
MAX_REFERENCES = 1_000
_event = msgspec.json.Decoder(Event).decode
_name = msgspec.json.Decoder(str).decode
_decode = msgspec.json.Decoder().decode
_canonical = msgspec.json.Encoder(order="deterministic").encode
_encode = msgspec.json.Encoder().encode


class StoredResponses:
    """Stored responses, isolated by tenant and key scope. A response outside the scope of a key is not found."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def prepend_history(self, request: Request, who: Attribution, most_bytes: int, until: float) -> Request:
        """The request, after the items that it continues, by `previous_response_id` or by references to items.

        Raises UnknownPreviousResponse, BodyTooLarge, and StoreUnavailable at `until`, a time of the loop.
        """
        previous = request.fields.get("previous_response_id")
        wanted = form.references(request)
        if previous is None and not wanted:
            return request
        earlier: list[bytes] = []
        async with store_answers_by(until):
            if previous is not None and bytes(previous) != b"null":
                earlier = await self._earlier(_name(previous), who.tenant_id, who.key_scope)
            named = await self._named(wanted, who.tenant_id, who.key_scope)
        request = form.continued(request, earlier, named)
        size = len(bytes(request.fields["input"]))
        if size > most_bytes:
            raise BodyTooLarge(
                f"with the continued conversation, the input has {size:,} bytes; the maximum is {most_bytes:,}"
                " (limits.max_body_bytes): start a new conversation with a summary of this one"
            )
        return request

    async def _earlier(self, response_id: str, tenant_id: str, key_scope: KeyScope) -> list[bytes]:
        """The input items of a response, followed by its output items."""
        try:
            called, answer = await self._find(response_id, tenant_id, key_scope)
            output: list[Json] = (await self._body(answer, response_id))["output"]
            return [*await self._input(called, response_id, tenant_id), *map(_canonical, output)]
        except UnknownResponse:
            raise UnknownPreviousResponse(
                f"Previous response with id {response_id!r} not found: it was not stored (store: false), it was deleted,"
                " or it is outside the scope of this key; send the earlier items as input",
                "previous_response_id",
            ) from None

    async def _named(self, wanted: list[str], tenant_id: str, key_scope: KeyScope) -> dict[str, bytes]:
        """The items of stored responses by their ids."""
        if len(wanted) > MAX_REFERENCES:
            raise BodyTooLarge(f"input: {len(wanted):,} references to items; send at most {MAX_REFERENCES:,}")
        named: dict[str, bytes] = {}
        for item_id in dict.fromkeys(wanted):
            if item_id in named:
                continue
            # prefix_KEY or prefix_KEY_n; the response is resp_KEY.
            response_id = f"resp_{item_id.partition('_')[2].partition('_')[0]}"
            try:
                _, answer = await self._find(response_id, tenant_id, key_scope)
                output: list[Json] = (await self._body(answer, response_id))["output"]
            except UnknownResponse:
                output = []
            named |= {str(item.get("id")): _canonical(item) for item in output}
            if item_id not in named:
                raise UnknownPreviousResponse(f"Item with id {item_id!r} not found: send the item itself", "input")
        return named

    async def one(self, response_id: str, tenant_id: str, key_scope: KeyScope = ALL_JOBS) -> bytes:
        """The response as recorded. Raises UnknownResponse."""
        _, answer = await self._find(response_id, tenant_id, key_scope)
        return _encode(await self._body(answer, response_id))

    async def items(
        self,
        response_id: str,
        tenant_id: str,
        key_scope: KeyScope = ALL_JOBS,
        *,
        order: str,
        after: str | None,
        most: int,
    ) -> bytes:
        """A page of the input items of a response, newest first (`order` desc) or oldest first. Raises UnknownResponse."""
        called, _ = await self._find(response_id, tenant_id, key_scope)
        items: list[Json] = [_decode(each) for each in await self._input(called, response_id, tenant_id)]
        return _encode(listed(items, response_id, newest_first=order != "asc", after=after, most=most))

    async def forget(self, response_id: str, tenant_id: str, key_scope: KeyScope = ALL_JOBS) -> None:
        """Delete the response's id; the log of its job stays as it is. Raises UnknownResponse."""
        if not response_id.isprintable() or not await self._ledger.store.commit(
            DeleteResponse(tenant_id, response_id, key_scope)
        ):
            raise _unknown(response_id)

    async def _find(self, response_id: str, tenant_id: str, key_scope: KeyScope) -> tuple[Event, Recorded]:
        if not response_id.isprintable():
            raise _unknown(response_id)  # no valid id, and some stores reject such text
        values = {"tenant_id": tenant_id, "response_id": response_id}
        rows = await self._ledger.store.read(SQL["read_response"], values)
        if not rows or not key_scope.allows(*rows[0][:3]):
            raise _unknown(response_id)
        _, _, _, job_id, called, *answered = rows[0]
        return _event(called), recorded(job_id, answered)

    async def _body(self, answer: Recorded, response_id: str) -> Json:
        try:
            body = await self._ledger.answer(answer)
        except NotFound:
            body = None
        if body is None:
            raise _unknown(response_id)
        return decode_for_display(body)

    async def _input(self, called: Event, response_id: str, tenant_id: str) -> list[bytes]:
        try:
            chain = await self._ledger.content(tenant_id, called.input_ref or "")
        except NotFound:
            raise _unknown(response_id) from None
        return form.input_items(chain if isinstance(chain, list) else [])


def _unknown(response_id: str) -> UnknownResponse:
    return UnknownResponse(f"Response with id {response_id!r} not found.", "response_id")
