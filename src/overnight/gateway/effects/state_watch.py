"""Waiting for the next state of effects: by notice within this process, by one common query for all others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from overnight.domain import StoreUnavailable
from overnight.effects import read_effect_states
from overnight.store import Store

log = logging.getLogger("overnight.gateway")
POLL_S = 0.25
PAGE = 500
CHANGES = frozenset({"waiting", "claimed", "unknown"})
"""States that end by themselves, or by somebody else than the caller."""


class StateWatch:
    """Wakes those who wait for a change. A single task reads the states of all watched effects, while there are any."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._states: dict[str, str] = {}
        self._poller: asyncio.Task[None] | None = None

    async def wait(self, effect_id: str, state: str, until: float, left: Callable[[], bool] | None = None) -> None:
        """Return when the effect has left this state, at `until`, a time of the loop, or soon after its caller has left."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if self._states.get(effect_id, state) != state:
            self.notify(effect_id)  # those who came before know an older state
        self._waiting.setdefault(effect_id, set()).add(future)
        self._states[effect_id] = state
        if self._poller is None or self._poller.done():
            self._poller = loop.create_task(self._poll())
        try:
            while not future.done() and loop.time() < until and not (left is not None and left()):
                await asyncio.wait((future,), timeout=min(until - loop.time(), 1.0))
        finally:
            future.cancel()
            waiting = self._waiting.get(effect_id, set())
            waiting.discard(future)
            if not waiting:
                self._waiting.pop(effect_id, None)
                self._states.pop(effect_id, None)

    def notify(self, effect_id: str) -> None:
        """Wake those who wait for this effect: this process has changed it."""
        for future in self._waiting.get(effect_id, ()):
            if not future.done():
                future.set_result(None)

    async def _poll(self) -> None:
        while self._waiting:
            await asyncio.sleep(POLL_S)
            try:
                watched = list(self._states)
                for page in (watched[first : first + PAGE] for first in range(0, len(watched), PAGE)):
                    found = await read_effect_states(self._store, page)
                    for effect_id in page:
                        if found.get(effect_id) != self._states.get(effect_id):
                            self.notify(effect_id)
            except StoreUnavailable:
                continue
            except Exception:
                log.exception("internal error while waiting for effects, will retry")
