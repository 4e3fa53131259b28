"""The protocol of `/api/v1/effects` from the side of a program, with the standard library alone: claim, do, report."""

import http.client
import json
import os
import random
import signal
import time
import uuid
from collections import Counter
from typing import Any

from vendor_client import Refused, Unclear, VendorClient

CLAIM_MS = 1500
KEYED_TRIES = 3
PATIENCE_S = 60.0


_passes: Counter[str] = Counter()


def _point(name: str) -> None:
    """Kill this process at the pass that KILL_AT names, as `called:2`: the second time that the vendor was called."""
    _passes[name] += 1
    if os.environ.get("KILL_AT") == f"{name}:{_passes[name]}":
        os.kill(os.getpid(), signal.SIGKILL)


class WaitsForPerson(Exception):
    """Overnight does not know the outcome; a person decides."""


class EffectsClient:
    """The protocol of `/api/v1/effects`, from the side of a program whose network fails. One holder per process."""

    def __init__(self, gateways: list[str], job: str) -> None:
        self._gateways, self._job, self._holder = gateways, job, f"p{uuid.uuid4().hex}"

    def claim(self, tool: str, key: str, arguments: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """201 run it, 200 it is done. A lost answer is asked for again by the same holder."""
        body = {"tool": tool, "arguments": arguments, "timeout_ms": CLAIM_MS, "holder": self._holder}
        return self.ask("POST", "/api/v1/effects", body, {"idempotency-key": key, "x-job-id": self._job})

    def report(self, effect_id: str, verb: str, **body: Any) -> tuple[int, dict[str, Any]]:
        return self.ask("POST", f"/api/v1/effects/{effect_id}/{verb}", body, {})

    def ask(self, method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """The first answer that says not to try again."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                status, should_retry, found = self._once(method, path, body, headers)
                if not should_retry and status < 500:
                    return status, found
            except (OSError, http.client.HTTPException, ValueError):
                pass
            if time.monotonic() > until:
                raise TimeoutError(f"{path}: no answer within {PATIENCE_S} s")
            time.sleep(random.uniform(0.05, 0.3))

    def _once(self, method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, bool, dict[str, Any]]:
        host, _, port = random.choice(self._gateways).rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        try:
            connection.request(method, path, json.dumps(body), {"content-type": "application/json", **headers})
            answer = connection.getresponse()
            return answer.status, answer.headers.get("x-should-retry") == "true", json.loads(answer.read())
        finally:
            connection.close()


def perform(client: EffectsClient, vendor: VendorClient, account: str, subject: str) -> str:
    """The end of one effect in one word. Raises WaitsForPerson."""
    while True:
        status, found = client.claim(account, subject, {"subject": subject})
        if status == 200:
            return "done"
        if status == 409 and found["code"] == "rejected":
            return "rejected"
        if status == 409 and found["code"] == "unknown":
            raise WaitsForPerson(found["review_id"])
        if status != 201:
            raise RuntimeError(f"{subject}: {status} {found}")
        _point("claimed")
        verb, report = call(vendor, account, subject, found["vendor_key"])
        _point("called")
        status, told = client.report(found["effect_id"], verb, claim_id=found["claim_id"], **report)
        if status not in (200, 409):
            raise RuntimeError(f"{subject}: {verb}: {status} {told}")
        if status == 200 and verb == "fail":
            return "failed"


def call(vendor: VendorClient, account: str, subject: str, key: str) -> tuple[str, dict[str, Any]]:
    """Do it, and say what is to be reported."""
    why = ""
    for _ in range(KEYED_TRIES if account == "keyed" else 1):
        try:
            return "commit", {"provider_id": vendor.do(account, subject, subject, key), "result": subject}
        except Refused as refused:
            if why:  # this try did nothing, and an earlier one may have
                return "unknown", {"why": why}
            return "fail", {"error": {"class": "refused", "message": str(refused)}}
        except (OSError, Unclear) as unclear:
            why = repr(unclear)
    if account == "truthful":
        state, provider_id = vendor.status(account, key)
        if state == "done":
            return "commit", {"provider_id": provider_id, "result": subject}
        if state == "none":
            return "fail", {"error": {"class": "not_done", "message": why}}
    return "unknown", {"why": why}
