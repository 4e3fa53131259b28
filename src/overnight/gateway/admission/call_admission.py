"""Let the tries of a call in: guard against loops, wait in turn for room; settle, and tell who waits that there is room."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from overnight.budgets import (
    Key,
    Limit,
    Rate,
    Wait,
)
from overnight.domain import ErrorFacts, Event, month_of
from overnight.ledger import EXTERNAL, JOB, append
from overnight.store import Unit

from ..call.deadlines import LEAST_STORE_S, store_answers_by
from ..error_responses import CallerLeft, RateLimited, WaitedTooLong
from ..identity import Subject, caller_of
from .commands import (
    Admit,
    Ended,
    Outcome,
    Settle,
    Spent,
)
from .cost_alerts import warn
from .job_entry import close_unattributed, find_job
from .reservation import event_of, reservation_of
from .unsent_calls import NeverSent

if TYPE_CHECKING:
    from ..call.pipeline import Flight

_WORDS = {"requests": "requests a minute", "tokens": "tokens a minute", "concurrency": "calls at once"}


class Admission:
    """The admissions and the settlement of one call. `left_microusd` is what the budget with least left in money has left, as
    last known; None where no such budget holds."""

    __slots__ = (
        "_flight", "_limits", "_looked", "_rates", "_recalled", "_told", "_waiting_for", "_waiting_since", "left_microusd",
    )  # fmt: skip

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self._limits: Sequence[Limit] = ()
        self._rates: Sequence[Rate] = ()
        self._waiting_for: Wait | None = None
        self._waiting_since = 0.0
        self._told = self._looked = False
        self._recalled: Outcome | None = None
        self.left_microusd: int | None = None

    # ── in turn ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def recalls(self) -> bool:
        """Is a recorded answer to be given again? Looked for once, before the call waits for anything; `in_turn` gives it."""
        flight, subject = self._flight, self._flight.subject
        may_be = subject.place is None and subject.fingerprint is not None and not subject.unattributed
        if may_be and flight.tries == 0 and not self._looked:
            self._looked = True
            outcome = await self.admit_once(probe=True)
            self._recalled = outcome if outcome.answer is not None else None
        return self._recalled is not None

    async def in_turn(self) -> Outcome:
        """Admit the next try, behind those who wait for the same. Raises LoopStopped, RateLimited, WaitedTooLong."""
        flight = self._flight
        lines, loops, tenant_id = flight.gateway.lines, flight.gateway.loops, flight.subject.who.tenant_id
        if flight.tries == 0 and loops.suspects(flight.subject) and not await self.recalls():
            await loops.check(flight)
        if self._recalled is not None:
            return self._recalled
        turn = None if flight.is_free else lines.join_any(self._ahead, tenant_id)
        wait = turn.line.wait if turn is not None else None
        try:
            if turn is not None:
                await flight.settle_try()
                if await self.recalls() and self._recalled is not None:
                    return self._recalled
                self._note(wait)
                await turn.front(flight.queue_deadline())
            while True:
                if flight.gone():
                    raise CallerLeft("the client left while its call was queued")
                outcome = await self.admit_once()
                if outcome.wait is None:
                    return outcome
                wait = outcome.wait
                self._note(wait)
                if turn is None or turn.key != wait.key:
                    if turn is not None:
                        turn.leave()
                    turn = lines.join(wait.key, tenant_id)
                turn.line.wait = wait
                await turn.news(flight.queue_deadline(), self._pause_s(wait))
        except TimeoutError:
            raise await self._refused(wait) from None
        finally:
            if turn is not None:
                turn.leave()

    def _note(self, wait: Wait | None) -> None:
        if wait is not None and wait.what != "budget" and self._waiting_for is None and not self._told:
            self._waiting_for, self._waiting_since = wait, self._flight.loop.time()

    def _pause_s(self, wait: Wait) -> float | None:
        """How long asking again is in vain, where that is known. Raises TimeoutError where the queue time ends before."""
        if wait.until is None:
            return None
        pause_s = (wait.until - self._flight.gateway.store.clock()) / 1_000_000
        # Tokens may come back, when a call is settled at less than was reserved; requests never do.
        if wait.what == "requests" and self._flight.loop.time() + pause_s > self._flight.queue_deadline():
            raise TimeoutError
        return pause_s

    async def _refused(self, wait: Wait | None) -> WaitedTooLong | RateLimited:
        flight = self._flight
        subject, ms = flight.subject, flight.decision.time_limits.queue_ms
        if wait is None or wait.what == "budget":
            return WaitedTooLong(
                f"{subject.job_id}: waited {ms} ms for outstanding calls of its budget (deadlines.queue_ms); make fewer"
                " calls at once, or raise the budget in routing.yaml"
            )
        if not self._told:
            refuse = Refuse(subject, self._rate_limited(wait, refused=True))
            await flight.gateway.settlements.note(refuse, flight.loop.time() + LEAST_STORE_S)
        left_us = wait.until - flight.gateway.store.clock() if wait.until is not None else 0
        retry_s = max(1, -(-left_us // 1_000_000))
        return RateLimited(
            f"{wait.scope} {wait.scope_id} is at its limit of {_WORDS[wait.what]} (rate_limits in routing.yaml), and a"
            f" queue time of {ms} ms (deadlines.queue_ms) does not suffice; try again in {retry_s} s",
            retry_s,
        )

    def waited(self) -> Event | None:
        """`rate_limited`, where a rate limit has made this call wait; told once."""
        return None if self._waiting_for is None else self._rate_limited(self._waiting_for)

    def _rate_limited(self, wait: Wait, *, refused: bool = False) -> Event:
        flight = self._flight
        event = event_of(flight, "rate_limited")
        event.attempt = flight.subject.attempt
        why = f"{wait.scope} {wait.scope_id} was at its limit of {_WORDS[wait.what]}"
        event.decision = {"why": why, "scope": wait.scope, "name": wait.scope_id, "limit": wait.what}
        event.detail = {"waited_ms": round((flight.loop.time() - self._waiting_since) * 1000)}
        if refused:
            event.detail["refused"] = True
        return event

    # ── one admission ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def admit_once(self, *, probe: bool = False) -> Outcome:
        """Ask the store once, whoever waits."""
        flight = self._flight
        gateway, subject, request = flight.gateway, flight.subject, flight.request
        reservation = reservation_of(flight)
        command = Admit(subject, request, gateway.policy, gateway.known_content, reservation, gateway.store.clock())
        command.after, command.moved, command.ending = flight.unsettled, self._moved(), flight.ending
        command.waited, command.probe = self.waited(), probe
        if flight.visit is not None:
            command.ticket = flight.visit.ticket
        outcome = await self._commit(command)
        if outcome.kin:
            async with store_answers_by(flight.store_deadline()):
                await gateway.find_kin(subject, outcome.job_id)
            outcome = await self._commit(command)
        gateway.learn(subject, outcome)
        if outcome.serial:
            outcome = await self._replay(command)
        flight.count(outcome.after_microusd)
        if flight.unsettled is not None:
            flight.is_written(flight.unsettled)
        if probe:
            return outcome
        flight.way.moved = flight.unsettled = None
        if flight.visit is not None:
            flight.visit.ticket = None
        if outcome.granted is not None or outcome.cached:
            self.learn(outcome.at)
        if outcome.granted is not None:
            self.granted(outcome)
            flight.call_id, flight.tokens = reservation.call_id, outcome.granted.tokens
            flight.reserved_microusd = outcome.granted.amount_microusd
            flight.lowered, flight.called_seq = outcome.granted.lowered, outcome.called_seq
            gateway.settlements.opened(flight.call_id)
            flight.tries += 1
            flight.tries_here += 1
            if flight.tries == 1:
                gateway.flying.enter(subject)
        return outcome

    async def _commit(self, command: Admit) -> Outcome:
        """Raises StoreUnavailable when the store is not back within the queue time."""
        flight = self._flight
        until = flight.store_deadline()
        return await flight.gateway.store.commit(command, until=until, left=partial(self._never_sent, command))

    def _never_sent(self, command: Admit, outcome: Outcome) -> None:
        """The admission was committed after its caller had given up: settle it at 0."""
        if outcome.granted is not None:
            call_id = command.reservation.call_id
            why = "it was admitted after its caller had given up"
            self._flight.gateway.settlements.owe(call_id, NeverSent(call_id, outcome.job_id, why))

    async def _replay(self, command: Admit) -> Outcome:
        """Admit a request of an attempt after the first: alone in its job, and after the same request of an older attempt.

        Raises WaitedTooLong when that one does not end in the time that this call may take.
        """
        flight = self._flight
        gateway, subject, until = flight.gateway, flight.subject, flight.loop.time() + flight.total_s
        command.serial = True
        while True:
            async with gateway.flying.alone(subject.job_id, flight.store_deadline()):
                outcome = await self._commit(command)
            if not outcome.in_flight:
                return outcome
            if flight.gone():
                raise CallerLeft("the client left while an older attempt was still being answered")
            if not await gateway.flying.older_ends(gateway.store, subject, until):
                raise WaitedTooLong(
                    f"{subject.job_id}: an older attempt is still being answered the same request; its answer will be this"
                    " call's answer, so ask again"
                )
            flight.queued_at = flight.loop.time()  # this wait was for a provider

    def _moved(self) -> Event | None:
        if self._flight.way.moved is None:
            return None
        moved = event_of(self._flight, "fallback_taken")
        moved.decision = dict(self._flight.way.moved)
        return moved

    # ── let in, and over ────────────────────────────────────────────────────────────────────────────────────────────

    def granted(self, outcome: Outcome) -> None:
        """The next try is let in."""
        flight = self._flight
        self._limits, self._rates, self.left_microusd = outcome.limits, outcome.rates, outcome.left_microusd
        self._told, self._waiting_for = self._told or self._waiting_for is not None, None
        if flight.tries == 0:
            flight.gateway.loops.asked(flight.subject)

    def learn(self, at: int) -> None:
        """The request is durable since `at`: what it consists of need not be written again in that month."""
        gateway, request = self._flight.gateway, self._flight.request
        tenant_id, month = self._flight.subject.who.tenant_id, month_of(at)
        gateway.known_content.learn(tenant_id, month, request.links)
        if request.tools_sha256:
            gateway.known_content.learn_hashes(tenant_id, month, [bytes.fromhex(request.tools_sha256)])

    async def settle(self, spent: Spent, *, last: bool = True) -> Ended:
        """Write the end of the call; not `last`: the end of a try, before the call waits."""
        flight = self._flight
        gateway, subject = flight.gateway, flight.subject
        until = flight.loop.time() + flight.queue_s
        ended = await gateway.settlements.write(self.settlement(spent, last=last), until)
        self.left_microusd = ended.left_microusd
        warn(ended.alarmed)
        if last:
            gateway.loops.answered(subject, flight.request, spent)
        return ended

    def settlement(self, spent: Spent, *, last: bool = True) -> Settle:
        """The command that settles a try at what it drew on when it was admitted."""
        flight = self._flight
        alarms = flight.gateway.costs.alarms(flight.subject, self._limits)
        return Settle(flight.subject, spent, self._limits, self._rates, alarms, last)

    def settled(self) -> None:
        """What the last try was let in for is settled: others may have room now."""
        self._flight.gateway.lines.settled(self._drawn)

    def _drawn(self) -> Iterable[Key]:
        return _keys(self._flight.subject.who.tenant_id, self._limits, self._rates)

    def _ahead(self) -> Iterable[Key]:
        """The rows that the next try needs, as far as its request tells."""
        flight = self._flight
        policy, subject = flight.gateway.policy, flight.subject
        caller = caller_of(subject, flight.target.model)
        limits = policy.limits(caller, flight.gateway.store.clock())
        return _keys(subject.who.tenant_id, limits, policy.rates(caller))


def _keys(tenant_id: str, limits: Iterable[Limit], rates: Iterable[Rate]) -> Iterable[Key]:
    yield from ((tenant_id, limit.scope, limit.scope_id) for limit in limits)
    yield from (rate.key for rate in rates)


class Refuse(msgspec.Struct):
    """A command: a call is refused before it is made; its job says so, made for it if need be."""

    subject: Subject
    event: Event

    def locks(self) -> list[tuple[Any, Any]]:
        subject = self.subject
        found: list[tuple[Any, Any]] = [(JOB, subject.job_id)]
        if subject.external_id is not None and not subject.known:
            found.append((EXTERNAL, (subject.who.tenant_id, subject.external_id)))
        return found

    def decide(self, unit: Unit) -> None:
        job, _ = find_job(unit, self.subject)
        append(unit, job, self.event)
        why = str((self.event.decision or {}).get("why", self.event.event))
        if not self.subject.aside:
            close_unattributed(unit, job, ErrorFacts(self.event.event, why, retryable=True))
