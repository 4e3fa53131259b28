"""The ASGI lifespan protocol: notifies the application of the start and stop of the server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from .asgi import Message, Receive, Scope, Send

log = logging.getLogger("overnight.api")


class LifespanFailed(Exception):
    """The application reported a failed start."""


class Lifespan:
    """Runs the lifespan protocol. An application that does not support it is served without it."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Notify the application of the start. Raises LifespanFailed."""
        self._task = asyncio.create_task(self._run())
        answer = await self._notify("lifespan.startup")
        if answer == "lifespan.startup.failed":
            raise LifespanFailed("the application could not start")

    async def stop(self, grace_s: float) -> None:
        """Notify the application of the stop, wait up to `grace_s` seconds for its reply, then cancel it."""
        if self._task is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._notify("lifespan.shutdown")
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _notify(self, kind: str) -> str | None:
        """Send one message. Returns the type of the reply, or None if the application has ended."""
        if self._task is None or self._task.done():
            return None
        self._to_app.put_nowait({"type": kind})
        answer = asyncio.ensure_future(self._from_app.get())
        await asyncio.wait([answer, self._task], return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()["type"]
        answer.cancel()
        return None

    async def _run(self) -> None:
        async def send(message: Message) -> None:
            self._from_app.put_nowait(message)

        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        try:
            await self._app(scope, self._to_app.get, send)
        except Exception as error:
            log.debug("the application does not support the lifespan protocol: %s", error)
