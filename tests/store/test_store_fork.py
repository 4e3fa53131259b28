"""A forked process does not touch the connections of its parent's store."""

import asyncio
import gc
import os
import weakref

from overnight.ledger import Ledger
from overnight.store import Store

NAMES = {"SqliteSession", "PostgresSession"}


async def test_a_forked_child_does_not_close_the_readers_connections(store: Store) -> None:
    """Closing them there waits for locks of threads that the child does not have: the child hangs, and its parent with it."""
    ledger = Ledger(store)
    await asyncio.gather(*(ledger.jobs() for _ in range(4)))
    gc.collect()
    sessions = [weakref.ref(each) for each in gc.get_objects() if type(each).__name__ in NAMES]
    assert sessions
    child = os.fork()
    if child == 0:
        os._exit(sum(session() is None for session in sessions))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert await ledger.jobs() == []
