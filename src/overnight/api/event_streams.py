"""Live events of jobs.

One task watches the jobs and the keys of all open streams, so that an idle stream costs nothing of its own. A stream ends
with its job, its client and its key.
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
MAX_PER_KEY, MAX_IN_ALL = 256, 2048
TICK_S, SLOWEST_TICK_S = 0.1, 1.0
"""A job is looked at every tenth of a second while it moves, and less often the longer it rests."""
KEY_CHECK_S = 0.5
HEARTBEAT_S = 30.0
"""A comment goes to a client that hears nothing: one that is gone without a word is found out by it."""
PAGE = 500


class EventStream:
    """The server-sent events of one job, for one client. `aclose` it, whether or not it was iterated."""

    def __init__(
        self, owner: EventStreams, job: JobRow, after: int, holder: str, check: Callable[[], Awaitable[object]]
    ) -> None:
        self.job_id, self.after, self.holder, self.check = job.job_id, after, holder, check
        self.news = asyncio.Event()
        self.end_reason: str | None = None
        self.is_finished, self.beats = job.state in FINISHED, False
        self.moved_at = self.due_at = self.told_at = owner.now()
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
                yield self._owner.encode(event)
                if self.end_reason is not None:
                    break
            self.told_at = self._owner.now()
            if events:
                continue
            if was_finished:
                return
            await self.news.wait()
            if self.beats:
                yield b": \n\n"
        if self.end_reason:
            yield b": the stream ends here: %b\n\n" % self.end_reason.replace("\n", " ").encode()

    async def aclose(self) -> None:
        self.end("")
        self._owner.closed(self)


class EventStreams:
    """All live streams of a gateway. `encode` makes a server-sent event of a recorded one."""

    def __init__(self, ledger: Ledger, encode: Callable[[Recorded], bytes]) -> None:
        self.ledger, self.encode = ledger, encode
        self._open: dict[EventStream, asyncio.Task[None]] = {}
        self._by_holder: dict[str, int] = {}
        self._watcher: asyncio.Task[None] | None = None

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def open(self, request: Request, job: JobRow, after: int) -> EventStream:
        """Raises RateLimited where the key has too many, Overloaded where the gateway has."""
        holder = request.key.key_id if request.key else ""
        if self._by_holder.get(holder, 0) >= MAX_PER_KEY:
            raise RateLimited(f"{MAX_PER_KEY} live event streams are open for this key, the most; close one", 1)
        if len(self._open) >= MAX_IN_ALL:
            raise Overloaded(f"{MAX_IN_ALL} live event streams are open, the most; try again")
        stream = EventStream(self, job, after, holder, request.authenticate)
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
                await self._look_at_jobs()
            except OvernightError as error:
                log.warning("live event streams wait: %s", type(error).__name__)
            except Exception:
                log.exception("live event streams could not be watched")

    async def _check_keys(self) -> None:
        """A key that is unknown, expired or revoked by now, or that nobody can look up, ends its streams."""
        for stream in tuple(self._open):
            try:
                await stream.check()
            except OvernightError as error:
                stream.end(str(error))

    async def _look_at_jobs(self) -> None:
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
            elif now - stream.told_at > HEARTBEAT_S:
                stream.beats = True
                stream.news.set()
            stream.due_at = now + min(max(TICK_S, (now - stream.moved_at) / 10), SLOWEST_TICK_S)


async def _until_left(receive: Receive, stream: EventStream) -> None:
    with suppress(asyncio.CancelledError):
        while (await receive())["type"] != "http.disconnect":
            pass
        stream.end("")
