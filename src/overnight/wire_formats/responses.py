"""OpenAI Responses. The recorded chain starts with `instructions`; each input item follows as canonical JSON.

The provider stores nothing: the items of the response in `previous_response_id` are inserted before the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, cast

import msgspec

from overnight.ledger import address_chain
from overnight.pricing.provider_tools import hosted_tools
from overnight.pricing.usage import Usage, openai_usage

from .contract import Json
from .request import (
    NOT_FINGERPRINTED,
    REFERENCED_FILE_BYTES,
    TOOLS_BYTES,
    InvalidBody,
    Request,
    canonical,
    invalid_body,
    tools_of,
    unescaped_for_search,
)
from .responses_stream import Assembly, encode, stream_events

__all__ = [
    "Assembly",
    "continued",
    "encode",
    "error_body",
    "input_items",
    "is_answer",
    "read",
    "references",
    "stream_events",
    "usage_of",
]

Positive = Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
Name = Annotated[str, msgspec.Meta(max_length=200)]

HOSTED_TOOL_BYTES = 65_536
"""Added for each tool that the provider executes: its results are billed as input."""
INSTRUCTIONS = "instructions"
"""The type of the link that records `instructions`; no input item has this type."""

_POINTERS = (b'"image_url"', b'"file_id"', b'"file_url"', b'"file_data"', b'"input_audio"')
_NOT_PARAMETERS = frozenset({"input", "instructions", "tools", "stream", "stream_options"})
_OWN_TOOLS = frozenset({"function", "custom", "namespace"})
_ROLES = frozenset({"user", "assistant", "system", "developer"})
_MARKERS = frozenset({"cache_control", "prompt_cache_breakpoint"})
_MARKS = (b'"cache_control"', b'"prompt_cache_breakpoint"')
_SECRETS = frozenset({"authorization", "headers"})
_ANSWERED = frozenset({"completed", "incomplete"})
_EXAMPLE = 'a string, or a list of items such as [{"role": "user", "content": "hello"}]'
_ELSEWHERE = {
    "background": "remove it; an answer is read to its end and recorded even after its client disconnected",
    "conversation": "conversations are not supported: send previous_response_id, or the earlier items as input",
    "prompt": "prompt templates are stored at the provider, so their size is unknown: send instructions and input",
}


class _Known(msgspec.Struct):
    """The fields of the body that the gateway reads."""

    input: str | list[Json]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: Name | None = None
    store: bool | None = None
    stream: bool | None = None
    max_output_tokens: Positive | None = None
    max_tool_calls: Positive | None = None
    metadata: Json | None = None
    service_tier: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    include: list[str] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Json | None = None
    text: Json | None = None
    tool_choice: str | Json | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None


_known = msgspec.json.Decoder(_Known).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_any = msgspec.json.Decoder().decode
_objects = msgspec.json.Decoder(list[Json]).decode
_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode


def read(body: bytes) -> Request:
    """Decode a request body.

    Raises:
        InvalidBody: a field is invalid; the error names the field and the expected value.
    """
    try:
        known = _known(body)
        fields = _fields(body)
        params = {name: _any(raw) for name, raw in fields.items() if name not in _NOT_PARAMETERS}
        bodies = _recorded_items(known, marked=any(mark in body for mark in _MARKS))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_body(error, conversation_field="input", example=_EXAMPLE, api_name="Responses") from None
    for name, way_out in _ELSEWHERE.items():
        if getattr(known, name):
            raise InvalidBody(f"{name}: {way_out}", name)
    tools, tools_sha256, run_there = _tools(fields.get("tools"))
    given = hosted_tools(run_there, known.max_tool_calls)
    aside = NOT_FINGERPRINTED | {"previous_response_id"}
    unescaped = unescaped_for_search(body)
    references_found = sum(unescaped.count(mark) for mark in _POINTERS)
    return Request(
        format="responses",
        fields=fields,
        model=known.model or "",
        links=tuple(address_chain(bodies)),
        tools=tools,
        tools_sha256=tools_sha256,
        params=canonical(params),
        stable_params=canonical({name: value for name, value in params.items() if name not in aside}),
        stream=bool(known.stream),
        prompt_bytes=len(body)
        + references_found * REFERENCED_FILE_BYTES
        + (TOOLS_BYTES if tools else 0)
        + len(run_there) * HOSTED_TOOL_BYTES,
        cap=known.max_output_tokens,
        cap_field="max_output_tokens",
        wants_usage=True,
        metadata=known.metadata,
        price_context=(("service_tier", known.service_tier),) if known.service_tier else (),
        hosted=given,
        open_ended=references_found > 0 or bool(run_there),
    )


def continued(request: Request, earlier: list[bytes], named: Mapping[str, bytes]) -> Request:
    """Insert the `earlier` items before the request's own, and replace each reference by its item (`named`, by id).

    Both the recorded chain and the body for the provider change.
    """
    bodies = [link.body for link in request.links]
    head = 1 if bodies and _is_instructions(bodies[0]) else 0
    sent = _sent(request.fields["input"]) or bodies[head:]
    for place, body in enumerate(bodies[head:]):
        reference = _reference(body)
        if reference is not None:
            bodies[head + place] = sent[place] = named[reference]
    added = [*earlier, *named.values()]
    references_found = sum(item.count(mark) for item in added for mark in _POINTERS)
    return msgspec.structs.replace(
        request,
        links=tuple(address_chain([*bodies[:head], *earlier, *bodies[head:]])),
        fields={**request.fields, "input": msgspec.Raw(b"[%b]" % b",".join([*earlier, *sent]))},
        prompt_bytes=request.prompt_bytes + sum(map(len, added)) + references_found * REFERENCED_FILE_BYTES,
        open_ended=request.open_ended or references_found > 0,
    )


def references(request: Request) -> list[str]:
    """The ids of items that the input contains only by reference."""
    return [name for name in (_reference(link.body) for link in request.links) if name is not None]


def input_items(chain: list[bytes]) -> list[bytes]:
    """The input items of a recorded request, without the instructions."""
    return chain[1:] if chain and _is_instructions(chain[0]) else chain


def usage_of(answer: Json) -> Usage | None:
    return openai_usage(answer.get("usage"))


def is_answer(answer: Json) -> bool:
    return answer.get("object") == "response" and answer.get("status") in _ANSWERED and not answer.get("error")


def error_body(message: str, kind: str, code: str | None, param: str | None, _status: int) -> bytes:
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def _recorded_items(known: _Known, *, marked: bool) -> list[bytes]:
    """The links of the request's own chain. Raises InvalidBody."""
    items = [{"role": "user", "content": known.input}] if isinstance(known.input, str) else known.input
    if not items and known.previous_response_id is None:
        raise InvalidBody(f"`input` is empty: send {_EXAMPLE}", "input")
    for place, item in enumerate(items):
        _check(item, place)
    bodies = [canonical(_without_cache_markers(item) if marked else item) for item in items]
    if known.instructions:
        bodies.insert(0, canonical({"type": INSTRUCTIONS, "content": known.instructions}))
    return bodies


def _check(item: Json, place: int) -> None:
    """Check one input item. Raises InvalidBody if no target can read it."""
    kind, role = item.get("type"), item.get("role")
    where = f"input[{place}]"
    if kind is None and role is None:
        kind = "item_reference" if "id" in item and len(item) == 1 else None
        if kind is None:
            raise InvalidBody(f"{where}: has neither `role` nor `type`; send a message or another item", where)
        item["type"] = kind
    if kind in (None, "message"):
        if role == "tool":
            raise InvalidBody(f"{where}: send a tool result as an item of type function_call_output", f"{where}.role")
        if not isinstance(role, str) or role not in _ROLES:
            raise InvalidBody(f"{where}: role must be one of {', '.join(sorted(_ROLES))}", f"{where}.role")
        if not isinstance(item.get("content"), str | list):
            raise InvalidBody(f"{where}: content must be a string or a list of parts", f"{where}.content")
    elif not isinstance(kind, str) or kind == INSTRUCTIONS:
        raise InvalidBody(f"{where}: unknown type; see the Responses reference", f"{where}.type")
    elif kind == "item_reference" and not isinstance(item.get("id"), str):
        raise InvalidBody(f"{where}: a reference requires the id of an item", f"{where}.id")
    elif kind in ("function_call", "function_call_output") and not isinstance(item.get("call_id"), str):
        raise InvalidBody(f"{where}: call_id is missing; it links a call to its output", f"{where}.call_id")


def _sent(raw: msgspec.Raw) -> list[bytes]:
    """The items as the client sent them; empty if the input is a string."""
    return [] if bytes(raw)[:1] == b'"' else [bytes(each) for each in _raws(raw)]


def _reference(body: bytes) -> str | None:
    if not body.endswith(b'"type":"item_reference"}'):
        return None
    item: Json = _any(body)
    return item["id"] if item.get("type") == "item_reference" else None


def _is_instructions(body: bytes) -> bool:
    # The keys of canonical JSON are ordered, and the decoder rejected other items of this type.
    return body.endswith(b'"type":"instructions"}') and _any(body).get("type") == INSTRUCTIONS


def _tools(raw: msgspec.Raw | None) -> tuple[bytes | None, str, list[Json]]:
    """The canonical JSON of the tools, its hash, and the tools that the provider executes. Raises InvalidBody."""
    tools, digest = tools_of(raw)
    if tools is None:
        return None, "", []
    decoded: list[Json] = _objects(tools)
    for place, tool in enumerate(decoded):
        if not isinstance(tool.get("type"), str | None):
            raise InvalidBody(f"tools[{place}]: type must be a string, such as function", f"tools[{place}].type")
    if any(_SECRETS & tool.keys() for tool in decoded):
        # Credentials for a tool server are sent to the provider and never recorded.
        kept = [{name: value for name, value in tool.items() if name not in _SECRETS} for tool in decoded]
        tools, digest = tools_of(msgspec.Raw(canonical(kept)))
    return tools, digest, [tool for tool in decoded if tool.get("type") not in _OWN_TOOLS]


def _without_cache_markers(value: Any) -> Any:
    """Remove cache markers, which control the provider's cache and carry no content."""
    if isinstance(value, dict):
        entries = cast("Json", value)
        return {key: _without_cache_markers(each) for key, each in entries.items() if key not in _MARKERS}
    if isinstance(value, list):
        return [_without_cache_markers(each) for each in cast("list[Any]", value)]
    return value
