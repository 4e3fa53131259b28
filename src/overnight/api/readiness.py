"""`GET /readyz`: whether calls can be served. `/healthz` only reports that the process runs."""

import logging

import msgspec

from overnight.gateway import HttpResponse
from overnight.store import Readiness, Store

log = logging.getLogger("overnight.api")


class ReadyApi:
    """Requires no key, so the reason is logged and not returned."""

    def __init__(self, store: Store) -> None:
        self._readiness = Readiness(store)
        self._last: str | None = None

    async def answer(self) -> HttpResponse:
        trouble = await self._readiness.trouble()
        if trouble != self._last:
            log.warning("not ready: %s", trouble) if trouble else log.warning("ready again")
            self._last = trouble
        body = {"status": "unavailable", "store": "cannot be written"} if trouble else {"status": "ok"}
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        return HttpResponse(503 if trouble else 200, headers, msgspec.json.encode(body))
