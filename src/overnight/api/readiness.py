"""`GET /readyz`: whether calls can be served now. `/healthz` says only that the process lives."""

import logging

import msgspec

from overnight.gateway import Answer
from overnight.store import Readiness, Store

log = logging.getLogger("overnight.api")


class ReadyApi:
    """Answers anyone, so the reason goes to the log and not to the caller."""

    def __init__(self, store: Store) -> None:
        self._readiness = Readiness(store)
        self._told: str | None = None

    async def answer(self) -> Answer:
        trouble = await self._readiness.trouble()
        if trouble != self._told:
            log.warning("not ready: %s", trouble) if trouble else log.warning("ready again")
            self._told = trouble
        body = {"status": "unavailable", "store": "cannot be written"} if trouble else {"status": "ok"}
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        return Answer(503 if trouble else 200, headers, msgspec.json.encode(body))
