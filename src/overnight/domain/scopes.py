"""The scopes of API keys and the roles that stand for sets of them, as data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Scope = Literal[
    "calls",
    "effects",
    "tools",
    "jobs.read",
    "content.read",
    "jobs.operate",
    "reviews.decide",
    "budgets.write",
    "keys.admin",
    "instance.read",
    "instance.admin",
]

SCOPES: dict[Scope, str] = {
    "calls": "Model calls.",
    "effects": "Effects: claim them and report their outcome.",
    "tools": "Tool calls.",
    "jobs.read": "Facts: jobs, events, budgets and circuits, without content.",
    "content.read": "Content of what the key may read: prompts, arguments, results and error messages.",
    "jobs.operate": "Attempts, completion and cancelling of jobs.",
    "reviews.decide": "Decisions of reviews, except of the key's own requests.",
    "budgets.write": "Top-ups of budgets that the operator does not limit.",
    "keys.admin": "The tenant's API keys, provider keys and notification addresses.",
    "instance.read": "The operator's view of a tenant, such as calls of unknown cost.",
    "instance.admin": "The operator's decisions for a tenant, such as top-ups beyond the limits of the brain.",
}
"""Every scope and what it allows. Scopes of the instance are granted by the command line only."""

INSTANCE_SCOPES = frozenset[Scope]({"instance.read", "instance.admin"})

ROLES: dict[str, tuple[Scope, ...]] = {
    "call": ("calls",),
    "read": ("jobs.read", "content.read"),
    "operate": ("jobs.operate",),
    "admin": ("keys.admin",),
    "instance.admin": ("budgets.write", "instance.read", "instance.admin"),
}
"""Names that stand for sets of scopes. The first four are the scopes of earlier versions: they stay valid in stored keys, in
requests and on the command line. A role never gains a scope of another kind later, since stored keys would gain it too."""


def expand_scopes(names: Iterable[str]) -> frozenset[str]:
    """The scopes that names of scopes and roles stand for. Unknown names, as of a later version, grant nothing."""
    found: set[str] = set()
    for name in names:
        found.update(ROLES.get(name) or ([name] if name in SCOPES else []))
    return frozenset(found)


def ordered_scopes(names: Iterable[str]) -> list[str]:
    """The expanded scopes in the order of the table."""
    expanded = expand_scopes(names)
    return [scope for scope in SCOPES if scope in expanded]
