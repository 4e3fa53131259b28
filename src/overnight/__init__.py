"""Overnight: the operations layer under AI agents.

    import overnight

    @overnight.step
    async def read_inbox() -> list[str]: ...

    @overnight.effect
    def send(to: str, body: str, idempotency_key: str) -> str: ...

    @overnight.job
    async def triage() -> int:
        for mail in await read_inbox():
            draft = await overnight.chat(mail, task="draft")
            await send("someone@example.com", draft.text)
        return 0

Run it with `overnight run module:triage`; afterwards `overnight explain last` tells what happened.
"""

from importlib import import_module

TYPE_CHECKING = False  # as type checkers know it; `typing` itself would be half of the time that this module takes
if TYPE_CHECKING:
    from typing import Any

    from .app import attach as attach
    from .app import run as run
    from .domain import BadInput as BadInput
    from .domain import OvernightError as OvernightError
    from .jobs import CANNOT_TELL as CANNOT_TELL
    from .jobs import NOT_DONE as NOT_DONE
    from .jobs import Approval as Approval
    from .jobs import ChatAnswer as ChatAnswer
    from .jobs import Done as Done
    from .jobs import EffectFailed as EffectFailed
    from .jobs import HumanAnswer as HumanAnswer
    from .jobs import JobFailed as JobFailed
    from .jobs import JobParked as JobParked
    from .jobs import ModelFailed as ModelFailed
    from .jobs import NotDone as NotDone
    from .jobs import Retry as Retry
    from .jobs import StepFailed as StepFailed
    from .jobs import about as about
    from .jobs import approval as approval
    from .jobs import ask as ask
    from .jobs import chat as chat
    from .jobs import effect as effect
    from .jobs import job as job
    from .jobs import now as now
    from .jobs import prompt as prompt
    from .jobs import random as random
    from .jobs import sleep as sleep
    from .jobs import step as step
    from .jobs import timeout as timeout
    from .jobs import uuid as uuid

__version__ = "0.1.0"

# Imported on first use, so that `import overnight` and the command line stay quick.
_HOMES = {
    "overnight.app": ("attach", "run"),
    "overnight.domain": ("BadInput", "OvernightError"),
    "overnight.jobs": (
        "CANNOT_TELL",
        "NOT_DONE",
        "Approval",
        "ChatAnswer",
        "Done",
        "EffectFailed",
        "HumanAnswer",
        "JobFailed",
        "JobParked",
        "ModelFailed",
        "NotDone",
        "Retry",
        "StepFailed",
        "about",
        "approval",
        "ask",
        "chat",
        "effect",
        "job",
        "now",
        "prompt",
        "random",
        "sleep",
        "step",
        "timeout",
        "uuid",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)  # noqa: PLE0605  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> "Any":
    if name not in _HOME_OF:
        raise AttributeError(f"module 'overnight' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
