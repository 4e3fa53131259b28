"""The execution of one job: its code as asyncio tasks, and its boundaries, which record everything durable.

A boundary that the history answers receives its recorded answer in recorded order. Any other goes live, and its answer is
delivered only when it is durable.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from typing import Any

import msgspec

from overnight.domain import Event, Recorded
from overnight.ledger import JobRow

from .background_tasks import BackgroundTasks
from .boundary_log import BoundaryLog
from .branch_scheduler import BranchScheduler
from .external_events import ExternalEvents
from .lease import Lease
from .positions import Position, Scope, current_scope
from .replay.history import fold, is_failure
from .replay.recovery import Recovery
from .replay.retained_answers import RetainedAnswers
from .replay.unhandled_failures import UnhandledFailures
from .run_state import JobEvicted, RunState
from .services import Services
from .stored_prompts import RenderedPrompts
from .task_registry import TaskRegistry


class NotInJob(RuntimeError):
    """This function requires a running job: run it with `overnight run` or `overnight.run(job, …)`."""


class BoundaryRequest(msgspec.Struct, frozen=True):
    """A request of job code at a boundary.

    `live` commits the answer. `settle` runs instead if the boundary was reached by an earlier worker and its branch is
    cancelled during the replay. `arguments` is the digest that tells an effect of an earlier attempt from another one at
    the same position.
    """

    kind: str
    name: str
    fingerprint: str
    live: Callable[[Position], Awaitable[Recorded]]
    settle: Callable[[Position], Coroutine[Any, Any, Any]] | None = None
    arguments: Callable[[], str] | None = None


class Execution:
    """Runs one leased job until it ends, parks or is evicted.

    `services`: those of the worker. `events`: the job's log so far. Boundaries use `log`, `scheduler`, `tasks` and
    `background`; these know neither each other's callers nor this class.
    """

    def __init__(self, services: Services, job: JobRow, events: list[Recorded], lease: Lease) -> None:
        self.services, self.job = services, job
        self.state = RunState(job.job_id, services.report)
        self.background = BackgroundTasks(self.state)
        self.log = BoundaryLog(services.store, job, fold(events), lease, self.state)
        self.scheduler = BranchScheduler(self.log, self.state, self.background, ExternalEvents(self.log))
        self.tasks = TaskRegistry(self.scheduler, self.background, self.state)
        self.recovery = Recovery(self.log, self.scheduler, self.tasks, self.state)
        self.retained = RetainedAnswers(self.log, self.scheduler, self.background)
        self.failures = UnhandledFailures()
        self.rendered_prompts = RenderedPrompts()

    # ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, body: Callable[[], Coroutine[Any, Any, Any]]) -> "asyncio.Task[Any] | None":
        """Run the job function. Returns its finished task, or None if the job has left (parked, fenced, diverged)."""
        context, scope, state = copy_context(), Scope(""), self.state
        context.run(current_scope.set, scope)
        context.run(current_execution.set, self)
        loop = asyncio.get_running_loop()
        # Not created by the task factory, which would make the job function a branch of itself.
        root: asyncio.Task[Any] = context.run(lambda: asyncio.Task(body(), loop=loop, context=context))
        self.tasks.add_branch(root, scope)
        if self.scheduler.replaying:
            self.background.start(self.recovery.run(root))
        leaving = asyncio.create_task(state.wait_evicted())
        await asyncio.wait({root, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if root.done() and not state.evicted and self.scheduler.replaying and not state.cancelling:
            await self.recovery.finish()
        if not state.evicted:
            self.tasks.finish_interrupted_effects()
            await self.tasks.wait_protected()
        evicted = state.evicted
        state.evict()
        await self.tasks.evict()
        if root.done() and not root.cancelled():
            root.exception()
        leaving.cancel()
        return None if evicted or not root.done() else root

    def cancel(self) -> None:
        """Cancel the job: its branches are cancelled as asyncio does, and calls in progress are recorded."""
        self.state.cancelling = True
        self.tasks.cancel("the job was cancelled")

    # ── boundaries ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def resolve(self, scope: Scope, request: BoundaryRequest) -> Recorded:
        """The answer to the next boundary of this scope: the recorded one, or the one that `live` commits."""
        answer = await self._resolve(scope, request)
        if is_failure(answer):
            self.failures.add(answer, scope)
        return answer

    async def _resolve(self, scope: Scope, request: BoundaryRequest) -> Recorded:
        self.state.check()
        self.scheduler.order.record_activity()
        position, history = scope.next(), self.log.history
        asked: dict[str, Any] = {"kind": request.kind, "name": request.name, "fingerprint": request.fingerprint}
        answer = history.answers.get(position)
        loose = position in history.retained or (answer is not None and answer.seq in history.loose)
        # Inside a step the arguments may differ: the earlier effect is the answer to the present request.
        if loose and request.arguments is not None and not scope.steps:
            asked["arguments"] = request.arguments()
        changed = history.difference(position, asked)
        if changed and not loose:
            await self.log.diverge(changed)
        if answer is not None and not changed:
            if position not in self.recovery.pending:
                return answer
            replayed = await self.recovery.wait_answer(position, scope)
            if replayed is not None:
                return replayed
        if self.recovery.holds(position):
            entered = request.settle is not None and history.at(position).entry is not None
            settle = functools.partial(request.settle, position) if entered and request.settle is not None else None
            await self.recovery.hold(scope, settle)
            self.state.check()
        if (retained := history.recall(position, asked)) is not None:
            return await self.retained.replay(scope, position, retained)
        if not self.scheduler.replaying:  # a step whose inside is replayed begins at once
            await self.retained.wait_drained()
        if history.retained and position not in history.retained and request.kind in {"step", "effect", "child"}:
            history.find(position, asked if request.arguments is None else {**asked, "arguments": request.arguments()})
            if (retained := history.recall(position, asked)) is not None:
                return await self.retained.replay(scope, position, retained)
        return await request.live(position)

    def record_value(self, scope: Scope, name: str, make: Callable[[], Any]) -> Any:
        """A recorded value, without waiting: it is durable before anything that follows it on this worker."""
        self.state.check()
        history = self.log.history
        position, asked = scope.next(), {"kind": "value", "name": name}
        answer = history.answers.get(position)
        if answer is not None:
            changed = history.difference(position, asked)
            if changed and answer.seq not in history.loose:
                self.background.start(self.log.diverge(changed))
                raise JobEvicted(self.job.job_id)
            if not changed:
                return msgspec.json.decode(answer.content or b"null")
        retained = history.recall(position, asked)
        if retained is None:
            event = Event("value_recorded", kind="value", name=name, attempt=self.job.attempt, step=scope.name)
            event.about = scope.about
            content = msgspec.json.encode(make())
        else:
            event, content = self.log.kept_event(scope, history.retained[position]), retained.content

        def durable(seq: int) -> None:
            if retained is None:
                path, ordinal = position
                recorded = Recorded(self.job.job_id, seq, 0, event, path=path, ordinal=ordinal, content=content)
                self.log.add_answer(scope, recorded)
            else:
                history.keep(position, seq)

        self.log.defer(event, position, content=content if retained is None else None, then=durable)
        return msgspec.json.decode(content or b"null")

    async def read_content(self, answer: Recorded) -> bytes | None:
        """The JSON of an answer. A large one is fetched; meanwhile its branch counts as active."""
        if answer.content is not None or answer.facts.output_ref is None:
            return answer.content
        with self.scheduler.order.active(), self.scheduler.in_progress():
            return await self.log.ledger.answer(answer)


# ── the running job of a context ─────────────────────────────────────────────────────────────────────────────────────

current_execution: ContextVar[Execution | None] = ContextVar("overnight_execution", default=None)


def current() -> tuple[Execution, Scope] | None:
    """The execution and scope of the running job code; None outside jobs."""
    execution, scope = current_execution.get(), current_scope.get()
    return None if execution is None or scope is None else (execution, scope)


def in_job(caller: str) -> tuple[Execution, Scope]:
    """As `current`. Raises NotInJob outside jobs; `caller` names the function that needs one."""
    found = current()
    if found is None:
        raise NotInJob(
            f"{caller} needs a running job: start it with `overnight run module:job`, or overnight.run(job, …)"
        )
    return found


def task_factory(
    loop: asyncio.AbstractEventLoop,
    coroutine: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
    context: Context | None = None,
    **options: Any,
) -> "asyncio.Task[Any]":
    """Give every task that job code spawns its position. Tasks outside jobs are made as usual."""
    scope = current_scope.get() if context is None else context.get(current_scope, None)
    if scope is None:
        return asyncio.Task(coroutine, loop=loop, context=context, **options)  # type: ignore[arg-type]
    branch = scope.branch()
    context = context.copy() if context is not None else copy_context()
    context.run(current_scope.set, branch)
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, context=context, **options)  # type: ignore[arg-type]
    execution = context.get(current_execution, None)
    if execution is not None:
        execution.tasks.add_branch(task, branch)
    return task
