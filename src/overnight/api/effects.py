"""`/api/v1/effects`: claims of effects, reports, and their state. Plain ASGI; see `docs/reference/http.md`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from overnight.domain import BadInput, Forbidden, OvernightError, check_identifier, iso_utc, parse_whole
from overnight.domain.json_text import fingerprint
from overnight.effects import EFFECT_STATES, EffectFilter, public_effect
from overnight.gateway import ClaimAnswer, EffectRefused, EffectRequest, Gateway, HttpEffects, HttpResponse, Report
from overnight.http_server import Headers
from overnight.keys import check_tool

from .attribution import attribution, key_scope_of
from .body_memory import BodyMemory
from .content import reads_content
from .effect_bodies import CLAIM, COMMIT, FAIL, UNKNOWN, argument_bytes, cut_result, lease_us
from .effect_problems import effect_problem
from .requests import Request, read_body, text_of

PATH = "/api/v1/effects"
MAX_CLAIM_BODY, MAX_REPORT_BODY = 512 * 1024, 8 * 1024 * 1024
MAX_WAIT_MS, MAX_PAGE = 60_000, 200
MAX_KEY = 255
_JSON = (b"content-type", b"application/json")
_encode = msgspec.json.Encoder().encode


class EffectsApi:
    """Serves requests that the front has let in. Errors are problems with a `code`."""

    def __init__(self, gateway: Gateway, memory: BodyMemory) -> None:
        self._gateway, self._memory = gateway, memory
        self._handlers: dict[tuple[str, str], Callable[[Request], Any]] = {
            ("POST", PATH): self.claim,
            ("GET", PATH): self.page,
            ("GET", f"{PATH}/{{effect}}"): self.one,
            ("POST", f"{PATH}/{{effect}}/commit"): self.commit,
            ("POST", f"{PATH}/{{effect}}/fail"): self.fail,
            ("POST", f"{PATH}/{{effect}}/unknown"): self.unknown,
        }

    @property
    def _effects(self) -> HttpEffects:
        return self._gateway.effects

    async def answer(self, request: Request) -> HttpResponse:
        handler = self._handlers[request.route.method, request.route.template]
        try:
            return await handler(request)
        except OvernightError as error:
            return effect_problem(error)

    # ── claims ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def claim(self, request: Request) -> HttpResponse:
        """Claim an effect: 201 run it, 200 it is done, 202 it waits for an approval."""
        client_key = idempotency_key(request.headers)
        with self._memory.holding(request.key) as count:
            body = CLAIM.read(await read_body(request.receive, MAX_CLAIM_BODY, request.headers, count))
            tool = check_identifier(body.tool, "tool")
            try:
                check_tool(request.key, tool)
            except Forbidden as error:
                raise EffectRefused("denied", str(error)) from None
            arguments, asked = argument_bytes(body.arguments)
            wanted = EffectRequest(
                tool=tool,
                client_key=client_key,
                arguments=arguments,
                arguments_sha256=fingerprint(asked),
                asked=asked,
                holder=_holder(body.holder, request),
                lease_us=lease_us(body.timeout_ms),
            )
            found = await self._effects.claim(attribution(request.headers, request.key), wanted)
        return _claim_response(found)

    # ── reports ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def commit(self, request: Request) -> HttpResponse:
        """Report that the effect was done."""
        body = await self._report_body(request, COMMIT)
        result = cut_result(bytes(body.result))
        return await self._report(
            request, body.claim_id, Report(kind="done", provider_id=body.provider_id, result=result)
        )

    async def fail(self, request: Request) -> HttpResponse:
        """Report that the effect was certainly not done."""
        body = await self._report_body(request, FAIL)
        return await self._report(request, body.claim_id, Report(kind="failed", error=body.error.facts()))

    async def unknown(self, request: Request) -> HttpResponse:
        """Report that the holder does not know whether the effect was done."""
        body = await self._report_body(request, UNKNOWN)
        return await self._report(request, body.claim_id, Report(kind="unknown", why=body.why[:500]))

    async def _report_body(self, request: Request, form: Any) -> Any:
        with self._memory.holding(request.key) as count:
            return form.read(await read_body(request.receive, MAX_REPORT_BODY, request.headers, count))

    async def _report(self, request: Request, token: str, report: Report) -> HttpResponse:
        effect_id, scope = request.names[0], key_scope_of(request.key)
        found = await self._effects.report(effect_id, token, request.tenant_id, scope, report)
        shown = public_effect(found.row, with_content=reads_content(request.key))
        return HttpResponse(200, [_JSON], _encode({**shown, "repeated": found.repeated}))

    # ── state ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def one(self, request: Request) -> HttpResponse:
        """One effect, with `wait_ms` after its next change."""
        query = _query(request, ("wait_ms",))
        wait_ms = _whole(query, "wait_ms", 0, MAX_WAIT_MS)
        scope = key_scope_of(request.key)
        row = await self._effects.one(
            request.names[0], request.tenant_id, scope, wait_ms / 1000, request.detect_disconnect
        )
        shown = public_effect(row, with_content=reads_content(request.key))
        if reads_content(request.key):
            shown["arguments"] = await self._effects.arguments(row)
            shown["result"] = msgspec.Raw(row.result) if row.state == "committed" and row.result else None
        return HttpResponse(200, [_JSON], _encode(shown))

    async def page(self, request: Request) -> HttpResponse:
        """A page of effects, newest first."""
        query = _query(request, ("job", "state", "tool", "before", "limit"))
        state, job, scope = query.get("state", ""), query.get("job", ""), key_scope_of(request.key)
        if state and state not in EFFECT_STATES:
            raise BadInput(f"state: {state[:40]!r} is not one of {', '.join(EFFECT_STATES)}")
        if job:
            found = await self._gateway.ledger.job(check_identifier(job, "job"), request.tenant_id, scope)
            job = found.job_id
        limit = _whole(query, "limit", 50, MAX_PAGE)
        wanted = EffectFilter(
            tenant_id=request.tenant_id,
            job_id=job,
            state=state,
            tool=query.get("tool", ""),
            before=query.get("before", ""),
            most=limit,
            key_scope=scope,
        )
        rows = await self._effects.page(wanted)
        content = reads_content(request.key)
        shown = [public_effect(row, with_content=content) for row in rows]
        before = rows[-1].effect_id if rows and len(rows) == limit else None
        return HttpResponse(200, [_JSON], _encode({"effects": shown, "before": before}))


def _claim_response(found: ClaimAnswer) -> HttpResponse:
    where = f"{PATH}/{found.effect_id}".encode()
    shown: dict[str, Any] = {"verdict": found.verdict, "effect_id": found.effect_id, "job_id": found.job_id}
    expires_at = iso_utc(found.expires_at) if found.expires_at is not None else None
    match found.verdict:
        case "run":
            shown |= {
                "claim_id": found.token,
                "expires_at": expires_at,
                "vendor_key": found.effect_id,
                "arguments": msgspec.Raw(found.arguments),
                "attempt": found.attempt,
            }
            return HttpResponse(201, [_JSON, (b"location", where)], _encode(shown))
        case "committed":
            shown |= {
                "provider_id": found.provider_id,
                "result": msgspec.Raw(found.result or b"null"),
                "replayed": True,
            }
            return HttpResponse(200, [_JSON, (b"location", where)], _encode(shown))
        case _:
            shown |= {"review_id": found.review_id, "expires_at": expires_at}
            return HttpResponse(202, [_JSON, (b"location", where), (b"retry-after", b"5")], _encode(shown))


def _holder(named: str | None, request: Request) -> str:
    """The holder of a claim: the name that the caller gives, within its API key. Without a name, no other claim is its own."""
    if named is None:
        return f"claim_{os.urandom(16).hex()}"
    holder = check_identifier(named, "holder")
    return f"{holder}@{request.key_id}" if request.key_id else holder


def idempotency_key(headers: Headers) -> str:
    """The `Idempotency-Key` of a request: bare, or as a string in quotes. Raises EffectRefused."""
    values = [value.strip() for name, value in headers if name == b"idempotency-key"]
    if not values or not values[0]:
        raise EffectRefused(
            "key_missing",
            "Idempotency-Key: the header is missing; send a name of this effect that a repeat sends again",
        )
    text = text_of(values[0], "Idempotency-Key")
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    visible = all("!" <= character <= "~" for character in text)
    if len(values) > 1 or not text or len(text) > MAX_KEY or not visible:
        raise EffectRefused(
            "key_invalid",
            f"Idempotency-Key: expected one value of 1 to {MAX_KEY} visible ASCII characters, without spaces",
        )
    return text


def _query(request: Request, known: tuple[str, ...]) -> Mapping[str, str]:
    found = dict(parse_qsl(request.query.decode("latin-1"), keep_blank_values=True))
    for name in found:
        if name not in known:
            raise BadInput(f"unknown parameter {name[:40]!r}; known: {', '.join(known)}")
    return found


def _whole(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    if name not in query:
        return default
    number = parse_whole(query[name], most)
    if number is None:
        raise BadInput(f"{name}: expected a whole number up to {most}")
    return number
