"""`GET /readyz`: whether calls can be served. `/healthz` only reports that the process runs."""

import contextlib
import logging
import time
from typing import Any

import msgspec

from overnight.domain import StoreUnavailable
from overnight.gateway import HttpResponse
from overnight.ledger import sink_lags
from overnight.store import Readiness, Store

log = logging.getLogger("overnight.api")
LOOK_EVERY_S = 1.0


class ReadyApi:
    """Requires no key, so the reason is logged and not returned."""

    def __init__(self, store: Store) -> None:
        self._readiness = Readiness(store)
        self._last: str | None = None
        self._store, self._looked_at, self._behind = store, float("-inf"), dict[str, int]()

    async def _lags(self) -> dict[str, int]:
        """How far the listeners of the feed are behind; asked at most once a second."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            with contextlib.suppress(StoreUnavailable):
                self._behind = await sink_lags(self._store)
        return self._behind

    async def answer(self) -> HttpResponse:
        trouble = await self._readiness.problem()
        if trouble != self._last:
            log.warning("not ready: %s", trouble) if trouble else log.warning("ready again")
            self._last = trouble
        body: dict[str, Any] = {"status": "unavailable", "store": "cannot be written"} if trouble else {"status": "ok"}
        if not trouble and (lags := await self._lags()):
            body["feed_behind_ms"] = lags
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        return HttpResponse(503 if trouble else 200, headers, msgspec.json.encode(body))
