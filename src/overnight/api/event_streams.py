"""Live events of jobs.

One task polls the jobs and keys of all open streams, so that an idle stream has no cost. A stream ends with its job, its
client or its key.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from overnight.domain import FINISHED, OvernightError, Recorded
from overnight.gateway import Overloaded, RateLimited
from overnight.http_server import Receive
from overnight.ledger import JobRow, Ledger

from .requests import Request

log = logging.getLogger("overnight.api")
MAX_PER_KEY, MAX_TOTAL = 256, 2048
TICK_S, MAX_TICK_S = 0.1, 1.0
"""A job is polled every tenth of a second while it has new events, and less often while it has none."""
KEY_CHECK_S = 0.5
HEARTBEAT_S = 30.0
"""The interval of comments on an idle stream, which detect lost connections."""
PAGE = 500


class EventStream:
    """The server-sent events of one job, for one client. `aclose` it, whether or not it was iterated."""

    def __init__(
        self,
        owner: EventStreams,
        job: JobRow,
        after: int,
        holder: str,
        check: Callable[[], Awaitable[object]],
        encode: Callable[[Recorded], bytes],
    ) -> None:
        self.encode = encode
        self.job_id, self.after, self.holder, self.check = job.job_id, after, holder, check
        self.news = asyncio.Event()
        self.end_reason: str | None = None
        self.is_finished, self.beats = job.state in FINISHED, False
        self.moved_at = self.due_at = self.sent_at = owner.now()
        self._owner = owner

    def end(self, why: str) -> None:
        if self.end_reason is None:
            self.end_reason = why
        self.news.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.end_reason is None:
            self.news.clear()
            was_finished, self.beats = self.is_finished, False
            events = await self._owner.ledger.events(self.job_id, self.after, PAGE)
            for event in events:
                self.after = event.seq
                yield self.encode(event)
                if self.end_reason is not None:
                    break
            self.sent_at = self._owner.now()
            if events:
                continue
            if was_finished:
                return
            await self.news.wait()
            if self.beats:
                yield b": \n\n"
        if self.end_reason:
            yield b": stream closed: %b\n\n" % self.end_reason.replace("\n", " ").encode()

    async def aclose(self) -> None:
        self.end("")
        self._owner.closed(self)


class EventStreams:
    """All live streams of a gateway."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._open: dict[EventStream, asyncio.Task[None]] = {}
        self._by_holder: dict[str, int] = {}
        self._watcher: asyncio.Task[None] | None = None

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def open(self, request: Request, job: JobRow, after: int, encode: Callable[[Recorded], bytes]) -> EventStream:
        """Open a stream. `encode` turns a recorded event into a server-sent event. Raises RateLimited or Overloaded at the
        maximum of streams per key or in total."""
        holder = request.key.key_id if request.key else ""
        if self._by_holder.get(holder, 0) >= MAX_PER_KEY:
            raise RateLimited(f"maximum of {MAX_PER_KEY} live event streams per key reached; close one", 1)
        if len(self._open) >= MAX_TOTAL:
            raise Overloaded(f"maximum of {MAX_TOTAL} live event streams reached; try again later")
        stream = EventStream(self, job, after, holder, request.authenticate, encode)
        self._by_holder[holder] = self._by_holder.get(holder, 0) + 1
        loop = asyncio.get_running_loop()
        self._open[stream] = loop.create_task(_until_left(request.receive, stream))
        if self._watcher is None:
            self._watcher = loop.create_task(self._watch())
        return stream

    def closed(self, stream: EventStream) -> None:
        listener = self._open.pop(stream, None)
        if listener is None:
            return
        listener.cancel()
        self._by_holder[stream.holder] -= 1
        if not self._by_holder[stream.holder]:
            del self._by_holder[stream.holder]
        if not self._open and self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    async def _watch(self) -> None:
        checked_at = self.now()
        while True:
            await asyncio.sleep(TICK_S)
            try:
                if self.now() - checked_at >= KEY_CHECK_S:
                    checked_at = self.now()
                    await self._check_keys()
                await self._poll_jobs()
            except OvernightError as error:
                log.warning("live event streams are delayed: %s", type(error).__name__)
            except Exception:
                log.exception("live event streams could not be polled")

    async def _check_keys(self) -> None:
        """End the streams of keys that are no longer valid, or that cannot be checked."""
        for stream in tuple(self._open):
            try:
                await stream.check()
            except OvernightError as error:
                stream.end(str(error))

    async def _poll_jobs(self) -> None:
        now = self.now()
        due = [stream for stream in self._open if stream.due_at <= now and not stream.news.is_set()]
        if not due:
            return
        heads = await self.ledger.heads({stream.job_id for stream in due})
        for stream in due:
            last, state = heads.get(stream.job_id, (0, "gone"))
            stream.is_finished = state in FINISHED or state == "gone"
            if last > stream.after or stream.is_finished:
                stream.moved_at = now
                stream.news.set()
            elif now - stream.sent_at > HEARTBEAT_S:
                stream.beats = True
                stream.news.set()
            stream.due_at = now + min(max(TICK_S, (now - stream.moved_at) / 10), MAX_TICK_S)


async def _until_left(receive: Receive, stream: EventStream) -> None:
    with suppress(asyncio.CancelledError):
        while (await receive())["type"] != "http.disconnect":
            pass
        stream.end("")
