"""The record that job code works on, such as an e-mail or a ticket, as the code itself says. It is never guessed."""

from contextvars import ContextVar
from types import TracebackType

from overnight.domain import check_identifier

from .execution import current
from .positions import Scope

_outside: ContextVar[str | None] = ContextVar("overnight_record", default=None)
"""The record of external programs and of code outside jobs; job code keeps its own in its scope."""


class about:
    """Name the record that the current branch works on: `overnight.about("mail-17")`.

    The events of the branch carry it in `about` from here on; branches that it spawns and steps that it calls begin with it.
    `with overnight.about("mail-17"): …` names it for the block. None ends it. In a step, it ends with the step.

    In an external job it is part of `job.headers` and of the events of effects. Raises BadInput for a text that is no
    identifier (1 to 200 letters, digits and `- _ . : / @ + = | # ~`).
    """

    def __init__(self, record: str | None) -> None:
        if record is not None:
            check_identifier(record, "about()")
        here = current()
        self._scope: Scope | None = None if here is None else here[1]
        self._before = current_record()
        _name(self._scope, record)

    def __enter__(self) -> "about":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _name(self._scope, self._before)


def _name(scope: Scope | None, record: str | None) -> None:
    if scope is None:
        _outside.set(record)
    else:
        scope.about = record


def current_record() -> str | None:
    """The record of the running code; None without one."""
    here = current()
    return _outside.get() if here is None else here[1].about
