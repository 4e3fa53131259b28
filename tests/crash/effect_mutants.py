"""Faults for the product on purpose: a judge that finds nothing wrong with them judges nothing.

    python -m tests.crash.effect_storm --mutant repeats_unknown

Each is a change of one rule, in the processes of the storm that execute effects.
"""

from collections.abc import Callable
from typing import Any

from overnight import effects
from overnight.jobs.effect_execution import EffectCall


def _ignores_unknown() -> None:
    """An unknown outcome is taken for not done, and the effect is claimed again."""

    async def find_out(self: Any, unknown_since: int) -> None:  # noqa: ARG001
        await self._write(self._released)

    EffectCall._find_out = find_out  # type: ignore[method-assign,assignment]


def _skips_claims() -> None:
    """Whoever asks may run: a claim is not looked at."""
    real = effects.claim

    def claim(unit: Any, job: Any, wanted: Any, position: Any) -> Any:
        row = unit.get(effects.EFFECT, (job.tenant_id, wanted.effect_key))
        if row is not None and row.state != "claimed":
            row.state = "failed"
        elif row is not None:
            return effects.ClaimResult("run", row)
        return real(unit, job, wanted, position)

    from overnight.jobs import effect_admission

    for module in (effects, effect_admission):
        if hasattr(module, "claim"):
            module.claim = claim  # type: ignore[attr-defined]


def _takes_unknown_for_done() -> None:
    """An unknown outcome becomes a success that nobody has seen."""

    async def find_out(self: Any, unknown_since: int) -> Any:  # noqa: ARG001
        from overnight.jobs.effect_records import Done

        return await self._confirm(Done("guessed", "guessed"))

    EffectCall._find_out = find_out  # type: ignore[method-assign,assignment]


def _takes_unknown_for_failed() -> None:
    """An unknown outcome becomes a failure, and nobody is asked."""

    async def find_out(self: Any, unknown_since: int) -> Any:  # noqa: ARG001
        from overnight.domain import ErrorFacts

        return await self._fail(ErrorFacts("failed", "it did not answer"))

    EffectCall._find_out = find_out  # type: ignore[method-assign,assignment]


def _asks_nobody() -> None:
    """The job waits for a person, and the inbox has no card."""

    async def ask(self: Any) -> Any:  # noqa: ARG001
        from overnight.jobs.effect_execution import EffectWait

        return EffectWait("quarantine", "rev_missing")

    EffectCall._ask_person = ask  # type: ignore[method-assign,assignment]


def _ignores_settling() -> None:
    """A status check counts at once, while the call may still take effect."""

    async def ask(self: Any, unknown_since: int) -> Any:  # noqa: ARG001
        return await self._check_status()

    EffectCall._ask_status = ask  # type: ignore[method-assign,assignment]


MUTANTS: dict[str, Callable[[], None]] = {
    "ignores_unknown": _ignores_unknown,
    "skips_claims": _skips_claims,
    "takes_unknown_for_done": _takes_unknown_for_done,
    "takes_unknown_for_failed": _takes_unknown_for_failed,
    "asks_nobody": _asks_nobody,
    "ignores_settling": _ignores_settling,
}


def apply_mutant(name: str) -> None:
    """Break the product in this process; nothing for an empty name."""
    if name:
        MUTANTS[name]()
