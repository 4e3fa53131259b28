"""What a process is given by its environment: the brain folder, the ledger, and secrets."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from overnight.domain import BadInput
from overnight.settings import Settings

if TYPE_CHECKING:
    from overnight.brain import Brain
    from overnight.keys import MasterKeys
    from overnight.ledger import Ledger
    from overnight.outgoing import AddressPolicy

MASTER_KEY = "OVERNIGHT_MASTER_KEY"
_OTHER_BRAIN = "Set OVERNIGHT_BRAIN to another folder, or create one with `overnight init`"


def open_ledger(settings: Settings) -> "Ledger":
    """Open the ledger for commands that only read. Raises BadInput if there is none."""
    from overnight.ledger import Ledger
    from overnight.store import open_store

    file = settings.ledger_file
    if file is not None and not file.exists():
        raise BadInput(
            f"no ledger at {file}. Create one with `overnight demo` or `overnight run`, or set OVERNIGHT_HOME"
        )
    return Ledger(open_store(settings.database_url, for_reading=True))


def load_settings_brain(settings: Settings) -> "Brain":
    """Load the brain folder, or the built-in routing if none was named and the default folder does not exist.

    Raises BrainError for a missing named folder, and for a folder without routing.yaml: running without its budgets and limits
    could spend money unintentionally.
    """
    from overnight.brain import Brain, BrainError, load_brain

    if not settings.has_brain:
        return Brain.from_files({})
    brain = load_brain(settings.brain)
    if not brain.has_routing:
        raise BrainError(f"{settings.brain}: routing.yaml not found in this folder. {_OTHER_BRAIN}")
    return brain


def has_provider_key(brain: "Brain", secrets: Mapping[str, str]) -> bool:
    """Whether `secrets_of` found a provider key."""
    return any(secrets.get(provider.api_key_env) for provider in brain.routing.providers if provider.api_key_env)


def secrets_of(brain: "Brain") -> dict[str, str]:
    """The environment variables that hold provider keys, master keys, or a proxy with its credentials."""
    given = [name for each in brain.routing.providers for name in (each.api_key_env, each.proxy_env)]
    names = {name for name in given if name}
    found = {name: os.environ[name] for name in names if name in os.environ}
    if (master := os.environ.get("OVERNIGHT_MASTER_KEY")) is not None:
        found[MASTER_KEY] = master
    return found


def take_secrets(brain: "Brain") -> dict[str, str]:
    """Return `secrets_of` and remove them from the environment, so that job code and child processes do not inherit them.

    Commands call this before they import job code. A program that calls `overnight.run` keeps its environment.
    """
    secrets = secrets_of(brain)
    for name in secrets:
        del os.environ[name]
    return secrets


def masters_of(settings: Settings, secrets: Mapping[str, str] = os.environ) -> "MasterKeys":
    """OVERNIGHT_MASTER_KEY, else the file in the home, which is created on first use if the ledger is a file."""
    from overnight.keys import MasterKeys

    given = secrets.get(MASTER_KEY) or None
    return MasterKeys(given, settings.home, makes_file=settings.ledger_file is not None)


def outgoing_policy(settings: Settings) -> "AddressPolicy":
    """The hosts that addresses registered by tenants may reach: public ones, and those of OVERNIGHT_OUTGOING_ALLOW."""
    from overnight.outgoing import AddressPolicy

    networks = tuple(each for each in settings.outgoing_allow if "/" in each)
    return AddressPolicy.of(networks, tuple(each for each in settings.outgoing_allow if "/" not in each))
