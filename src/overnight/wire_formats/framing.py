"""How the bytes of an answer are framed, whatever their label says: as events, as one JSON value, or as one per line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import msgspec

from overnight.domain.json_text import BYTE_ORDER_MARK, decode_json

from .contract import Codec, Json, NoAnswer
from .sse import ErrorPayload, SseParser

Framing = Literal["events", "whole", "unknown"]
_FIELDS = (b"data", b"event", b":", b"id", b"retry")
_WHOLE = (b"{", b"[", b"<")
_END_MARK = b"data: [DONE]"


def framing_of(begin: bytes, *, labelled_events: bool) -> Framing:
    """The framing, by the first bytes of a body; `unknown` if there are too few. `labelled_events`: whether the content type
    is that of events, which decides about text that is neither."""
    seen = begin.removeprefix(BYTE_ORDER_MARK).lstrip()
    if not seen or (len(begin) < len(BYTE_ORDER_MARK) and BYTE_ORDER_MARK.startswith(begin)):
        return "unknown"
    if seen.startswith(_WHOLE):
        return "whole"
    if seen.startswith(_FIELDS) or labelled_events:
        return "events"
    return "unknown" if any(field.startswith(seen) for field in _FIELDS) else "whole"


def joined_answer(body: bytes, form: Codec, check: Callable[[Json], None]) -> bytes | None:
    """The complete answer in a body of events, or of JSON objects on lines; None if it is neither, or has no end.

    Args:
        form: the target's format.
        check: called with each event; it raises where the event is an error.

    Raises:
        NoAnswer: the provider broke off the answer.
        DecodeError, RecursionError, TypeError, ValueError, KeyError, AttributeError: it cannot be read.
    """
    events = list(_events(body, form.final_event_types))
    if not events:
        return None
    assembly = form.assembly()
    repair = form.repair() if form.repair is not None else None
    is_ended = False
    for event in events:
        if event is None:
            is_ended = True
            break
        check(event)
        repaired = None if repair is None else repair.take(event)
        for each in [event] if repaired is None else repaired:
            assembly.take(each)
    if not assembly.is_complete and (is_ended or assembly.is_ended):
        for event in assembly.closing_events():
            assembly.take(event)
    return assembly.completion() if assembly.is_complete else None


def without_end_mark(body: bytes) -> bytes:
    """A whole body without the end mark of a stream, which some servers append."""
    end = body.rstrip()
    return end.removesuffix(_END_MARK) if end.endswith(_END_MARK) and end[:1] in _WHOLE else body


def _events(body: bytes, final_event_types: frozenset[str]) -> Iterator[Json | None]:
    """The events of a body; None for an end mark."""
    if framing_of(body, labelled_events=False) == "events":
        parser = SseParser(max_event_bytes=len(body) + 1024)
        payloads = [*parser.feed(body), *parser.flush()]
        if named := next((each for each in payloads if isinstance(each, ErrorPayload)), None):
            raise NoAnswer(named.error())
    else:
        payloads = [line for line in body.removeprefix(BYTE_ORDER_MARK).splitlines() if line.strip()]
        if len(payloads) < 2 or not all(line.lstrip()[:1] == b"{" for line in payloads):
            return
    for payload in payloads:
        if payload.strip() == b"[DONE]":
            yield None
            return
        event: Any = decode_json(payload)
        if not isinstance(event, dict):
            raise msgspec.DecodeError("an event is no object")
        yield cast("Json", event)
        if cast("Json", event).get("type") in final_event_types:
            return
