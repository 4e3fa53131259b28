"""External jobs over HTTP: the effects of a program that has no access to the database.

The gateway decides, and this process executes: claim → call → commit, each report with the secret of the claim. A claim is
extended while its function runs. A restarted program begins a new attempt; the claims of the previous one become unknown.
"""

import asyncio
import contextlib
import logging
import os
from collections import Counter
from threading import Lock
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from overnight.domain import (
    BadInput,
    Conflict,
    ErrorFacts,
    Fenced,
    Forbidden,
    NotFound,
    OvernightError,
    Unauthenticated,
)
from overnight.domain.json_text import decode_json

from .current_record import current_record
from .effect_records import CANNOT_TELL, NOT_DONE, Done, EffectOutcome, Late, Tool
from .encoding import encode, fingerprint
from .gateway_client import GatewayAnswer, GatewayClient
from .job_parked import JobParked
from .tracebacks import error_facts

log = logging.getLogger("overnight.jobs")
EFFECTS = "/api/v1/effects"
CLAIM_S = 60.0
EXTEND_S = CLAIM_S / 3
"""How long a claim lasts, and the time between two extensions."""


def gateway_root(url: str, place: str) -> str:
    """The URL of a gateway without `/v1` and without a slash at its end. Raises BadInput, naming `place`."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise BadInput(f"{place}: expected the URL of the gateway, such as http://127.0.0.1:8700")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


class RemoteJob:
    """One attempt of an external job, through the gateway at `root`.

    - `headers`: send them with every model call. `base_url`: the URL for model calls.
    - `api_key`: the key for the gateway; "none" without one, since clients require a key.
    """

    def __init__(self, root: str, external_id: str, tenant_id: str | None, api_key: str | None = None) -> None:
        self.base_url, self.api_key = f"{root}/v1", api_key or "none"
        self.external_id, self._tenant_id = external_id, tenant_id
        self.job_id, self.attempt = "", 0
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._client = GatewayClient(root, headers | ({} if tenant_id is None else {"x-tenant-id": tenant_id}))
        self._seen: Counter[tuple[str, str]] = Counter()
        self._seen_lock = Lock()
        self._holder = f"pid{os.getpid()}-{os.urandom(6).hex()}"

    @property
    def headers(self) -> dict[str, str]:
        """The headers that attribute a model call to this attempt, and to the record of `overnight.about`."""
        headers = {"x-job-id": self.job_id, "x-job-attempt": str(self.attempt)}
        if self._tenant_id is not None:
            headers["x-tenant-id"] = self._tenant_id
        if self.api_key != "none":
            headers["x-api-key"] = self.api_key  # takes precedence over the key of the client itself
        if (record := current_record()) is not None:
            headers["x-record"] = record
        return headers

    def begin(self) -> None:
        """Begin the next attempt, which ends the previous one."""
        path = f"/api/v1/jobs/{quote(self.external_id, safe='')}/attempts"
        body = _checked(self._client.send("POST", path, {}), 201)
        self.job_id, self.attempt = body["job_id"], body["attempt"]

    def end(self, raised: BaseException | None) -> None:
        """Complete the job. A parked job stays open, as does one whose attempt has ended."""
        if isinstance(raised, Fenced) or not (raised is None or isinstance(raised, Exception)):
            return
        body: dict[str, Any] = {}
        if isinstance(raised, Exception):
            facts = error_facts(raised)
            body = {"state": "failed", "error": {"class": facts.error_class, "message": facts.message}}
        answer = self._client.send("POST", f"/api/v1/jobs/{self.job_id}/complete", body)
        if raised is None:
            _checked(answer, 200)

    async def execute(self, tool: Tool, named: dict[str, Any]) -> EffectOutcome:
        """Execute an effect, or replay what an earlier attempt committed. Raises JobParked."""
        digest = fingerprint(named)
        with self._seen_lock:
            self._seen[tool.tool, digest] += 1
            occurrence = self._seen[tool.tool, digest] - 1
        return await _RemoteEffect(self, tool, named, f"{digest}:{occurrence}").run()

    async def send(self, path: str, body: Any, headers: dict[str, str] | None = None) -> GatewayAnswer:
        """A POST in a thread, with the attribution of this attempt."""
        return await asyncio.to_thread(self.send_now, path, body, headers)

    def send_now(self, path: str, body: Any, headers: dict[str, str] | None = None) -> GatewayAnswer:
        """The same in this thread."""
        sent = {**self.headers, **(headers or {})}
        sent.pop("x-api-key", None)
        return self._client.send("POST", path, body, sent)

    @property
    def holder(self) -> str:
        return self._holder


class _RemoteEffect:
    """One effect, from its claim to its outcome."""

    def __init__(self, job: RemoteJob, tool: Tool, named: dict[str, Any], key: str) -> None:
        self._job, self._tool, self._named, self._key = job, tool, named, key
        self._arguments = encode(named, f"the arguments of effect {tool.tool}")
        self._claim: dict[str, Any] = {}

    async def run(self) -> EffectOutcome:
        while True:
            answer = await self._ask()
            if answer.status == 201:
                self._claim = answer.body
                outcome = await self._execute()
                if outcome is None:
                    continue
                return outcome
            if answer.status == 200:
                content = msgspec.json.encode(answer.body.get("result"))
                return EffectOutcome("tool_succeeded", 0, content, replayed=True)
            if answer.code != "in_progress":
                return self._stopped(answer)
            await asyncio.sleep(answer.retry_after_s or 1.0)

    async def _ask(self) -> GatewayAnswer:
        """Claim the effect, or extend the claim."""
        body = {
            "tool": self._tool.tool,
            "arguments": msgspec.Raw(self._arguments),
            "timeout_ms": round(CLAIM_S * 1000),
            "holder": self._job.holder,
        }
        return await self._job.send(EFFECTS, body, {"idempotency-key": self._key})

    def _stopped(self, answer: GatewayAnswer) -> EffectOutcome:
        """The outcome without a call. Raises JobParked if a person or a budget has to decide."""
        code, tool = answer.code, self._tool.tool
        review_id = str(answer.body.get("review_id") or "")
        if answer.status == 202 or code in {"unknown", "expired", "held", "drift"}:
            what = "waits for approval" if answer.status == 202 else answer.detail
            how = f"decide review {review_id} with `overnight reviews`, then start the program again"
            kind = "approval" if answer.status == 202 else "quarantine"
            raise JobParked(f"effect {tool}: {what}; {how}", review_id, {"for": kind, "review_id": review_id})
        if code == "budget":
            raise JobParked(f"effect {tool}: {answer.detail}. See `overnight budget`", "", {"for": "budget"})
        if code == "rejected":
            return EffectOutcome("tool_failed", 0, error=ErrorFacts("rejected", answer.detail))
        if code in {"denied", "arguments_invalid"}:
            return EffectOutcome("tool_refused", 0, error=ErrorFacts(code, answer.detail))
        raise _error_of(answer)

    async def _execute(self) -> EffectOutcome | None:
        """Call the function. None: the status check found it not done, so it may be claimed again."""
        named, vendor_key = self._named, str(self._claim["vendor_key"])
        if self._claim["arguments"] != decode_json(self._arguments):  # a person edited them
            named = self._tool.restore(self._claim["arguments"])
        outcome = await self._call(vendor_key, named)
        if isinstance(outcome, Done):
            return await self._commit(outcome)
        if isinstance(outcome, self._tool.not_done):
            return await self._not_done(error_facts(outcome))
        # A timeout or a fault: the outcome is unknown.
        why = f"{type(outcome).__name__}: {str(outcome)[:200]}"
        await self._report("unknown", {"why": why})
        return await self._find_out(vendor_key, named, why)

    async def _call(self, vendor_key: str, named: dict[str, Any]) -> Done | Exception:
        """The result of the function, or what it raised. The claim is extended meanwhile, and no longer when this returns: an
        extension that arrived after the report of a failure would claim the effect again."""
        ended = asyncio.Event()
        extending = asyncio.create_task(self._extend(self._claim, ended))
        try:
            return await self._tool.call(vendor_key, named, _no_check, self._late(self._claim))
        except Exception as error:
            return error
        finally:
            ended.set()
            await extending

    def _late(self, claim: dict[str, Any]) -> Late:
        """Report a result that comes after the time limit: it may be the only sign that the effect was done."""

        def report(done: Done) -> None:
            try:
                result = encode(done.result, f"the result of effect {self._tool.tool}")
            except BadInput:
                result = b"null"
            body = {"claim_id": claim["claim_id"], "provider_id": done.provider_id, "result": msgspec.Raw(result)}
            try:
                _checked(self._job.send_now(f"{EFFECTS}/{claim['effect_id']}/commit", body), 200)
            except OvernightError as error:
                log.warning("the late result of effect %s was not taken: %s", self._tool.tool, error)

        return report

    async def _extend(self, claim: dict[str, Any], ended: asyncio.Event) -> None:
        """Extend the claim until the call has ended. A lost claim does not stop the function: its report is kept."""
        while True:
            with contextlib.suppress(TimeoutError):
                return await _waited(ended, EXTEND_S)
            with contextlib.suppress(OvernightError):
                answer = await self._ask()
                if answer.status == 201:
                    claim.update(answer.body)

    async def _find_out(self, vendor_key: str, named: dict[str, Any], why: str) -> EffectOutcome | None:
        """Ask the status check; without an answer, a person."""
        found = await self._tool.ask_status(vendor_key, named, _no_check)
        if found == NOT_DONE and self._tool.settle_after_s > 0:
            await asyncio.sleep(self._tool.settle_after_s)
            found = await self._tool.ask_status(vendor_key, named, _no_check)
        if isinstance(found, Done):
            return await self._commit(found)
        if found != CANNOT_TELL:
            await self._not_done(ErrorFacts("not_done", f"{why}; the status check reports that it was not done"))
            return None
        return self._stopped(await self._ask())

    async def _commit(self, done: Done) -> EffectOutcome:
        try:
            result = encode(done.result, f"the result of effect {self._tool.tool}")
        except BadInput as refused:
            await self._report("unknown", {"why": f"it was done, and its result cannot be kept: {refused}"})
            return self._stopped(await self._ask())
        body = {"provider_id": done.provider_id, "result": msgspec.Raw(result)}
        await self._report("commit", body)
        return EffectOutcome("tool_succeeded", 0, result)

    async def _not_done(self, error: ErrorFacts) -> EffectOutcome:
        await self._report("fail", {"error": {"class": error.error_class, "message": error.message}})
        return EffectOutcome("tool_failed", 0, error=error)

    async def _report(self, kind: str, body: dict[str, Any]) -> None:
        path = f"{EFFECTS}/{self._claim['effect_id']}/{kind}"
        _checked(await self._job.send(path, {"claim_id": self._claim["claim_id"], **body}), 200)


async def _waited(event: asyncio.Event, limit_s: float) -> None:
    """Raises TimeoutError."""
    await asyncio.wait_for(event.wait(), limit_s)


def _checked(answer: GatewayAnswer, status: int) -> dict[str, Any]:
    if answer.status != status:
        raise _error_of(answer)
    return answer.body


def _error_of(answer: GatewayAnswer) -> OvernightError:
    kinds: dict[int, type[OvernightError]] = {400: BadInput, 401: Unauthenticated, 403: Forbidden, 404: NotFound}
    kind = Fenced if answer.code == "fenced" else kinds.get(answer.status, Conflict)
    return kind(f"{answer.detail} (HTTP {answer.status})")


def _no_check() -> None:
    """A claim has no lease to look at: the gateway judges each report."""
