"""One streamed attempt: its chunks, separated into those visible at once and those withheld until the settlement."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from overnight.domain.json_text import decode_json
from overnight.pricing.usage import Cost, estimated_usage
from overnight.providers import LibraryStream, UpstreamError, UpstreamStream, UpstreamTimeout
from overnight.providers.error_classes import (
    EMPTY,
    Failure,
    error_failure,
    exception_failure,
    response_failure,
)
from overnight.providers.key_redaction import KeyGuard
from overnight.providers.reported_errors import is_error, usage_in
from overnight.wire_formats import Json, NoAnswer
from overnight.wire_formats.framing import framing_of
from overnight.wire_formats.sse import ErrorPayload, EventTooLarge, SseParser

from ..attempt import Attempt, AttemptFailure, Dispatch, PartialAnswer, Reply
from ..call_context import CallContext
from .answer_context import asked_by
from .answer_reading import UNKNOWN_SHAPE, read_answer, upstream_body
from .gateway_failures import cut, malformed, total_passed
from .whole_answer import ProviderTime

MAX_ERROR_BYTES = 64 * 1024
DRAIN_S = 2.0
"""The maximum time for the last bytes of a stream, after its answer is complete."""

Stream = UpstreamStream | LibraryStream
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class StreamReader:
    """Reads one streamed attempt.

    Withholds tool calls and the finish reason until the settlement is durable.

    Attributes:
        visible: new chunks for the client.
        withheld: chunks for the client after the settlement.
        is_done: whether the answer is complete.
        broken: the failure that ended the stream; None without one.
        reported: the provider's error event; None without one.
    """

    def __init__(
        self, context: CallContext, attempt: Attempt, dispatch: Dispatch, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._context, self._attempt, self._loop = context, attempt, loop
        self._target, self._upstream_format = attempt.target, attempt.wire.upstream_format
        self._silence_s = context.decision.time_limits.silence(context.decision.deadline_ms)
        self._deadline, self._stream_deadline = dispatch.deadline, dispatch.stream_deadline
        self._parser = SseParser()
        self._reader = attempt.wire.reader(context.request, asked_by(context, attempt))
        self._guard = KeyGuard(attempt.target.secret)
        self._stream: Stream | None = None
        self._last_usage: dict[str, Any] | None = None
        self._is_withholding = self._begun = self._is_over = False
        self.visible: list[bytes] = []
        self.withheld: list[bytes] = []
        self.is_done = False
        self.broken: Failure | None = None
        self.reported: dict[str, Any] | None = None

    # ── the first events ────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self, dispatch: Dispatch) -> AttemptFailure | None:
        """Send the request and read the first events. Returns the failure, if any; the stream is then closed."""
        limits = self._context.decision.time_limits
        deadline = min(self._deadline, self._loop.time() + limits.first_byte_ms / 1000)
        sent, stream = dispatch.prepared, None
        try:
            stream = await self._target.pool.stream("POST", sent.path, dispatch.headers, sent.body, deadline)
            self._attempt.provider_headers = stream.headers
            failed = await self._read_first(stream)
        except UpstreamError as error:
            failed = self._failed(exception_failure(error))
        except EventTooLarge as error:
            failed = self._failed(malformed(str(error)))
        if failed is None:
            self._stream = stream
        elif stream is not None:
            stream.close()
        return failed

    async def _read_first(self, stream: Stream) -> AttemptFailure | None:
        """Read until the answer has output, or has ended. A failure before the first output is one of the attempt: the client
        has seen nothing of it, whatever the provider sent by then."""
        if stream.status in EMPTY or not 200 <= stream.status < 300:
            body = self._target.without_key(await _read_error(stream))
            return self._failed(response_failure(stream.status, stream.headers, body), body)
        self._extend(stream)
        begin: bytes | None = b""
        is_labelled = b"event-stream" in stream.headers.get(b"content-type", b"")
        async for chunk in stream:
            if begin is not None:
                begin += chunk
                framing = framing_of(begin, labelled_events=is_labelled)
                if framing == "whole":
                    return await self._read_whole(stream, begin)
                if framing == "unknown":
                    self._extend(stream)
                    continue
                chunk, begin = begin, None  # noqa: PLW2901
            if payloads := self._parser.feed(chunk):
                self._deadline = self._stream_deadline
                self.broken = self._take(payloads)
                if self.broken is not None or self.is_done or self._reader.assembly.has_output:
                    return self._opened()
            self._extend(stream)  # comments and blank lines also reset the silence limit
        if begin is not None and not is_labelled:
            return await self._read_whole(stream, begin)  # an empty body, which is no stream that broke off
        self.broken = self._take(self._parser.flush())
        self._is_over = True
        return self._opened()

    def _opened(self) -> AttemptFailure | None:
        """The failure of a stream that failed, or ended, before its first output."""
        if self._reader.assembly.has_output or not (self.broken is not None or self.is_done or self._is_over):
            return None
        if self.broken is not None:
            return self._failed(self.broken)
        end = self.answer(None)
        return end if isinstance(end, AttemptFailure) else None

    async def _read_whole(self, stream: Stream, begin: bytes) -> AttemptFailure | None:
        """Convert a complete answer into stream events: the provider ignored the request for a stream."""
        self._deadline = self._stream_deadline
        stream.extend(self._deadline)
        body = self._target.cleaned(begin + b"".join([chunk async for chunk in stream]))
        reply = read_answer(self._context, self._attempt, stream.status, stream.headers, body)
        if isinstance(reply, AttemptFailure):
            return reply
        whole = upstream_body(self._attempt, body)
        body = whole if isinstance(whole, bytes) else body
        cost = None if reply.usage.estimated else 0.0  # no usage was reported
        try:
            events = b"".join(self._upstream_format.stream_events(body, cost))
        except UNKNOWN_SHAPE:
            return self._failed(malformed("the answer to a request for a stream has an unknown shape"))
        failure = self._take(SseParser(max_event_bytes=len(events) + 65536).feed(events))
        return None if failure is None else self._failed(failure)

    def _failed(self, failure: Failure, body: bytes = b"") -> AttemptFailure:
        return AttemptFailure(failure, body, self.received())

    # ── the remaining events ────────────────────────────────────────────────────────────────────────────────────────

    async def read_to_the_end(self, deadline: float, push: Callable[[list[bytes]], None]) -> Failure | None:
        """Read the remaining events and `push` visible chunks. Returns the failure that ended the stream, if any.

        `deadline` is a time of the loop.
        """
        stream = self._stream
        if stream is None or self.is_done or self._is_over or self.broken is not None:
            return self.broken
        self._deadline = deadline

        def take(chunk: bytes | None) -> bool:
            """Handle the next bytes, or None at their end. Returns whether reading can stop."""
            self.visible = []
            self.broken = self._take(self._parser.flush() if chunk is None else self._parser.feed(chunk))
            push(self.visible)
            if self.broken is not None or self.is_done:
                return True
            self._extend(stream)
            return False

        try:
            self._extend(stream)
            if not await stream.follow(take):
                take(None)
        except UpstreamError as error:
            if isinstance(error, UpstreamTimeout) and self._loop.time() >= deadline:
                decision = self._context.decision
                return total_passed(round(decision.time_limits.stream_total(decision.deadline_ms) * 1000))
            return exception_failure(error)
        except EventTooLarge as error:
            return malformed(str(error))
        return self.broken

    def _take(self, payloads: list[bytes]) -> Failure | None:
        """Separate the chunks of events into visible and withheld ones."""
        last = self._upstream_format.final_event_types
        if self._attempt.first_byte_ms is None and payloads:
            self._attempt.first_byte_ms = self._attempt.latency_ms()
        for payload in payloads:
            if payload == b"[DONE]":
                self.is_done = True
                return None
            if isinstance(payload, ErrorPayload):
                error = ErrorPayload(self._target.without_key(payload)).error()
                self._last_usage, self.reported = usage_in(error), error
                return error_failure(error)
            payload = self._target.cleaned(payload)  # noqa: PLW2901
            try:
                event = self._decoded(payload)
                if is_error(event):
                    self._last_usage = usage_in(event)
                    self.reported = decode_json(self._target.without_key(payload))
                    return error_failure(self.reported)
                chunks, is_terminal = self._reader.take(event, payload)
                self._begun = True
                chunks = self._guard.take(event, chunks)
                is_last = bool(last) and event.get("type") in last
            except NoAnswer as error:
                return error_failure(error.error)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return malformed("an event of the stream is not JSON")
            except UNKNOWN_SHAPE:
                return malformed("an event of the stream has an unknown shape")
            self._is_withholding = self._is_withholding or is_terminal
            if chunks:
                (self.withheld if self._is_withholding else self.visible).extend(chunks)
            if is_last:
                self.is_done = True
                return None
        return None

    def _decoded(self, payload: bytes) -> Json:
        """The event. Raises DecodeError, RecursionError."""
        try:
            return _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            event = decode_json(payload)
            self._reader.assembly.is_odd = True
            return event

    def _extend(self, stream: Stream) -> None:
        """Restart the silence limit after a sign of life."""
        stream.extend(min(self._loop.time() + self._silence_s, self._deadline))

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def answer(self, failure: Failure | None) -> Reply | AttemptFailure:
        """The result of a stream that has ended, with or without `failure`."""
        reader = self._reader
        if failure is None and not reader.assembly.is_complete and (self.is_done or reader.assembly.is_ended):
            # The provider told the end of the stream, and not that of the answer.
            failure = self._take([_encode(event) for event in reader.assembly.closing_events()])
        if not reader.assembly.is_complete:
            return self._failed(failure or cut("the stream ended without a finish reason"))
        try:
            prompt_bytes = self._context.request.prompt_bytes
            usage = reader.usage() or estimated_usage(prompt_bytes, reader.assembly.characters)
            return Reply(self._target.cleaned(reader.recorded()), usage)
        except (*UNKNOWN_SHAPE, RecursionError, msgspec.DecodeError):
            return self._failed(malformed("the events of the stream do not form an answer"))

    def last_chunks(self, cost: Cost, reply: Reply) -> list[bytes]:
        """The last chunks, sent once the settlement is durable: the withheld chunks, then the end of the stream."""
        end = self._guard.cleaned(self._reader.end(cost, reply.usage))
        return [*self.withheld, *self._guard.rest(), *end]

    def received(self) -> PartialAnswer:
        """The part of the answer received so far."""
        assembly = self._reader.assembly
        return PartialAnswer(self._begun, assembly.characters, self._last_usage or assembly.usage)

    async def close(self) -> None:
        """Read the last bytes, so that the connection can be reused."""
        stream = self._stream
        if stream is None:
            return
        try:
            stream.extend(self._loop.time() + DRAIN_S)
            async for _ in stream:
                pass
        except UpstreamError:
            pass
        stream.close()


class StreamSender:
    """Sends the requests of one streamed call. `reader` is the reader of the present attempt; None before the first one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.reader: StreamReader | None = None

    async def send(
        self,
        context: CallContext,
        attempt: Attempt,
        dispatch: Dispatch,
        provider_time: ProviderTime,
        check: Callable[[], None] | None,  # noqa: ARG002 - job code does not stream
    ) -> StreamReader | AttemptFailure:
        """See `Sender.send`. Returns the reader once its first events have arrived."""
        self.reader = reader = StreamReader(context, attempt, dispatch, self._loop)
        with provider_time:
            return await reader.open(dispatch) or reader

    def received(self) -> PartialAnswer:
        """See `Sender.received`."""
        return PartialAnswer() if self.reader is None else self.reader.received()


async def _read_error(stream: Stream) -> bytes:
    body = b""
    async for chunk in stream:
        body += chunk
        if len(body) > MAX_ERROR_BYTES:
            break
    return body
