"""Where in a job's code a boundary stands: a path of branches and steps, and an ordinal on that path.

    ""          the job function             "/2"      the third branch (task) it spawned
    "#5"        inside its sixth boundary, a step      "/2#0/1"  a branch of a step of a branch

A branch's path is fixed when it is spawned, so it does not depend on how branches interleave.
"""

import asyncio
from collections.abc import Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .execution import Execution

Position = tuple[str, int]


class Scope:
    """The place that the running code has reached. `steps` are the steps it stands in, outermost first; `trunk` is the path that
    a branch was spawned from."""

    __slots__ = ("branches", "execution", "name", "ordinal", "path", "steps", "trunk")

    def __init__(
        self, execution: "Execution", path: str, steps: tuple["Scope", ...] = (), name: str | None = None
    ) -> None:
        self.execution, self.path, self.steps, self.name = execution, path, steps, name
        self.trunk: Scope | None = None
        self.ordinal = 0
        self.branches = 0

    def next(self) -> Position:
        """The position of the next boundary on this path."""
        position = (self.path, self.ordinal)
        self.ordinal += 1
        return position

    def branch(self) -> "Scope":
        """The scope of the next task spawned from here."""
        scope = Scope(self.execution, f"{self.path}/{self.branches}", self.steps, self.name)
        scope.trunk = self
        self.branches += 1
        return scope

    def reached(self) -> list[tuple[str, int, int]]:
        """How far the code has come on this path and on those it branched off from, up to the step it stands in."""
        found: list[tuple[str, int, int]] = []
        scope: Scope | None = self
        while scope is not None:
            found.append((scope.path, scope.ordinal, scope.branches))
            scope = scope.trunk
        return found

    def inside(self, ordinal: int, name: str) -> "Scope":
        """The scope of the body of the step at `ordinal`."""
        scope = Scope(self.execution, f"{self.path}#{ordinal}", (), name)
        scope.steps = (*self.steps, scope)
        return scope


here: ContextVar[Scope | None] = ContextVar("overnight_scope", default=None)


def enclosing(path: str) -> list[Position]:
    """The positions of the steps that a path lies in, innermost first: `/2#0/1#3` lies in ("/2#0/1", 3) and ("/2", 0)."""
    found: list[Position] = []
    end = len(path)
    while (cut := path.rfind("#", 0, end)) >= 0:
        number = path[cut + 1 :].split("/", 1)[0].split("#", 1)[0]
        found.append((path[:cut], int(number)))
        end = cut
    return found


def task_factory(
    loop: asyncio.AbstractEventLoop,
    coroutine: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
    context: Context | None = None,
    **options: Any,
) -> "asyncio.Task[Any]":
    """Give every task that job code spawns its path. Tasks outside of jobs are made as usual."""
    scope = here.get() if context is None else context.get(here, None)
    if scope is None:
        return asyncio.Task(coroutine, loop=loop, context=context, **options)  # type: ignore[arg-type]
    branch = scope.branch()
    context = context.copy() if context is not None else copy_context()
    context.run(here.set, branch)
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, context=context, **options)  # type: ignore[arg-type]
    scope.execution.branches.spawned(task, branch)
    return task
