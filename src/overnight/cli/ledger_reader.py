"""Access to the ledger for commands that only read."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from overnight.ledger import Ledger
from overnight.process_environment import open_ledger
from overnight.settings import Settings

PAGE = 200


def read(work: Callable[[Ledger, Settings], Coroutine[Any, Any, None]]) -> None:
    """Run `work(ledger, settings)` on the ledger of the environment."""
    settings = Settings.from_environment()
    ledger = open_ledger(settings)
    with ledger.store:
        asyncio.run(work(ledger, settings))
