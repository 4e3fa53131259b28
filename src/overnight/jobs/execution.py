"""One job while it runs: its branches, its replay, its parking, its eviction.

Job code runs as plain asyncio tasks. Everything durable passes through `ask`: a boundary that the history answers is given
its recorded answer in recorded order; any other goes live, and its answer is handed on only when it is durable. `replay.py` gives
back what is recorded, `turns.py` keeps the order.
"""

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any

import msgspec

from overnight.domain import ErrorFacts, Event, Fenced, Recorded, StoreUnavailable
from overnight.ledger import Append, JobRow, Ledger
from overnight.store import Command, Store

from .commands import Hear, Park
from .history import History, difference, fold, position_of
from .positions import Position, Scope, here
from .replay import Replay, Work, missing
from .services import Services
from .turns import Turns

HOT_WAIT_US = 1_000_000
EVICTION_TRIES = 50
NO_NEWS = frozenset({"timer", "budget"})
FROM_OUTSIDE = frozenset({"review_decided", "child_finished", "signal_received", "tool_succeeded", "tool_failed"})


class JobEvicted(BaseException):
    """The job leaves this worker. It is not an error, and it cannot be caught by `except Exception`."""


class Waiting(msgspec.Struct):
    """A boundary that only the outside, or time, can answer."""

    facts: dict[str, Any]
    future: "asyncio.Future[Recorded]"
    scope: Scope


class Execution:
    """Runs one leased job to its end, or until it parks. `outcome` is set by `run`."""

    def __init__(self, services: Services, job: JobRow, events: list[Recorded]) -> None:
        self.services, self.job = services, job
        self.store: Store = services.store
        self.ledger = Ledger(self.store)
        self.history: History = fold(events)
        self.heard_seq = self.history.last_seq
        self.evicted = False
        self.cancelling = False
        self.left = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._chores: set[asyncio.Task[Any]] = set()
        self._protected: set[asyncio.Task[Any]] = set()
        self._in_flight = 0
        self.waits: dict[Position, Waiting] = {}
        self.alarms: dict[Position, int] = {}
        self.timeouts = 0
        self._decided: dict[str, Recorded] = {}
        self.replay = Replay(self, self.history)
        self.turns = Turns(self.chore, self._listen, self.consider_parking)
        self._hearing = 0
        self._reading = asyncio.Lock()
        self._parking = False
        self._diverging = False

    # ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, body: Callable[[], Coroutine[Any, Any, Any]]) -> "asyncio.Task[Any] | None":
        """The finished task of the job function, or None when the job has left (parked, fenced, diverged)."""
        context = copy_context()
        context.run(here.set, Scope(self, ""))
        loop = asyncio.get_running_loop()
        # Made directly: through the factory the job function would become a branch of itself.
        root: asyncio.Task[Any] = context.run(lambda: asyncio.Task(body(), loop=loop, context=context))
        self.spawned(root)
        if self.replay.active:
            self.chore(self.replay.run(root))
        leaving = asyncio.create_task(self.left.wait())
        await asyncio.wait({root, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if root.done() and not self.evicted and self.replay.active and not self.cancelling:
            await self.turns.settled()
            if self.replay.pending and not self.evicted:
                await self.diverge(missing(next(iter(self.replay.pending.values()))), hold=False)
        if not self.evicted:
            self.see_through()
        if self._protected and not self.evicted:
            await asyncio.wait(list(self._protected))
        gone = self.evicted
        self.evicted = True
        await self._evict(root)
        leaving.cancel()
        return None if gone or not root.done() else root

    def spawned(self, task: "asyncio.Task[Any]") -> None:
        """Job code has a new branch."""
        self.turns.moved()
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        if self.evicted:
            task.cancel()

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self.turns.moved()
        self._tasks.discard(task)
        self.consider_parking()

    def chore(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Work of the execution itself, outside of the job's own context."""
        task = asyncio.get_running_loop().create_task(coroutine, context=Context())
        self._chores.add(task)
        task.add_done_callback(self._chore_ended)
        return task

    def _chore_ended(self, task: "asyncio.Task[None]") -> None:
        self._chores.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, JobEvicted):
            self.services.report(self.job.job_id, error)
            self.leave()

    async def protect(self, work: Work) -> Any:
        """Await work that goes on to its durable end even when the branch that asked for it is cancelled."""
        task = self._fly(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_retrieve)
            raise

    def _fly(self, work: Work) -> "asyncio.Task[Any]":
        async def flying() -> Any:
            with self.flight():
                return await work()

        task = asyncio.get_running_loop().create_task(flying(), context=Context())
        self._protected.add(task)
        task.add_done_callback(self._protected.discard)
        return task

    def see_through(self) -> None:
        """Find out about the effects that an earlier worker had under way when it was lost, and that nobody here awaits."""
        for work in self.replay.cut_short:
            self._fly(work).add_done_callback(_retrieve)
        self.replay.cut_short.clear()

    async def _evict(self, root: "asyncio.Task[Any]") -> None:
        for _ in range(EVICTION_TRIES):
            alive = [task for task in self._tasks if not task.done()]
            if not alive:
                break
            for task in alive:
                task.cancel("the job leaves this worker")
            await asyncio.wait(alive, timeout=0.1)
        for chore in [*self._chores, *self._protected]:
            chore.cancel()
        if root.done() and not root.cancelled():
            root.exception()

    def leave(self) -> None:
        """Evict: every branch is cancelled, and from now on every boundary refuses and writes nothing."""
        self.evicted = True
        self.left.set()

    def cancel(self) -> None:
        """Somebody asked for the job to stop: branches are cancelled as asyncio does; calls in flight are recorded."""
        self.cancelling = True
        for task in list(self._tasks):
            task.cancel("the job was cancelled")

    # ── boundaries ───────────────────────────────────────────────────────────────────────────────────────────────────

    def refuse_if_evicted(self) -> None:
        if self.evicted:
            raise JobEvicted(self.job.job_id)

    async def ask(
        self,
        scope: Scope,
        kind: str,
        name: str,
        fingerprint: str,
        live: Callable[[Position], Awaitable[Recorded]],
        settle: Callable[[Position], Coroutine[Any, Any, Any]] | None = None,
    ) -> Recorded:
        """The answer to the next boundary of this scope: the recorded one, or what `live` commits.

        `settle` is done instead of `live` when the boundary was begun by an earlier worker and its branch is cancelled before
        the replay is over.
        """
        self.refuse_if_evicted()
        self.turns.moved()
        position = scope.next()
        answer = self.history.answers.get(position)
        known = answer or self.history.entries.get(position)
        if known is not None:
            changed = difference(known, {"kind": kind, "name": name, "fingerprint": fingerprint})
            if changed:
                await self.diverge(changed)
        if answer is not None:
            return answer if position not in self.replay.pending else await self.replay.answer(position, scope)
        if self.replay.holds(position):
            begun = settle is not None and position in self.history.entries
            await self.replay.hold(scope, functools.partial(settle, position) if begun and settle is not None else None)
            self.refuse_if_evicted()
        return await live(position)

    def value(self, scope: Scope, name: str, make: Callable[[], Any]) -> Any:
        """A recorded value, at once: it is durable before anything that follows it on this worker."""
        self.refuse_if_evicted()
        position = scope.next()
        answer = self.history.answers.get(position)
        if answer is not None:
            changed = difference(answer, {"kind": "value", "name": name})
            if changed:
                self.chore(self.diverge(changed))
                raise JobEvicted(self.job.job_id)
            return msgspec.json.decode(answer.content or b"null")
        made = make()
        event = Event("value_recorded", kind="value", name=name, attempt=self.job.attempt, step=scope.name)
        self.ride(event, position, content=msgspec.json.encode(made))
        return made

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
        self, event: Event, position: Position, fingerprint: str | None = None, content: bytes | None = None
    ) -> None:
        """Write an event no later than anything this worker commits next."""
        self.refuse_if_evicted()
        epoch = self.job.lease_epoch
        self.ride_along(Append(self.job.job_id, event, content, epoch, position[0], position[1], fingerprint))

    def ride_along(self, command: Append) -> None:
        """As `ride`, for an event that answers no boundary."""
        self.store.ride(command).add_done_callback(self._rode)

    def _rode(self, future: "asyncio.Future[Any]") -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None and not self.evicted:
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
        return len(self._tasks) <= 1 and not self.timeouts

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

    def drop(self, seqs: set[int]) -> None:
        """A step is tried again: these answers inside of it are not given any more."""
        for kept in (self.history.answers, self.history.entries, self.replay.pending):
            for place in [place for place, event in kept.items() if event.seq in seqs]:
                del kept[place]

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
        early = self.history.answers.get(position) or self._decided.get(facts.get("review_id", ""))
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
        return self._hearing > 0 or self._in_flight > len({id(step) for scope in scopes for step in scope.steps})

    def consider_parking(self) -> None:
        if self.waits and not self._parking and not self.evicted and not self.replay.active and not self.busy():
            self._parking = True
            self.chore(self._park_when_idle())

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

    async def hear(self) -> None:
        """Let in what arrived from outside while the job runs. A replay is not disturbed: the call stands until it is over."""
        if self.replay.active:
            return
        self._hearing += 1
        try:
            await self.commit(Hear(self.job.job_id, self.job.lease_epoch))
            await self._let_in()
        finally:
            self._hearing -= 1
        self.consider_parking()

    async def _listen(self) -> None:
        """News recorded before an own answer are handed on before it, as they will be in every replay."""
        if not self.replay.active and any(wait.facts["for"] not in NO_NEWS for wait in self.waits.values()):
            await self._let_in()

    async def _let_in(self) -> None:
        async with self._reading:
            for event in await self.ledger.events(self.job.job_id, self.heard_seq):
                self.heard_seq = event.seq
                if event.facts.event in FROM_OUTSIDE:
                    self._take_in(event)

    def _take_in(self, event: Recorded) -> None:
        place, review = position_of(event), (event.facts.detail or {}).get("review_id")
        # Kept, because the branch that waits for it may not have come there yet.
        if place is not None:
            self.history.answers.setdefault(place, event)
        elif review is not None:
            self._decided[review] = event
        waiting = self.waits.get(place) if place is not None else None
        if waiting is None and review is not None:
            waiting = next((w for w in self.waits.values() if w.facts.get("review_id") == review), None)
        if waiting is None:
            return
        if self.alone():
            _hand_on(waiting.future, event)
        else:
            self.turns.enter(event.seq).add_done_callback(lambda _: _hand_on(waiting.future, event))


def _hand_on(future: "asyncio.Future[Recorded]", event: Recorded) -> None:
    if not future.done():
        future.set_result(event)


def _retrieve(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()


def error_facts(error: BaseException) -> ErrorFacts:
    """An exception as facts: its class and the first 500 characters of its message."""
    return ErrorFacts(type(error).__name__, str(error)[:500] or type(error).__name__)
