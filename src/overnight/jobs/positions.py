"""Positions: the place of a boundary in a job's code, as a path of branches and steps and an ordinal on that path.

    ""          the job function             "/2"      the third branch (task) it spawned
    "#5"        inside its sixth boundary, a step      "/2#0/1"  a branch of a step of a branch

A branch's path is fixed when it is spawned, so it does not depend on how branches interleave. Pure.
"""

from contextvars import ContextVar

Position = tuple[str, int]


class Scope:
    """The place of running code in a job.

    `steps`: the steps it is inside, outermost first. `trunk`: the scope that a branch was spawned from. `name`: the
    innermost step. `about`: the record that the code works on.
    """

    __slots__ = ("about", "branches", "name", "ordinal", "path", "steps", "trunk")

    def __init__(
        self, path: str, steps: tuple["Scope", ...] = (), name: str | None = None, about: str | None = None
    ) -> None:
        self.path, self.steps, self.name, self.about = path, steps, name, about
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
        scope = Scope(f"{self.path}/{self.branches}", self.steps, self.name, self.about)
        scope.trunk = self
        self.branches += 1
        return scope

    def reached(self) -> list[tuple[str, int, int]]:
        """How far the code has come on this path and on those it branched off from, up to the enclosing step."""
        found: list[tuple[str, int, int]] = []
        scope: Scope | None = self
        while scope is not None:
            found.append((scope.path, scope.ordinal, scope.branches))
            scope = scope.trunk
        return found

    def inside(self, ordinal: int, name: str) -> "Scope":
        """The scope of the body of the step at `ordinal`."""
        scope = Scope(f"{self.path}#{ordinal}", (), name, self.about)
        scope.steps = (*self.steps, scope)
        return scope


current_scope: ContextVar[Scope | None] = ContextVar("overnight_scope", default=None)
"""The scope of the running job code; None outside jobs."""


def enclosing(path: str) -> list[Position]:
    """The positions of the steps that a path lies in, innermost first: `/2#0/1#3` lies in ("/2#0/1", 3) and ("/2", 0)."""
    found: list[Position] = []
    end = len(path)
    while (cut := path.rfind("#", 0, end)) >= 0:
        number = path[cut + 1 :].split("/", 1)[0].split("#", 1)[0]
        found.append((path[:cut], int(number)))
        end = cut
    return found


def within(path: str, step: Position) -> bool:
    """Whether a path lies in the step."""
    inside = f"{step[0]}#{step[1]}"
    return path.startswith(inside) and path[len(inside) : len(inside) + 1] in {"", "/", "#"}
