"""Effects over HTTP as an interface: claim, report, read, wait and list."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from overnight.budgets import Policy
from overnight.domain import Attribution, BadInput, KeyScope, NotFound
from overnight.effects import (
    EffectFilter,
    EffectPlace,
    EffectRow,
    claim_digest,
    expire_claims,
    list_effects,
    new_claim_token,
    read_arguments,
    read_effect,
)
from overnight.store import Store, crash_point
from overnight.tools import TemplateMismatch, ToolPolicy, check_arguments, render_key

from ..job_ancestry import JobAncestry
from .claim import ClaimEffect, EffectRequest
from .outcomes import ClaimAnswer, HasParent, Moved, Refusal, ReportAnswer
from .report import Report, ReportEffect
from .state_watch import CHANGES, StateWatch

MAX_KNOWN_PLACES = 50_000


DEFAULT_LEASE_MS = 60_000
"""How long a claim lasts if neither the caller nor the contract says so."""
FOR_EVER_MS = 10**12


class HttpEffects:
    """Effects that programs claim and report over HTTP.

    `policy`: the budgets that count tool calls. `patience_s` returns how long a request waits for the store, in seconds.

    Attributes:
        tools: finds the contracts and rules of tools that are in force now.
    """

    def __init__(self, store: Store, jobs: JobAncestry, policy: Policy, patience_s: Callable[[], float]) -> None:
        self._store, self._jobs, self._policy, self._patience_s = store, jobs, policy, patience_s
        self.tools: Callable[[], ToolPolicy | None] = _no_tools
        self._places: OrderedDict[str, EffectPlace] = OrderedDict()
        self._watch = StateWatch(store)

    async def claim(self, who: Attribution, request: EffectRequest) -> ClaimAnswer:
        """Claim an effect of the named job, of the job of the session, or of a job of its own.

        Raises EffectRefused, NotFound, Conflict, Forbidden, BadInput, StoreUnavailable.
        """
        until, tools = self._until(), self.tools()
        request = _by_contract(request, tools)
        own = who.job_id is None and who.external_id is None and (who.session_id is None or who.only_marks)
        if own:
            if who.attempt is not None:
                raise BadInput("x-job-attempt: an attempt belongs to a job; name the job in x-job-id")
            who = msgspec.structs.replace(who, external_id=_own_job(who, request))
        subject = await self._jobs.subject_of(who, None, until)
        subject = msgspec.structs.replace(subject, label=request.tool, unattributed=own)
        token, digest = new_claim_token()
        while True:
            command = ClaimEffect(
                subject=subject,
                request=request,
                claim_digest=digest,
                policy=self._policy,
                rules=lambda: tools,
                now=self._store.clock(),
            )
            found = await self._store.commit(command, until=until)
            if not isinstance(found, HasParent):
                break
            subject = await self._jobs.with_ancestors(subject, found.job_id)
        crash_point("claim_recorded")
        if isinstance(found, Refusal):
            if found.effect_id is not None:
                self._watch.notify(found.effect_id)
            raise found.error()
        self._jobs.update_subject(subject, found.job_id, found.attempt)
        self._watch.notify(found.effect_id)
        if found.verdict == "run":
            self._remember(found.effect_id, EffectPlace(who.tenant_id, found.effect_key, found.job_id))
        return msgspec.structs.replace(found, token=token) if found.verdict == "run" else found

    async def report(
        self, effect_id: str, token: str, tenant_id: str, key_scope: KeyScope, report: Report
    ) -> ReportAnswer:
        """Take a report. Raises EffectRefused, StoreUnavailable, and NotFound without the secret of a claim of this effect."""
        until, digest = self._until(), claim_digest(token)
        place = await self._place(effect_id, tenant_id, key_scope, until)
        while True:
            command = ReportEffect(
                place=place,
                effect_id=effect_id,
                claim_digest=digest,
                key_scope=key_scope,
                report=report,
                tools=self.tools(),
            )
            found = await self._store.commit(command, until=until)
            if not isinstance(found, Moved):
                break
            place = self._remember(effect_id, place._replace(job_id=found.job_id))
        crash_point("report_recorded")
        self._watch.notify(effect_id)
        if found is None:
            raise NotFound(f"effect {effect_id} with this claim_id")
        if isinstance(found, Refusal):
            raise found.error()
        return found

    async def one(
        self,
        effect_id: str,
        tenant_id: str,
        key_scope: KeyScope,
        wait_s: float = 0.0,
        left: Callable[[], bool] | None = None,
    ) -> EffectRow:
        """One effect. With `wait_s`, after its next change or that time, whichever is first. Raises NotFound."""
        row = await read_effect(self._store, effect_id, tenant_id, key_scope, until=self._until())
        if wait_s > 0 and row.state in CHANGES:
            await self._watch.wait(effect_id, row.state, asyncio.get_running_loop().time() + wait_s, left)
            row = await read_effect(self._store, effect_id, tenant_id, key_scope, until=self._until())
        return row

    async def arguments(self, row: EffectRow) -> Any:
        """The arguments of the last claim; None if there was none, or they are erased."""
        return await read_arguments(self._store, row)

    async def page(self, wanted: EffectFilter) -> Sequence[EffectRow]:
        """A page of effects, newest first."""
        return await list_effects(self._store, wanted)

    async def expire(self) -> None:
        """Make expired claims unknown. Raises StoreUnavailable."""
        for effect_id in await expire_claims(self._store):
            self._watch.notify(effect_id)

    async def close(self) -> None:
        """Stop watching effects."""
        await self._watch.close()

    def _until(self) -> float:
        return asyncio.get_running_loop().time() + self._patience_s()

    async def _place(self, effect_id: str, tenant_id: str, key_scope: KeyScope, until: float) -> EffectPlace:
        place = self._places.get(effect_id)
        if place is not None:
            if place.tenant_id != tenant_id:
                raise NotFound(f"effect {effect_id}")
            return place
        row = await read_effect(self._store, effect_id, tenant_id, key_scope, until=until)
        return self._remember(effect_id, EffectPlace(row.tenant_id, row.effect_key, row.job_id))

    def _remember(self, effect_id: str, place: EffectPlace) -> EffectPlace:
        self._places[effect_id] = place
        if len(self._places) > MAX_KNOWN_PLACES:
            self._places.popitem(last=False)
        return place


def _no_tools() -> None:
    """Without a brain there are neither contracts nor rules."""


def _by_contract(request: EffectRequest, tools: ToolPolicy | None) -> EffectRequest:
    """The request with what the contract of its tool says."""
    contract = tools.contract(request.tool) if tools is not None else None
    if contract is None:
        return msgspec.structs.replace(request, lease_us=request.lease_us or DEFAULT_LEASE_MS * 1000)
    unfit = "; ".join(map(str, check_arguments(contract, request.asked))) or None
    client_key = request.client_key
    if contract.key is not None:
        try:
            client_key = render_key(contract.key, request.asked)
        except TemplateMismatch as error:
            unfit = unfit or str(error)
    repeatable_ms = contract.key_lifetime_ms or FOR_EVER_MS if contract.repeat_safe else 0
    return msgspec.structs.replace(
        request,
        tool_class=contract.tool_class,
        contract=contract.label,
        client_key=client_key,
        unfit=unfit,
        holds_in_tenant=contract.key_scope == "tenant",
        repeatable_us=repeatable_ms * 1000,
        lease_us=request.lease_us or (contract.timeout_ms or DEFAULT_LEASE_MS) * 1000,
    )


def _own_job(who: Attribution, request: EffectRequest) -> str:
    """The external id of the job of an effect without a named job: a repeat under the same API key and key finds it."""
    named = "\0".join((who.key_id or "", request.tool, request.client_key))
    return f"effect:{hashlib.sha256(named.encode()).hexdigest()[:32]}"
