"""One job while it runs: its branches, its replay, its parking, its eviction.

Job code runs as plain asyncio tasks. Everything durable passes through `ask`: a boundary that the history answers is given
its recorded answer in recorded order; any other goes live, and its answer is handed on only when it is durable. `replay.py` gives
back what is recorded, `turns.py` keeps the order.
"""

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import copy_context
from typing import Any

import msgspec

from overnight.domain import ErrorFacts, Event, Fenced, Recorded, StoreUnavailable
from overnight.ledger import Append, JobRow, Ledger
from overnight.store import Command, Store

from .commands import Park
from .delivery_order import Turns
from .external_events import News
from .history import History, fold, is_failure, position_of, within
from .lease import Lease, LeaseLost
from .positions import Position, Scope, here
from .recovery import Replay, missing
from .retained_answers import Keeping, kept
from .services import Services
from .task_registry import Branches, JobEvicted

HOT_WAIT_US = 1_000_000


class Asked(msgspec.Struct, frozen=True):
    """What job code asks for at a boundary. `live` commits the answer. `settle` is done instead when the boundary was begun by
    an earlier worker and its branch is cancelled before the replay is over. `arguments` is the digest that tells an effect of
    an earlier attempt from another one at the same place."""

    kind: str
    name: str
    fingerprint: str
    live: Callable[[Position], Awaitable[Recorded]]
    settle: Callable[[Position], Coroutine[Any, Any, Any]] | None = None
    arguments: Callable[[], str] | None = None


class Waiting(msgspec.Struct):
    """A boundary that only the outside, or time, can answer."""

    facts: dict[str, Any]
    future: "asyncio.Future[Recorded]"
    scope: Scope


class Execution:
    """Runs one leased job to its end, or until it parks. `outcome` is set by `run`."""

    def __init__(self, services: Services, job: JobRow, events: list[Recorded], lease: Lease) -> None:
        self.services, self.job, self.lease = services, job, lease
        self.store: Store = services.store
        self.ledger = Ledger(self.store)
        self.history: History = fold(events)
        self.evicted = False
        self.cancelling = False
        self.left = asyncio.Event()
        self.branches = Branches(self)
        self._failures: list[tuple[Recorded, Scope, list[Any]]] = []
        self._in_flight = 0
        self.waits: dict[Position, Waiting] = {}
        self.alarms: dict[Position, int] = {}
        self.timeouts = 0
        self.replay = Replay(self, self.history)
        self.news = News(self)
        self.keeping = Keeping(self)
        self.turns = Turns(self.branches.chore, self.news.listen, self.consider_parking)
        self._parking = False
        self._diverging = False

    # ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, body: Callable[[], Coroutine[Any, Any, Any]]) -> "asyncio.Task[Any] | None":
        """The finished task of the job function, or None when the job has left (parked, fenced, diverged)."""
        context, scope = copy_context(), Scope(self, "")
        context.run(here.set, scope)
        loop = asyncio.get_running_loop()
        # Made directly: through the factory the job function would become a branch of itself.
        root: asyncio.Task[Any] = context.run(lambda: asyncio.Task(body(), loop=loop, context=context))
        self.branches.spawned(root, scope)
        if self.replay.active:
            self.branches.chore(self.replay.run(root))
        leaving = asyncio.create_task(self.left.wait())
        await asyncio.wait({root, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if root.done() and not self.evicted and self.replay.active and not self.cancelling:
            await self.turns.settled()
            if self.replay.pending and not self.evicted:
                await self.miss(next(iter(self.replay.pending.values())), hold=False)
        if not self.evicted:
            self.branches.see_through()
            await self.branches.land()
        gone = self.evicted
        self.evicted = True
        await self.branches.evict()
        if root.done() and not root.cancelled():
            root.exception()
        leaving.cancel()
        return None if gone or not root.done() else root

    def leave(self) -> None:
        """Evict: every branch is cancelled, and from now on every boundary refuses and writes nothing."""
        self.evicted = True
        self.left.set()

    def cancel(self) -> None:
        """Somebody asked for the job to stop: branches are cancelled as asyncio does; calls in flight are recorded."""
        self.cancelling = True
        self.branches.cancel("the job was cancelled")

    # ── boundaries ───────────────────────────────────────────────────────────────────────────────────────────────────

    def refuse_if_evicted(self) -> None:
        if self.evicted:
            raise JobEvicted(self.job.job_id)

    def check_lease(self) -> None:
        """Raise LeaseLost when the job has left, or its lease may have run out. To be the last statement before a call that
        changes or costs something outside, in the thread that makes the call."""
        if self.evicted:
            raise LeaseLost(f"{self.job.job_id} has left this worker")
        self.lease.check()

    async def ask(self, scope: Scope, asked: Asked) -> Recorded:
        """The answer to the next boundary of this scope: the recorded one, or what `live` commits."""
        answer = await self._answer(scope, asked)
        if is_failure(answer):
            self._failures.append((answer, scope, scope.reached()))
        return answer

    async def _answer(self, scope: Scope, asked: Asked) -> Recorded:
        self.refuse_if_evicted()
        self.turns.moved()
        position, history = scope.next(), self.history
        same: dict[str, Any] = {"kind": asked.kind, "name": asked.name, "fingerprint": asked.fingerprint}
        answer = history.answers.get(position)
        loose = position in history.aside or (answer is not None and answer.seq in history.loose)
        # Inside of a step the code is free: what it had done stands for what it asks this time.
        if loose and asked.arguments is not None and not scope.steps:
            same["arguments"] = asked.arguments()
        changed = history.difference(position, same)
        if changed and not loose:
            await self.diverge(changed)
        if answer is not None and not changed:
            given = answer if position not in self.replay.pending else await self.replay.answer(position, scope)
            if given is not None:
                return given
        if self.replay.holds(position):
            begun = asked.settle is not None and history.at(position).entry is not None
            settle = functools.partial(asked.settle, position) if begun and asked.settle is not None else None
            await self.replay.hold(scope, settle)
            self.refuse_if_evicted()
        if (again := history.recall(position, same)) is not None:
            return await self.keeping.give(scope, position, again)
        if not self.replay.active:  # a step whose inside is replayed begins at once
            await self.keeping.last()
        if history.aside and position not in history.aside and asked.kind in {"step", "effect", "child"}:
            history.find(position, same if asked.arguments is None else {**same, "arguments": asked.arguments()})
            if (again := history.recall(position, same)) is not None:
                return await self.keeping.give(scope, position, again)
        return await asked.live(position)

    def begun(self, scope: Scope, position: Position) -> Recorded | None:
        """What says that the boundary was begun in an earlier life of the job, or in an earlier attempt that asked the same."""
        aside = self.history.aside.get(position)
        if aside is not None and aside.entry is not None:
            self.ride(kept(self, scope, aside, begun=True), position)
            self.history.keep(position, None)
        return self.history.entries.get(position)

    def value(self, scope: Scope, name: str, make: Callable[[], Any]) -> Any:
        """A recorded value, at once: it is durable before anything that follows it on this worker."""
        self.refuse_if_evicted()
        position, asked = scope.next(), {"kind": "value", "name": name}
        answer = self.history.answers.get(position)
        if answer is not None:
            changed = self.history.difference(position, asked)
            if changed and answer.seq not in self.history.loose:
                self.branches.chore(self.diverge(changed))
                raise JobEvicted(self.job.job_id)
            if not changed:
                return msgspec.json.decode(answer.content or b"null")
        again = self.history.recall(position, asked)
        if again is None:
            event = Event("value_recorded", kind="value", name=name, attempt=self.job.attempt, step=scope.name)
            content = msgspec.json.encode(make())
        else:
            event, content = kept(self, scope, self.history.aside[position]), again.content

        def durable(seq: int) -> None:
            if again is None:
                self.remember(scope, Recorded(self.job.job_id, seq, 0, event, *position, content=content))
            else:
                self.history.keep(position, seq)

        self.ride(event, position, content=content if again is None else None, then=durable)
        return msgspec.json.decode(content or b"null")

    async def commit(self, command: Command[Any]) -> Any:
        """Write as this job's worker; see `unless_gone`."""
        self.refuse_if_evicted()
        return await self.unless_gone(self.store.commit(command))

    async def unless_gone(self, writing: Coroutine[Any, Any, Any]) -> Any:
        """Await it. When the lease is lost or the store is gone the job leaves, and nothing goes on."""
        try:
            return await writing
        except (Fenced, StoreUnavailable) as error:
            self.services.report(self.job.job_id, error)
            self.leave()
            raise JobEvicted(self.job.job_id) from None

    async def record(
        self,
        event: Event,
        position: Position,
        fingerprint: str | None = None,
        content: bytes | None = None,
    ) -> Recorded:
        """Commit an event at a position; as read back."""
        job_id = self.job.job_id
        command = Append(job_id, event, content, self.job.lease_epoch, position[0], position[1], fingerprint)
        seq = await self.commit(command)
        return Recorded(job_id, seq, 0, event, position[0], position[1], fingerprint, content, self.job.tenant_id)

    def ride(
        self,
        event: Event,
        position: Position,
        fingerprint: str | None = None,
        content: bytes | None = None,
        then: Callable[[int], None] | None = None,
    ) -> None:
        """Write an event no later than anything this worker commits next; `then` is called with its seq."""
        self.refuse_if_evicted()
        epoch = self.job.lease_epoch
        self.ride_along(Append(self.job.job_id, event, content, epoch, position[0], position[1], fingerprint), then)

    def ride_along(self, command: Append, then: Callable[[int], None] | None = None) -> None:
        """As `ride`, for an event that answers no boundary."""
        self.store.ride(command).add_done_callback(functools.partial(self._rode, then))

    def _rode(self, then: Callable[[int], None] | None, future: "asyncio.Future[int]") -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            if then is not None:
                then(future.result())
        elif not self.evicted:
            self.services.report(self.job.job_id, error)
            self.leave()

    @contextlib.contextmanager
    def flight(self) -> Generator[None]:
        """Something of this job is under way; it does not park meanwhile."""
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1
            self.consider_parking()

    async def turn(self, seq: int) -> None:
        """Wait until this answer may be handed on: one at a time, as recorded, the branches coming to rest in between."""
        if not self.alone():
            await self.turns.enter(seq)

    def alone(self) -> bool:
        """Nobody can tell in which order answers are handed to a single branch that no timeout can cut short."""
        return len(self.branches) <= 1 and not self.timeouts

    async def content(self, answer: Recorded) -> bytes | None:
        """The JSON of an answer. A large one is fetched; meanwhile its branch is on the move."""
        if answer.content is not None or answer.facts.output_ref is None:
            return answer.content
        with self.turns.moving(), self.flight():
            return await self.ledger.answer(answer)

    def remember(self, scope: Scope, answer: Recorded) -> None:
        """Keep an answer inside of a step: a retry of the step may need it."""
        place = position_of(answer)
        if scope.steps and place is not None:
            self.history.answers[place] = answer

    def begin(self, position: Position, entry: Recorded) -> None:
        """Something outside was asked."""
        self.history.entries[position] = entry
        self.history.aside.pop(position, None)

    async def set_aside(self, since: int, stale: list[int] | None = None, step: Position | None = None) -> None:
        """What was answered from `since` on is not replayed, and what is stale is given to nobody any more; with `step`, inside
        of that step."""
        event = Event("answers_dropped", attempt=self.job.attempt, detail={"seqs": stale or [], "since": since})
        if step is not None:
            event.detail = {**(event.detail or {}), "position": {"path": step[0], "ordinal": step[1]}}
        await self.commit(Append(self.job.job_id, event, None, self.job.lease_epoch))
        self.history.set_aside(since, stale or [], step)
        self.replay.prune()

    def unhandled(self, step: Position | None = None) -> list[int]:
        """The seqs of the failures that the code has asked for nothing after, on their path and on those it branched off from;
        with `step`, inside of that step."""
        found = [
            (answer, scope, then) for answer, scope, then in self._failures if not step or within(scope.path, step)
        ]
        return [answer.seq for answer, scope, then in found if scope.reached() == then]

    async def miss(self, answer: Recorded, *, hold: bool = True) -> None:
        """The code no longer asks for what is recorded. In a retry it may not; otherwise it diverges."""
        if answer.seq in self.history.loose:
            await self.set_aside(answer.seq)
        else:
            await self.diverge(missing(answer), hold=hold)

    async def diverge(self, changed: dict[str, Any], *, hold: bool = True) -> None:
        """Park the job with the first difference found. With `hold`, the asking branch never gets an answer."""
        if self._diverging:
            await asyncio.get_running_loop().create_future()
        self._diverging = True
        event = Event("diverged", attempt=self.job.attempt, name=changed.get("boundary"), detail=changed)
        event.decision = {"why": changed.get("why")}
        wait: dict[str, Any] = {"for": "divergence", **changed}
        await self.commit(Park(self.job.job_id, self.job.lease_epoch, [wait], [event]))
        self.leave()
        if hold:
            await asyncio.get_running_loop().create_future()

    # ── parking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def wait_outside(self, scope: Scope, position: Position, facts: dict[str, Any]) -> Recorded:
        """The answer to a boundary that only the outside or time can give. Meanwhile the job may park."""
        early = self.history.answers.get(position) or self.news.decided.get(facts.get("review_id", ""))
        if early is not None:
            await self.turn(early.seq)
            return early
        future: asyncio.Future[Recorded] = asyncio.get_running_loop().create_future()
        facts = {**facts, "path": position[0], "ordinal": position[1]}
        self.waits[position] = Waiting(facts, future, scope)
        self.consider_parking()
        try:
            return await future
        finally:
            self.waits.pop(position, None)

    def busy(self) -> bool:
        """Whether anything is under way. A step that waits inside of itself is not."""
        scopes = [wait.scope for wait in self.waits.values()] + self.replay.scopes_waiting()
        return self.news.hearing or self._in_flight > len({id(step) for scope in scopes for step in scope.steps})

    def consider_parking(self) -> None:
        if self.waits and not self._parking and not self.evicted and not self.replay.active and not self.busy():
            self._parking = True
            self.branches.chore(self._park_when_idle())

    async def _park_when_idle(self) -> None:
        await self.turns.settled()
        self._parking = False
        if self.busy() or not self.waits or self.evicted or self.replay.active or self.cancelling or self.turns.giving:
            return
        due = [wait.facts["due_at"] for wait in self.waits.values() if wait.facts.get("due_at") is not None]
        due += self.alarms.values()
        if due and min(due) - self.store.clock() < HOT_WAIT_US:
            return
        waits = [wait.facts for wait in self.waits.values()]
        waits += [{"for": "timer", "due_at": at, "path": p, "ordinal": o} for (p, o), at in self.alarms.items()]
        with contextlib.suppress(JobEvicted):
            if await self.commit(Park(self.job.job_id, self.job.lease_epoch, waits)):
                self.leave()


def error_facts(error: BaseException) -> ErrorFacts:
    """An exception as facts: its class and the first 500 characters of its message."""
    return ErrorFacts(type(error).__name__, str(error)[:500] or type(error).__name__)
