"""The status check of an effect, run outside of its job: it changes nothing."""

import sys
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from .definitions import converted, load_job
from .effect_decorator import Effect
from .effect_records import NOT_DONE, Done


class Unverifiable(Exception):
    """The status check cannot run in this process; the message says why, and who can."""


class StatusReport(msgspec.Struct, frozen=True):
    """What a status check found: done, not_done or cannot_tell. Until `settle_after_s` after the outcome became unknown, a call
    that is not done may still take effect."""

    outcome: Literal["done", "not_done", "cannot_tell"]
    provider_id: str | None = None
    settle_after_s: float = 0.0


async def check_status(code_ref: str | None, tool: str, key: str, arguments: bytes | None) -> StatusReport:
    """The outcome of an effect by the status check of the job's code, which is imported.

    Raises Unverifiable.
    """
    if code_ref is None:
        raise Unverifiable("its program runs outside Overnight; that program, or a person, can tell")
    if arguments is None:
        raise Unverifiable("its arguments are not recorded any more; a person can ask the provider")
    try:
        load_job(code_ref)
    except Exception as error:  # whatever the module of the job raised
        where = f"the code {code_ref} cannot be imported in this process"
        raise Unverifiable(f"{where} ({type(error).__name__}); run the command where its worker runs") from None
    effects = {id(each): each for each in _effects(tool, code_ref.rpartition(":")[0])}
    if len(effects) != 1:
        what = "several effects have this name" if effects else f"{code_ref} defines no such effect"
        raise Unverifiable(f"{what}; a person can ask the provider")
    (effect,) = effects.values()
    if effect.check is None:
        raise Unverifiable("it has no status check; a person can ask the provider")
    named: dict[str, Any] = msgspec.json.decode(arguments)
    found = await effect.ask_status(key, converted(effect.function, named), _no_lease)
    if isinstance(found, Done):
        return StatusReport("done", found.provider_id)
    return StatusReport("not_done" if found == NOT_DONE else "cannot_tell", settle_after_s=effect.settle_after_s)


def _effects(tool: str, module: str) -> Iterator[Effect[..., Any]]:
    """The effects of this name in imported modules: in that of the job if it has one, else in any."""
    for only in (True, False):
        found = False
        for name, loaded in list(sys.modules.items()):
            if only and name != module and getattr(loaded, "__file__", None) != module:
                continue
            for value in list(getattr(loaded, "__dict__", {}).values()):
                if isinstance(value, Effect) and value.tool == tool:
                    found = True
                    yield value
        if found:
            return


def _no_lease() -> None:
    """Do nothing: a status check that runs outside of its job needs no lease."""
