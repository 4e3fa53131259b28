"""Markers for the provider's own prompt cache, added to a request where the client placed none.

They are added to the final body for a target, so that recorded, compared and hashed requests never contain one.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, cast

import msgspec

from overnight.domain import Attribution
from overnight.wire_formats import Prepared
from overnight.wire_formats.dialects import Dialect

from ..identity import Subject

Json = dict[str, Any]
BYTES_PER_TOKEN = 4
DEFAULT_MIN_TOKENS = 1024
"""Minimum tokens of a prefix with a marker. Providers ignore the marker of a shorter one."""

_MIN_TOKENS = (
    (re.compile(r"opus-4[-.][5-9]|haiku-4"), 4096),
    (re.compile(r"sonnet-4[-.][6-9]|haiku"), 2048),
)
_EPHEMERAL = {"type": "ephemeral"}
_UNMARKABLE = frozenset({"thinking", "redacted_thinking"})
_KEYED = frozenset({"chat", "responses"})
_ANSWERED = b'"assistant"'

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def with_prompt_markers(
    sent: Prepared, upstream_format: str, model: str, dialect: Dialect, subject: Subject
) -> tuple[Prepared, int]:
    """Add the prompt-cache markers of the target's format to a request. Returns the request and the number of markers."""
    body, count = sent.body, 0
    if upstream_format == "messages":
        body, count = with_markers(body, model)
    elif dialect.cache_key and upstream_format in _KEYED and not subject.unattributed:
        body, count = with_cache_key(body, subject.who, subject.job_id)
    return (msgspec.structs.replace(sent, body=body), count) if count else (sent, 0)


def least_bytes(model: str) -> int:
    """The minimum length in bytes of a prefix with a marker at this model, by the usual length of a token."""
    tokens = next((least for pattern, least in _MIN_TOKENS if pattern.search(model)), DEFAULT_MIN_TOKENS)
    return tokens * BYTES_PER_TOKEN


def with_markers(body: bytes, model: str) -> tuple[bytes, int]:
    """Add up to three markers to a body of Anthropic messages: on the last tool, the system prompt, and the last turn of a
    conversation. Returns the body and the number of markers. A short body, or one with markers, stays unchanged."""
    least = least_bytes(model)
    if len(body) < least or b"cache_control" in body:
        return body, 0
    try:
        return _with_markers(body, least)
    except (msgspec.DecodeError, RecursionError, OverflowError):
        return body, 0  # an unreadable body is passed on unchanged


def _with_markers(body: bytes, least: int) -> tuple[bytes, int]:
    fields = _fields(body)
    length = placed = 0
    for name, mark in (("tools", _last_tool), ("system", _system), ("messages", _last_turn)):
        part = fields.get(name)
        if part is None:
            continue
        # The prefix that a marker covers begins with the tools.
        length += len(bytes(part))
        if length < least or (name == "messages" and not _will_repeat(fields)):
            continue
        marked = mark(bytes(part))
        if marked is not None:
            fields[name] = msgspec.Raw(marked)
            placed += 1
    return (_encode(fields), placed) if placed else (body, 0)


def _will_repeat(fields: dict[str, msgspec.Raw]) -> bool:
    """Whether the same turns are likely to be sent again. A single question is not worth a marker."""
    return _ANSWERED in bytes(fields["messages"]) or len(bytes(fields.get("tools", b""))) > len(b"[]")


def _last_tool(tools: bytes) -> bytes | None:
    kept = _items(tools)
    for at in range(len(kept) - 1, -1, -1):
        tool: Any = _any(kept[at])
        # A deferred tool is not part of the prefix.
        if isinstance(tool, dict) and not cast("Json", tool).get("defer_loading"):
            kept[at] = _marked(cast("Json", tool))
            return _encode(kept)
    return None


def _system(system: bytes) -> bytes | None:
    blocks = _last_block(_any(system))
    return None if blocks is None else _encode(blocks)


def _last_turn(messages: bytes) -> bytes | None:
    turns = _items(messages)
    for at in range(len(turns) - 1, -1, -1):
        turn: Any = _any(turns[at])
        if not isinstance(turn, dict) or cast("Json", turn).get("role") != "user":
            continue  # the prefilled beginning of an answer
        blocks = _last_block(cast("Json", turn).get("content"))
        if blocks is None:
            return None
        turns[at] = msgspec.Raw(_encode({**cast("Json", turn), "content": blocks}))
        return _encode(turns)
    return None


def _last_block(content: Any) -> list[Any] | None:
    """The content as blocks, with a marker on the last block that can have one; None if none can."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    blocks = list(cast("list[Any]", content)) if isinstance(content, list) else []
    for at in range(len(blocks) - 1, -1, -1):
        block = cast("Json", blocks[at]) if isinstance(blocks[at], dict) else {"type": "thinking"}
        empty = block.get("type") == "text" and not str(block.get("text", "")).strip()
        if block.get("type") not in _UNMARKABLE and not empty:
            blocks[at] = {**block, "cache_control": _EPHEMERAL}
            return blocks
    return None


def _marked(block: Json) -> msgspec.Raw:
    return msgspec.Raw(_encode({**block, "cache_control": _EPHEMERAL}))


def with_cache_key(body: bytes, who: Attribution, job_id: str) -> tuple[bytes, int]:
    """Add a `prompt_cache_key` for the session or job to a body for OpenAI, unless it has one. The key is a hash, so that the
    provider receives neither the tenant nor its names. Returns the body and the number of added keys."""
    if b'"prompt_cache_key"' in body:
        return body, 0
    kept_by = f"{who.tenant_id}\0{who.session_id or job_id}"
    key = hashlib.blake2b(kept_by.encode(), digest_size=16).hexdigest().encode()
    return b'%b,"prompt_cache_key":"%b"}' % (body[:-1], key), 1
