"""The versions of the prompts in brain versions, for calls of jobs that began with another one than the present."""

from __future__ import annotations

from collections import OrderedDict

from overnight.brain import prompts_version_of
from overnight.domain import NotFound
from overnight.ledger import read_brain_files
from overnight.store import Store

MAX_VERSIONS = 1000


class PromptsVersions:
    """Finds the version of the prompts in a brain version. `present` is the brain version that is active."""

    def __init__(self, store: Store, present: str | None) -> None:
        self._store, self.present = store, present
        self._known: OrderedDict[str, str] = OrderedDict()

    async def version_in(self, brain_version: str | None) -> str | None:
        """The version of the prompts; None for that of the present brain. Raises StoreUnavailable.

        A brain version whose files are lost has its own, which no other brain version shares.
        """
        if brain_version is None or brain_version == self.present:
            return None
        found = self._known.get(brain_version)
        if found is None:
            try:
                found = prompts_version_of(await read_brain_files(self._store, brain_version))
            except NotFound:
                return brain_version
            self._known[brain_version] = found
            if len(self._known) > MAX_VERSIONS:
                self._known.popitem(last=False)
        return found
