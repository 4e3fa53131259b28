"""API keys for requests of tests."""

import time
from typing import Any

from overnight.keys import Keys, NewKey
from serving import Served


async def key_for(served: Served, tenant: str = "acme", **fields: Any) -> dict[str, str]:
    """Headers with a fresh key."""
    name = fields.pop("name", f"k{time.monotonic_ns()}")
    _, secret = await Keys(served.store).create(tenant, NewKey(name=name, **fields), "ann")
    return {"authorization": f"Bearer {secret}"}
