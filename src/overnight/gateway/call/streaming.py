"""A streamed call: the provider's answer is read to its end, also after the client has disconnected."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

from overnight.domain import OvernightError, micro_to_usd
from overnight.pricing.usage import Cost
from overnight.store import crash_point

from ..attempt import AttemptFailure
from ..call_context import CallContext
from ..error_responses import call_failure_response, error_body, error_response, internal_error_response
from .gateway_failures import unread
from .pipeline import CallPipeline
from .services import CallServices
from .stream_buffer import BroadcastBuffer
from .stream_reader import StreamReader, StreamSender

log = logging.getLogger("overnight.gateway")
KEEP_ALIVE, KEEP_ALIVE_S = b": keep-alive\n\n", 15.0
"""A comment of server-sent events, for proxies and clients that close a silent connection."""


class StreamedCall:
    """A call whose answer is streamed. `open` returns once the first events have arrived; a separate task reads the rest.

    Attributes:
        pipeline: the call.
        buffer: the chunks for the client.
    """

    def __init__(self, services: CallServices, context: CallContext) -> None:
        self._services, self._loop = services, services.loop
        self.pipeline = CallPipeline(services, context)
        self.buffer = BroadcastBuffer()
        self._client = context.client
        self._is_watching_silence = False
        self._watched_size = 0

    async def open(self) -> bool:
        """Start the call. Returns True if a stream follows in `buffer`, False if the call already has its result.

        Raises the errors of `CallPipeline.run`.
        """
        pipeline, opened = self.pipeline, False
        try:
            reader = await pipeline.attempt_until_answered(StreamSender(self._loop))
            if reader is None:
                return False
            await pipeline.confirm_target()
            opened = True
        finally:
            if not opened:
                pipeline.release()
        self.buffer.push(reader.visible)
        self._services.run_in_background(self._pump(reader))
        return True

    # ── silence ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def keep_alive_due_s(self) -> float:
        """The seconds until the client may need a keep-alive. None is sent while the call is queued, so that an error response
        keeps its status."""
        sent_at = self.pipeline.sent_at
        silent_s = self._loop.time() - sent_at if sent_at is not None else 0.0
        return max(0.0, KEEP_ALIVE_S - silent_s)

    def is_silent(self) -> bool:
        """Whether the client needs a keep-alive, since the attempt has been in flight for long."""
        return self.pipeline.sent_at is not None and self.keep_alive_due_s() == 0.0

    def keep_alive(self) -> None:
        """Send a comment now, and again after each long silence of the stream."""
        self.buffer.push([KEEP_ALIVE])
        if not self._is_watching_silence:
            self._watch_silence()

    def _watch_silence(self) -> None:
        self._is_watching_silence, self._watched_size = True, self.buffer.size
        self._loop.call_later(KEEP_ALIVE_S, self._break_silence)

    def _break_silence(self) -> None:
        if self.buffer.ended:
            return
        if self.buffer.size == self._watched_size:
            self.buffer.push([KEEP_ALIVE])
        self._watch_silence()

    # ── the remaining events ────────────────────────────────────────────────────────────────────────────────────────

    async def _pump(self, reader: StreamReader) -> None:
        pipeline, client = self.pipeline, self._client
        if not self._is_watching_silence:
            self._watch_silence()
        try:
            await self._finish(reader)
        except OvernightError as error:
            self.end_with_error(error_response(error, client).body)
        except asyncio.CancelledError:
            message = "the gateway is shutting down"
            self.end_with_error(error_body(client, 503, message, "server_error", "shutting_down"))
            raise
        except Exception:
            log.exception("internal error in a streamed call")
            self.end_with_error(internal_error_response(client).body)
            if pipeline.result is None:
                with suppress(OvernightError):  # the settlement is then deferred
                    await pipeline.settle_failure(AttemptFailure(unread(), received=reader.received()))
        finally:
            self.buffer.end()
            pipeline.release()
            await reader.close()

    def end_with_error(self, body: bytes, reported: dict[str, Any] | None = None) -> None:
        """Send an error event: the status was already sent. `reported` is the provider's own, in the client's format."""
        failed_event, buffer = self._client.failed_event, self.buffer
        event = failed_event(body, buffer.chunks, reported) if failed_event else self._client.error_event(body)
        buffer.push([event])

    async def _finish(self, reader: StreamReader) -> None:
        """Read the rest, settle the call, then send the last chunks."""
        pipeline = self.pipeline
        until = pipeline.deadlines.stream_deadline(pipeline.context.decision)
        end = reader.answer(await reader.read_to_the_end(until, self.buffer.push))
        crash_point("model_answered")
        if isinstance(end, AttemptFailure):
            await pipeline.settle_failure(end)
            target = pipeline.selection.target
            where = f"{target.provider} {target.model}"
            body = call_failure_response(end.failure, where, pipeline.attempts, b"", self._client).body
            wire = pipeline.selection.wire
            self.end_with_error(body, reader.reported if wire.client_format is wire.upstream_format else None)
            return
        await pipeline.settle_reply(end)
        self.buffer.push(reader.last_chunks(self._cost(), end))

    def _cost(self) -> Cost:
        account = self.pipeline.account
        cost = micro_to_usd(account.cost_microusd)
        if account.bound_microusd:
            return {"cost_usd": cost, "bound_usd": micro_to_usd(account.bound_microusd)}
        return cost
