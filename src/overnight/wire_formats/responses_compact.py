"""`POST /responses/compact`: a conversation compacted to one opaque item. Only a target with Responses has it; no streaming."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from . import responses
from .contract import AnswerContext, InvalidBody, Json, Losses
from .request import Request
from .responses_native import kept_items

_OBJECT = "response.compaction"
_NOT_TAKEN = frozenset({"store", "stream", "stream_options", "previous_response_id"})


def read(body: bytes) -> Request:
    """Decode a request body. Raises InvalidBody as `responses.read`, and for a stream."""
    request = responses.read(body)
    if request.stream:
        raise InvalidBody("stream: a compaction is not streamed; remove it", "stream")
    return msgspec.structs.replace(request, format="compact", stream=False)


def is_answer(answer: Json) -> bool:
    return answer.get("object") == _OBJECT and isinstance(answer.get("output"), list) and not answer.get("error")


def read_answer(compaction: Json) -> None:
    """None: its items are opaque, so it is in no cache."""


def request(body: Json, losses: Losses) -> Json:
    """The body for the target."""
    sent: Json = {name: value for name, value in body.items() if name not in _NOT_TAKEN}
    if isinstance(body["input"], list):
        sent["input"] = kept_items(cast("list[Json]", body["input"]), losses)
    return sent


def answer(compaction: Json, context: AnswerContext) -> Json:
    """The provider's answer with the gateway's id. Its items are opaque."""
    return {**compaction, "id": context.answer_id}


def stream_translator(context: AnswerContext) -> Any:
    raise ValueError(f"{context.answer_id}: a compaction is not streamed")
