"""Access to the keys of the store for commands."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from overnight.keys import Keys
from overnight.process_environment import masters_of
from overnight.settings import Settings
from overnight.store import Store, open_store

T = TypeVar("T")


def with_keys(work: Callable[[Keys, Store, Settings], Awaitable[T]]) -> T:
    """Run `work(keys, store, settings)` on the store of the environment, which is created if missing."""
    settings = Settings.from_environment()

    async def run() -> T:
        return await work(Keys(store, masters_of(settings)), store, settings)

    with open_store(settings.database_url) as store:
        return asyncio.run(run())
