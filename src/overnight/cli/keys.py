"""Keys: who may call the gateway, and which providers' keys a tenant brings itself.

Secrets come in by standard input, never as words of the command line, which other users of the machine can read.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from .jobs import Json
from .keys_view import show_keys, show_rows, show_secret, value_text
from .lookup import (
    AllTenants,
    Tenant,
    tenant_of,
    tenants_of,
)
from .output import say
from .reviews import By, operator
from .time_zone import Tz, use_zone

if TYPE_CHECKING:
    from overnight.keys import KeyRow, Keys
    from overnight.settings import Settings
    from overnight.store import Store

T = TypeVar("T")
program = typer.Typer(no_args_is_help=True, help="Keys for the gateway, and tenants' own keys of providers.")
provider = typer.Typer(no_args_is_help=True, help="Keys of providers that a tenant brings itself, kept sealed.")
program.add_typer(provider, name="provider")

KeyName = Annotated[
    str, typer.Argument(metavar="KEY", help="A key's id, its name, or how its secret begins (on_ and 12 digits).")
]
Expires = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="How long it lives from now, such as 90d, 12h or 30m (default: until revoked)."),
]
ProviderName = Annotated[
    str, typer.Argument(metavar="PROVIDER", help="A provider's name in routing.yaml or a well-known one.")
]
_UNITS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def _ms(text: str, option: str, most_days: int, *, none_is: str = "") -> int:
    """90d, 12h, 30m, 45s, and where that means something 0, in milliseconds. Raises WrongUsage."""
    from .lookup import WrongUsage

    number, unit = (text[:-1], text[-1:]) if text != "0" else ("0", "s")
    if not (number.isascii() and number.isdigit() and len(number) < 10) or unit not in _UNITS:
        raise WrongUsage(f"{option} {text[:40]}: a time is a whole number and d, h, m or s, such as 90d")
    found = int(number) * _UNITS[unit]
    if found > most_days * _UNITS["d"]:
        raise WrongUsage(f"{option} {text}: the most is {most_days}d")
    if not found and none_is:
        raise WrongUsage(f"{option} {text}: {none_is}")
    return found


def _lifetime(text: str | None) -> int | None:
    """Of a key, in milliseconds. Raises WrongUsage for one that would be over at once."""
    if text is None:
        return None
    return _ms(text, "--expires-in", 3650, none_is="such a key never lets anybody in; `overnight keys revoke` ends one")


def _with_keys(work: "Callable[[Keys, Store, Settings], Awaitable[T]]") -> T:
    """Run `work(keys, store, settings)` on the store of the environment, which is made where there is none."""
    from overnight.app import masters_of
    from overnight.keys import Keys
    from overnight.settings import Settings
    from overnight.store import open_store

    settings = Settings.from_environment()

    async def run() -> T:
        return await work(Keys(store, masters_of(settings)), store, settings)

    with open_store(settings.database_url) as store:
        return asyncio.run(run())


@program.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called; events say it as the actor.")],
    tenant: Tenant = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            metavar="SCOPE",
            help="call (the default), read, operate, admin or instance.admin; repeat it.",
        ),
    ] = None,
    agent: Annotated[str | None, typer.Option(metavar="AGENT", help="Only calls and jobs of this agent.")] = None,
    workflow: Annotated[str | None, typer.Option(metavar="NAME", help="Only calls and jobs of this workflow.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="GLOB", help="Only such models; may be repeated (default: all)."),
    ] = None,
    route: Annotated[
        list[str] | None,
        typer.Option("--route", metavar="GLOB", help="Only such routes; may be repeated (default: all)."),
    ] = None,
    expires_in: Expires = None,
    by: By = None,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """Make a key. Its secret is shown once, on standard output.

    \b
    Examples:
      overnight keys create triage --model 'gpt-5.4*' --expires-in 90d
      export OPENAI_API_KEY=$(overnight keys create laptop)
      overnight keys create ops --tenant acme --scope read --scope operate --json
    """
    from overnight.keys import NewKey

    use_zone(tz, json=json)
    new = NewKey(
        name=name,
        scopes=tuple(scope or ("call",)),
        agent_id=agent,
        workflow=workflow,
        models=tuple(model or ()),
        routes=tuple(route or ()),
        expires_in_ms=_lifetime(expires_in),
    )

    async def work(keys: "Keys", store: "Store", settings: "Settings") -> "tuple[KeyRow, str, int, bool]":
        first = not await keys.list(most=1)
        row, secret = await keys.create(tenant_of(tenant, settings), new, operator(by))
        return row, secret, store.clock(), first

    row, secret, now, first = _with_keys(work)
    show_secret(row, secret, now, json=json)
    if first and not json:
        say("This is the first key: from now on a gateway on this store answers nobody without one", err=True)


@program.command("list")
def list_keys(
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    everything: Annotated[bool, typer.Option("--all", help="Expired and revoked ones too.")] = False,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """List keys, newest first; never their secrets.

    \b
    Examples:
      overnight keys list
      overnight keys list --tenant acme --all --json
    """
    from overnight.keys import public_key

    use_zone(tz, json=json)

    async def work(keys: "Keys", store: "Store", settings: "Settings") -> list[dict[str, Any]]:
        whose = tenants_of(tenant, all_tenants, settings)
        rows = await keys.list(whose)
        while rows and (more := await keys.list(whose, rows[-1].key_id)):
            rows += more
        shown = [public_key(row, store.clock()) for row in rows]
        return [key for key in shown if everything or key["state"] == "active"]

    shown = _with_keys(work)
    if json:
        from .output import print_json

        print_json(shown)
    else:
        show_keys(shown)


@program.command()
def show(key: KeyName, tenant: Tenant = None, tz: Tz = None, json: Json = False) -> None:
    """Show one key: what it may do, who made, rotated or revoked it, and when it was last used.

    \b
    Example:
      overnight keys show triage
    """
    from overnight.keys import public_key

    use_zone(tz, json=json)

    async def work(keys: "Keys", store: "Store", settings: "Settings") -> dict[str, Any]:
        return public_key(await keys.one(key, tenant_of(tenant, settings)), store.clock())

    shown = _with_keys(work)
    if json:
        from .output import print_json

        print_json(shown)
        return
    for name, value in shown.items():
        if value:
            say(f"{name:<22}{value_text(value, ', ')}")


@program.command()
def rotate(
    key: KeyName,
    tenant: Tenant = None,
    overlap: Annotated[
        str, typer.Option(metavar="TIME", help="How long the old secret stays valid; 0: not at all.")
    ] = "24h",
    expires_in: Expires = None,
    by: By = None,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """Give a key a new secret. The old one stays valid for a while, so that nothing has to stop; one before that ends at once.

    \b
    Examples:
      overnight keys rotate triage
      overnight keys rotate triage --overlap 1h --expires-in 90d
    """
    from overnight.keys import Rotation

    use_zone(tz, json=json)
    how = Rotation(overlap_ms=_ms(overlap, "--overlap", 90), expires_in_ms=_lifetime(expires_in))

    async def work(keys: "Keys", store: "Store", settings: "Settings") -> "tuple[KeyRow, str, int]":
        return *await keys.rotate(key, tenant_of(tenant, settings), how, operator(by)), store.clock()

    show_secret(*_with_keys(work), json=json)


@program.command()
def revoke(key: KeyName, tenant: Tenant = None, by: By = None, json: Json = False) -> None:
    """End a key for good; every process refuses it within two seconds.

    \b
    Example:
      overnight keys revoke triage
    """
    from overnight.keys import public_key

    async def work(keys: "Keys", store: "Store", settings: "Settings") -> dict[str, Any]:
        return public_key(await keys.revoke(key, tenant_of(tenant, settings), operator(by)), store.clock())

    shown = _with_keys(work)
    if json:
        from .output import print_json

        print_json(shown)
    else:
        say(f"{shown['name']} ({shown['key_id']}) is revoked")


@program.command("rotate-master")
def rotate_master(json: Json = False) -> None:
    """Seal all providers' keys anew with another master key.

    The file in OVERNIGHT_HOME gets a new one by itself. Where OVERNIGHT_MASTER_KEY holds them, put the new one before the old one
    first, with a comma, and start all processes again.

    \b
    Example:
      overnight keys rotate-master
    """

    async def work(keys: "Keys", *_: Any) -> tuple[str, int]:
        return await keys.rotate_master()

    master_id, count = _with_keys(work)
    if json:
        from .output import print_json

        print_json({"master_id": master_id, "sealed_anew": count})
    else:
        say(f"master key {master_id} seals now; {count} sealed anew")


@provider.command("set")
def set_provider(
    name: ProviderName,
    tenant: Tenant = None,
    from_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Take the key from this environment variable.")
    ] = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Keep a tenant's own key of a provider; its calls use it in place of the environment's. It is read from standard input.

    \b
    Examples:
      overnight keys provider set openai --tenant acme
      pass show acme/openai | overnight keys provider set openai --tenant acme
      overnight keys provider set anthropic --tenant acme --from-env ACME_ANTHROPIC_KEY
    """
    from overnight.keys import known_provider, public_provider_key

    async def work(keys: "Keys", _: Any, settings: "Settings") -> dict[str, Any]:
        from overnight.app import load_settings_brain

        known_provider(name, [each.name for each in load_settings_brain(settings).routing.providers])
        secret = _secret(name, from_env)
        return public_provider_key(await keys.set_provider_key(tenant_of(tenant, settings), name, secret, operator(by)))

    shown = _with_keys(work)
    if json:
        from .output import print_json

        print_json(shown)
    else:
        say(f"{shown['tenant_id']} calls {name} with a key of its own from now on")


def _secret(name: str, from_env: str | None) -> str:
    """Typed unseen on a terminal, piped in, or from the environment. Raises WrongUsage."""
    import getpass
    import os

    from .lookup import WrongUsage

    if from_env is not None:
        if not os.environ.get(from_env):
            raise WrongUsage(f"--from-env {from_env}: this variable is not set")
        return os.environ[from_env]
    return getpass.getpass(f"The key of {name}: ") if sys.stdin.isatty() else sys.stdin.read(8192)


@provider.command("list")
def list_providers(tenant: Tenant = None, all_tenants: AllTenants = False, tz: Tz = None, json: Json = False) -> None:
    """List at which providers a tenant has keys of its own; never the keys.

    \b
    Example:
      overnight keys provider list
    """
    from overnight.keys import public_provider_key

    use_zone(tz, json=json)

    async def work(keys: "Keys", _: Any, settings: "Settings") -> list[dict[str, Any]]:
        whose = tenants_of(tenant, all_tenants, settings)
        return [public_provider_key(row) for row in await keys.provider_keys(whose)]

    shown = _with_keys(work)
    if json:
        from .output import print_json

        print_json(shown)
        return
    show_rows(("provider", "tenant_id", "set_at", "set_by", "master_id"), shown, "no key of a provider's own is kept")


@provider.command("delete")
def delete_provider(name: ProviderName, tenant: Tenant = None, by: By = None, json: Json = False) -> None:
    """Forget a tenant's own key of a provider; its calls use the environment's again.

    \b
    Example:
      overnight keys provider delete openai --tenant acme
    """

    async def work(keys: "Keys", _: Any, settings: "Settings") -> str:
        whose = tenant_of(tenant, settings)
        await keys.drop_provider_key(whose, name, operator(by))
        return whose

    whose = _with_keys(work)
    if json:
        from .output import print_json

        print_json({"provider": name, "tenant_id": whose, "deleted": True})
    else:
        say(f"{whose} has no key of its own for {name} any more")
