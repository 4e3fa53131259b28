"""The function `prompt`: prompts of the brain version that the job began with."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from overnight.domain import BadInput, NotFound

from .execution import Execution, in_job

if TYPE_CHECKING:
    from overnight.brain import Prompt

_GONE = (
    "the ledger lacks the files of brain version {version}, with which the job began; "
    "start a worker with OVERNIGHT_BRAIN set to that folder, which stores them"
)
_NO_VERSION = "the job was created without a brain version, so it has no prompts; cancel it and start another job"


async def prompt(name: str, /, **variables: str | int | float) -> str:
    """The text of `prompts/NAME.md` in the brain version that the job began with, whatever the folder holds now.

    `variables` replace `{{ variable }}` in the text. A recovered job receives the same text. A model call whose message is this
    text records the name of the prompt and the version.

    Raises BadInput for an unknown prompt, and for a missing, unknown or unsuitable variable. If the files of the version are
    lost, the job parks until they are restored.
    """
    execution, _ = in_job("prompt()")
    execution.state.check()
    version = execution.job.brain_version
    if version is None:
        await execution.log.quarantine(_NO_VERSION)
    prompts = execution.services.prompts.known(version)
    if prompts is None:
        prompts = await _read(execution, version)
    found = prompts.get(name)
    if found is None:
        from overnight.brain import did_you_mean

        hint = did_you_mean(str(name), prompts) or "the version has no prompts"
        raise BadInput(f"prompt {str(name)[:200]!r} is unknown in brain version {version[:12]}; {hint}")
    text = found.fill(variables)
    execution.rendered_prompts.add(text, name)
    return text


async def _read(execution: Execution, version: str) -> "Mapping[str, Prompt]":
    """The prompts of a version from the store. Its branch counts as active meanwhile, so that a replay keeps its order."""
    scheduler, log = execution.scheduler, execution.log
    with scheduler.order.active(), scheduler.in_progress():
        try:
            return await log.or_evict(execution.services.prompts.read(version))
        except NotFound:
            await log.quarantine(_GONE.format(version=version[:12]))
