"""Unhandled failures: recorded failures after which the code has reached no further boundary. A retry re-runs them."""

from overnight.domain import Recorded

from ..positions import Position, Scope, within


class UnhandledFailures:
    """The failures delivered to job code, each with the progress of the code at that time."""

    def __init__(self) -> None:
        self._delivered: list[tuple[int, Scope, list[tuple[str, int, int]]]] = []

    def add(self, answer: Recorded, scope: Scope) -> None:
        """A failure is delivered to the code at this scope."""
        self._delivered.append((answer.seq, scope, scope.reached()))

    def seqs(self, step: Position | None = None) -> list[int]:
        """The seqs of the failures that the code did not handle; with `step`, inside that step."""
        return [
            seq
            for seq, scope, reached in self._delivered
            if (step is None or within(scope.path, step)) and scope.reached() == reached
        ]
