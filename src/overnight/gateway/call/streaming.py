"""A streamed call: the pump reads the provider to its end whatever the client does, and holds back what tells too much."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import msgspec

from overnight.circuit_breakers import Note
from overnight.domain import OvernightError, micro_to_usd
from overnight.pricing.usage import Cost, estimated_usage
from overnight.providers import LibraryStream, UpstreamError, UpstreamStream
from overnight.providers.error_classes import (
    EMPTY,
    Failure,
    error_failure,
    exception_failure,
    is_error,
    response_failure,
    usage_in,
)
from overnight.providers.key_redaction import KeyGuard
from overnight.store import crash_point
from overnight.wire_formats import Reader
from overnight.wire_formats.sse import EventTooLarge, SseParser

from ..admission.reservation import (
    Received,
    Reply,
    event_of,
    spent_on_failure,
    spent_on_reply,
    unread,
)
from ..error_responses import (
    failed,
    fault,
    refusal,
    refused,
)
from .deadlines import LEAST_STORE_S
from .pipeline import UNKNOWN_SHAPE, Flight
from .stream_buffer import Feed

if TYPE_CHECKING:
    from overnight.domain.policies import RouteDecision
    from overnight.wire_formats.request import Request

    from ..gateway import Gateway
    from ..identity import Subject

log = logging.getLogger("overnight.gateway")
KEEP_ALIVE, KEEP_ALIVE_S = b": keep-alive\n\n", 15.0
"""A comment of server-sent events, for proxies and clients that give up on a silent connection."""
LARGEST_ERROR = 64 * 1024
Stream = UpstreamStream | LibraryStream
DRAIN_S = 2.0
_decode = msgspec.json.Decoder().decode


class StreamedFlight(Flight):
    """A call whose answer is streamed. `open` returns once the first piece is here; the pump does the rest."""

    _stream: Stream | None = None
    _parser: SseParser
    _reader: Reader
    _ready: list[bytes]
    _held: list[bytes]
    _holding = False
    _done = False
    _pushed = 0
    _silence_s = 0.0
    _no_later = 0.0
    _broken: Failure | None = None
    _opened = False
    _keeps_alive = False
    _begun = False
    _last_usage: dict[str, Any] | None = None

    def __init__(self, gateway: Gateway, subject: Subject, request: Request, decision: RouteDecision) -> None:
        super().__init__(gateway, subject, request, decision)
        self.feed = Feed()

    async def open(self) -> bool:
        """True when pieces flow (see `feed`); False when every target failed (see `failure`). Raises as `run`."""
        try:
            if not await self._until(self._ask_stream):
                return False
            self._opened = True
        finally:
            if not self._opened:
                self.landed()
        self.feed.push(self._ready)
        self.gateway.keep(self.loop.create_task(self._pump()))
        return True

    # ── silence ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def keep_alive_due(self) -> float:
        """In how many seconds the client may need a sign of life at the soonest. None is sent while the call is queued, so that
        a refusal keeps its status."""
        silent_s = self.loop.time() - self.sent_at if self.sent_at is not None else 0.0
        return max(0.0, KEEP_ALIVE_S - silent_s)

    def is_silent(self) -> bool:
        """Whether a try has been under way for so long that the client needs a sign of life."""
        return self.sent_at is not None and self.keep_alive_due() == 0.0

    def keep_alive(self) -> None:
        """Send a comment now, and then whenever the stream has been silent for long."""
        self.feed.push([KEEP_ALIVE])
        if not self._keeps_alive:
            self._watch_silence()

    def _watch_silence(self) -> None:
        self._keeps_alive, self._pushed = True, self.feed.size
        self.loop.call_later(KEEP_ALIVE_S, self._break_silence)

    def _break_silence(self) -> None:
        if self.feed.ended:
            return
        if self.feed.size == self._pushed:
            self.feed.push([KEEP_ALIVE])
        self._watch_silence()

    # ── before the first piece ──────────────────────────────────────────────────────────────────────────────────────

    async def _ask_stream(self) -> bool | Failure:
        self._ready, self._held, self._holding, self._done = [], [], False, False
        self._begun, self._last_usage = False, None
        sent, no_later = self._prepare()
        self._no_later, now = no_later, self.loop.time()
        limits, self._silence_s = (
            self.decision.time_limits,
            self.decision.time_limits.silence(self.decision.deadline_ms),
        )
        deadline = min(no_later, now + limits.first_byte_ms / 1000)
        self._parser, self._reader = SseParser(), self.wire.reader(self.request, self.asked)
        self._guard = KeyGuard(self.target.secret)
        stream = self._stream = None
        asked_at = time.perf_counter()
        try:
            stream = await self.target.pool.stream("POST", sent.path, self._headers(sent), sent.body, deadline)
            failure = await self._first_pieces(stream)
        except UpstreamError as error:
            failure = exception_failure(error)
        except EventTooLarge as error:
            failure = _malformed(str(error))
        finally:
            self._upstream_s += time.perf_counter() - asked_at
        if failure is not None:
            if stream is not None:
                stream.close()
            return failure
        self._stream = stream
        if self.way.call is not None and (mark := self.mark()) is not None:
            # The target answers; its circuit need not stay open until this stream has come to its end.
            note = Note(self.subject.job_id, mark, event_of(self, "model_called"))
            await self.gateway.settlements.note(note, self.loop.time() + LEAST_STORE_S)
            self.gateway.circuits.written()
        return True

    async def _first_pieces(self, stream: Stream) -> Failure | None:
        if stream.status in EMPTY or not 200 <= stream.status < 300:
            self.failure_body = self.target.without_key(await _bounded(stream))
            return response_failure(stream.status, stream.headers, self.failure_body)
        content_type = stream.headers.get(b"content-type", b"")
        if b"json" in content_type or b"html" in content_type:
            return await self._unstreamed(stream)
        self._extend(stream)
        async for chunk in stream:
            payloads = self._parser.feed(chunk)
            if payloads:
                return self._take(payloads)
            self._extend(stream)  # comments and blanks are signs of life
        payloads = self._parser.flush()
        return self._take(payloads) if payloads else _cut("the stream ended before its first piece")

    async def _unstreamed(self, stream: Stream) -> Failure | None:
        """The provider answered whole although a stream was asked for: take its answer apart."""
        stream.extend(self._no_later)
        body = self.target.cleaned(b"".join([chunk async for chunk in stream]))
        reply = self.reply_of(body, None)
        if reply is None:
            self.failure_body = self.target.without_key(body[:LARGEST_ERROR])
            return response_failure(stream.status, stream.headers, self.failure_body)
        pieces = b"".join(self.wire.spoken.taken_apart(body, 0.0))
        return self._take(SseParser(max_event_bytes=len(pieces) + 65536).feed(pieces))

    # ── pieces ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _take(self, payloads: list[bytes]) -> Failure | None:
        """Sort payloads into what may pass and what is held."""
        last = self.wire.spoken.last
        for payload in payloads:
            if payload == b"[DONE]":
                self._done = True
                return None
            payload = self.target.cleaned(payload)  # noqa: PLW2901
            try:
                piece: Any = _decode(payload)
                if is_error(piece):
                    self._last_usage = usage_in(piece)
                    return error_failure(_decode(self.target.without_key(payload)))
                shown, telling = self._reader.take(piece, payload)
                self._begun = True
                shown = self._guard.take(piece, shown)
                is_last = bool(last) and cast("dict[str, Any]", piece).get("type") in last
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return _malformed("a piece of the stream is not JSON")
            except UNKNOWN_SHAPE:
                return _malformed("a piece of the stream has an unknown shape")
            self._holding = self._holding or telling
            if shown:
                (self._held if self._holding else self._ready).extend(shown)
            if is_last:
                self._done = True
                return None
        return None

    async def _pump(self) -> None:
        if not self._keeps_alive:
            self._watch_silence()
        try:
            await self._finish(await self._read_to_the_end())
        except OvernightError as error:
            self._end_with_error(refusal(error, self.wire.client).body)
        except asyncio.CancelledError:
            message = "the gateway is shutting down"
            self._end_with_error(refused(self.wire.client, 503, message, "server_error", "shutting_down"))
            raise
        except Exception:
            log.exception("a streamed call failed by a fault of the gateway")
            self._end_with_error(fault(self.wire.client).body)
            if self.ended is None:
                with suppress(OvernightError):  # then it is written later
                    await self.settle(spent_on_failure(self, unread()))
        finally:
            self.feed.end()
            self.landed()
            await self._let_go()

    def _end_with_error(self, body: bytes) -> None:
        self.feed.push([self.wire.client.error_event(body)])

    async def _read_to_the_end(self) -> Failure | None:
        """Read on, passing pieces to the client. The failure that ended it, if one did."""
        stream = self._stream
        if stream is None or self._done:
            return None
        # The total bounds the stream from where its call began, without its time in queues.
        self._no_later = (
            self.deadline - self.total_s + self.decision.time_limits.stream_total(self.decision.deadline_ms)
        )
        try:
            self._extend(stream)
            if not await stream.follow(self._pass_on):
                self._pass_on(None)
        except UpstreamError as error:
            return exception_failure(error)
        except EventTooLarge as error:
            return _malformed(str(error))
        return self._broken

    def _pass_on(self, chunk: bytes | None) -> bool:
        """The next bytes, or None at their end. Is there no need to read on?"""
        self._ready = []
        self._broken = self._take(self._parser.flush() if chunk is None else self._parser.feed(chunk))
        self.feed.push(self._ready)
        if self._broken is not None or self._done:
            return True
        if self._stream is not None:
            self._extend(self._stream)
        return False

    def _extend(self, stream: Stream) -> None:
        """The stream gave a sign of life: it may be silent again for so long."""
        stream.extend(min(self.loop.time() + self._silence_s, self._no_later))

    async def _finish(self, failure: Failure | None) -> None:
        """Make the end durable, then let the client have it."""
        crash_point("model_answered")
        reply = (
            self._whole()
            if self._reader.assembly.whole
            else failure or _cut("the stream ended without a finish reason")
        )
        if isinstance(reply, Failure):
            self.failure = reply
            await self.settle(spent_on_failure(self, reply))
            where = f"{self.target.provider} {self.target.model}"
            self._end_with_error(failed(reply, where, self.tries, b"", self.wire.client).body)
            return
        self.reply = reply
        await self.settle(spent_on_reply(self, reply))
        self.feed.push(
            [
                *self._held,
                *self._guard.rest(),
                *self._guard.cleaned(self._reader.end(self._told_cost(), reply.usage)),
            ]
        )

    def _told_cost(self) -> Cost:
        cost = micro_to_usd(self.cost)
        return {"cost_usd": cost, "bound_usd": micro_to_usd(self.bound)} if self.bound else cost

    def received(self) -> Received:
        assembly = self._reader.assembly
        return Received(self._begun, assembly.characters, self._last_usage or assembly.usage)

    def _whole(self) -> Reply | Failure:
        """The answer that the stream amounts to."""
        reader = self._reader
        try:
            usage = reader.usage() or estimated_usage(self.request.prompt_bytes, reader.assembly.characters)
            return Reply(self.target.cleaned(reader.recorded()), usage)
        except (*UNKNOWN_SHAPE, RecursionError, msgspec.DecodeError):
            return _malformed("the pieces of the stream do not make an answer")

    async def _let_go(self) -> None:
        """Read the last bytes, so that the connection can serve the next call."""
        stream = self._stream
        if stream is None:
            return
        with suppress(UpstreamError):
            stream.extend(self.loop.time() + DRAIN_S)
            async for _ in stream:
                pass
        stream.close()


def _cut(message: str) -> Failure:
    return Failure("cut", "stream_cut", message, retryable=True, fallback=True, status=200)


def _malformed(message: str) -> Failure:
    return Failure("malformed", "malformed_stream", message, retryable=True, fallback=True, status=200)


async def _bounded(stream: Stream) -> bytes:
    body = b""
    async for chunk in stream:
        body += chunk
        if len(body) > LARGEST_ERROR:
            break
    return body
