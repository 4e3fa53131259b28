"""Reload requests: every process that shares a ledger changes to the brain version that one of them was asked for.

The request is a row, because a signal reaches neither other hosts nor processes without a supervisor. The files come from the
store, so that the folders of other hosts need not be changed first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from overnight.brain import Brain
from overnight.domain import StoreUnavailable
from overnight.ledger import ReloadRequest, read_brain_files, read_reload
from overnight.store import Store

log = logging.getLogger("overnight.gateway")
POLL_S = 1.0


class BrainReloads:
    """Follows the reload requests that are newer than `seen`. `change` changes this process to a brain.

    `seen` is the latest request that was made before the process read its folder, which is as new.
    """

    def __init__(
        self,
        store: Store,
        version: str,
        change: Callable[[Brain], Awaitable[None]],
        seen: ReloadRequest | None,
    ) -> None:
        self._store, self._version, self._change, self._seen = store, version, change, seen
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            request = self._seen
            try:
                request = await read_reload(self._store)
                if request == self._seen or request is None:
                    continue
                if request.version != self._version:
                    await self._change(Brain.from_files(await read_brain_files(self._store, request.version)))
                    self._version = request.version
                    log.info("brain %s is active; running jobs keep theirs", request.version[:12])
                self._seen = request
            except StoreUnavailable:
                continue  # the next poll tries again
            except Exception:
                log.exception(
                    "the brain cannot be reloaded; this process continues with version %s", self._version[:12]
                )
                self._seen = request
