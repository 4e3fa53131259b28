"""Faults of the product on purpose: a judge that finds nothing wrong with them judges nothing.

    python -m tests.crash.effect_storm --mutant ignores_unknown

Each breaks one rule in the processes that execute effects; those of the gateway begin with `gateway_`.
"""

import sys
from collections.abc import Callable
from typing import Any

from overnight import effects
from overnight.domain import ErrorFacts
from overnight.effects import claims, transitions
from overnight.jobs.effect_execution import EffectCall
from overnight.jobs.effect_records import Done, EffectWait


def _replace(name: str, method: Callable[..., Any]) -> None:
    setattr(EffectCall, name, method)


def _ignores_unknown() -> None:
    """An unknown outcome is taken for not done, and the effect is executed again."""

    async def find_out(self: Any, _unknown_since: int) -> None:
        await self._write(self._released)

    _replace("_find_out", find_out)


def _skips_claims() -> None:
    """Whoever asks may run, whoever else does."""
    claim = effects.claim

    def granted(unit: Any, job: Any, wanted: Any, position: Any) -> Any:
        row = unit.get(effects.EFFECT, (job.tenant_id, wanted.effect_key))
        return claim(unit, job, wanted, position) if row is None else effects.ClaimResult("run", row)

    effects.claim = granted


def _takes_unknown_for_done() -> None:
    """An unknown outcome becomes a success that nobody has seen."""

    async def find_out(self: Any, _unknown_since: int) -> Any:
        return await self._confirm(Done("guessed", "guessed"))

    _replace("_find_out", find_out)


def _takes_unknown_for_failed() -> None:
    """An unknown outcome becomes a failure, and nobody is asked."""

    async def find_out(self: Any, _unknown_since: int) -> Any:
        return await self._fail(ErrorFacts("failed", "it did not answer"))

    _replace("_find_out", find_out)


def _asks_nobody() -> None:
    """The job waits for a person, and the inbox has no card."""

    async def ask(_self: Any) -> Any:
        return EffectWait("quarantine", "rev_missing")

    _replace("_ask_person", ask)


def _ignores_settling() -> None:
    """A status check counts at once, while it may still lag."""

    async def ask(self: Any, _unknown_since: int) -> Any:
        return await self._check_status()

    _replace("_ask_status", ask)


def _forgets_unknown() -> None:
    """A claim of an unknown effect is granted."""
    claims.BEGUN = frozenset({"claimed", "committed"})
    sources, targets = transitions.TRANSITIONS["claim"].sources, transitions.TRANSITIONS["claim"].targets
    transitions.TRANSITIONS["claim"] = transitions.EffectTransition(sources | {"unknown"}, targets)


def _grants_to_all() -> None:
    """A claim of another holder is granted, too."""

    def granted(unit: Any, _job: Any, row: Any, wanted: Any, _position: Any) -> Any:
        row.claim_digest = claims._with_token(row, wanted.claim_digest)
        row.expires_at = unit.now + wanted.lease_us
        unit.change(effects.EFFECT, row)
        return effects.ClaimResult("run", row)

    claims._claimed_before = granted


MUTANTS: dict[str, Callable[[], None]] = {
    "ignores_unknown": _ignores_unknown,
    "skips_claims": _skips_claims,
    "takes_unknown_for_done": _takes_unknown_for_done,
    "takes_unknown_for_failed": _takes_unknown_for_failed,
    "asks_nobody": _asks_nobody,
    "ignores_settling": _ignores_settling,
    "gateway_forgets_unknown": _forgets_unknown,
    "gateway_grants_to_all": _grants_to_all,
}


def apply_mutant(name: str) -> None:
    """Break the product in this process; nothing for an empty name."""
    if name:
        MUTANTS[name]()


if __name__ == "__main__":  # `python -m tests.crash.effect_mutants MUTANT gateway …`: the command, broken
    from overnight.cli import main

    apply_mutant(sys.argv.pop(1))
    main()
