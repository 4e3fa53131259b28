"""Serve the sink in a process once there is an address, so that a ledger without addresses is not read for it."""

from __future__ import annotations

import asyncio
import logging

from overnight.domain import OvernightError
from overnight.ledger import SinkConsumer
from overnight.store import Store

from .rows import SQL
from .sender import MessageSender
from .sink import NotificationSink

log = logging.getLogger("overnight.notifications")
LOOK_S = 2.0
"""How often a process looks for the first address."""


async def serve_notifications(store: Store, sender: MessageSender, owner: str, public_url: str = "") -> None:
    """Serve the sink, or wait until it can be taken over; until cancelled. `owner` is the name of this process."""
    trouble = ""
    while True:
        try:
            if await store.read(SQL["has_addresses"], {}):
                break
        except OvernightError as error:
            if str(error) != trouble:
                trouble = str(error)
                log.warning("notifications: %s; trying again", trouble)
        await asyncio.sleep(LOOK_S)
    await SinkConsumer(store, NotificationSink(store, sender, owner, public_url), owner).run()
