"""What the endpoints of `/api/v1` are given by the process that serves them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from overnight.budgets import Policy
from overnight.domain import Attribution
from overnight.keys import Keyring
from overnight.ledger import Ledger
from overnight.outgoing import AddressPolicy
from overnight.tools import ToolPolicy

from .body_memory import BodyMemory

REQUEST = "overnight.request"
"""Where the scope holds the request that the front has let in."""


class RestServices(msgspec.Struct, frozen=True):
    """What `/api/v1` needs.

    `start_job` starts a named external job, unless it exists; it returns its id, and whether it is new. `policy` and `providers`
    return the present budgets and the names of the present providers. `public_url` is where clients reach the API, without a
    slash at its end; "" if that is not known. `tool_policy` returns the present contracts and rules of tools. `outgoing` are the
    hosts that addresses of tenants may reach.
    """

    ledger: Ledger
    keyring: Keyring
    start_job: Callable[[Attribution], Awaitable[tuple[str, bool]]]
    policy: Callable[[], Policy]
    providers: Callable[[], Sequence[str]]
    memory: BodyMemory
    public_url: str = ""
    tool_policy: Callable[[], ToolPolicy | None] = lambda: None
    outgoing: AddressPolicy = AddressPolicy()
