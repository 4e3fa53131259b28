"""`overnight keys`: API keys of the gateway, and provider keys of tenants.

Secrets are read from standard input, never from arguments, which other users of the machine can read.
"""

import getpass
import os
import sys
from typing import Annotated, Any

import typer

from overnight.domain import SCOPES
from overnight.keys import Allowance, KeyRow, Keys, NewKey, Rotation, check_provider, public_key, public_provider_key
from overnight.notifications import Addresses
from overnight.process_environment import load_settings_brain
from overnight.settings import Settings
from overnight.store import Store

from .actor import operator
from .durations import milliseconds
from .key_store import with_keys
from .keys_view import show_keys, show_rows, show_secret, value_text
from .lookup import tenant_of, tenants_of
from .options import AllTenants, By, Json, Tenant, Tz
from .output import print_json, say
from .time_zone import use_zone
from .usage import WrongUsage

program = typer.Typer(
    no_args_is_help=True,
    help="""Manage API keys of the gateway and provider keys of tenants.

    \b
    Examples:
      overnight keys create laptop
      overnight keys list
      overnight keys revoke laptop
      overnight keys provider set openai --tenant acme
    """,
    rich_markup_mode=None,
)
provider = typer.Typer(no_args_is_help=True, help="Manage provider keys of tenants.", rich_markup_mode=None)
program.add_typer(provider, name="provider")

KeyName = Annotated[
    str, typer.Argument(metavar="KEY", help="The key's id, its name, or the prefix of its secret (on_ and 12 digits).")
]
Expires = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Lifetime from now, such as 90d, 12h or 30m (default: until revoked)."),
]
ProviderName = Annotated[
    str, typer.Argument(metavar="PROVIDER", help="A provider of routing.yaml or a well-known provider.")
]
ToolGlobs = Annotated[
    list[str] | None,
    typer.Option("--tools", metavar="GLOB", help="Allow only these tools; may be repeated (default: all)."),
]
JobGlobs = Annotated[
    list[str] | None,
    typer.Option("--jobs", metavar="GLOB", help="Allow only jobs of these names; may be repeated (default: all)."),
]
Scopes = Annotated[
    list[str] | None,
    typer.Option("--scope", metavar="SCOPE", help=f"{', '.join(SCOPES)}, or a role; may be repeated (default: calls)."),
]


def _lifetime(text: str | None) -> int | None:
    """The lifetime of a key in milliseconds. Raises WrongUsage for 0."""
    if text is None:
        return None
    return milliseconds(
        text,
        "--expires-in",
        3650,
        zero_error="the key would expire at once; to revoke a key, use `overnight keys revoke`",
    )


@program.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the key, which events record as the actor.")],
    tenant: Tenant = None,
    scope: Scopes = None,
    agent: Annotated[str | None, typer.Option(metavar="AGENT", help="Allow only calls and jobs of this agent.")] = None,
    workflow: Annotated[
        str | None, typer.Option(metavar="NAME", help="Allow only calls and jobs of this workflow.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="GLOB", help="Allow only these models; may be repeated (default: all)."),
    ] = None,
    route: Annotated[
        list[str] | None,
        typer.Option("--route", metavar="GLOB", help="Allow only these routes; may be repeated (default: all)."),
    ] = None,
    tools: ToolGlobs = None,
    jobs: JobGlobs = None,
    expires_in: Expires = None,
    by: By = None,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """Create a key. Prints its secret once, on standard output.

    \b
    Examples:
      overnight keys create triage --model 'gpt-5.4*' --expires-in 90d
      export OPENAI_API_KEY=$(overnight keys create laptop)
      overnight keys create refunds --jobs 'nightly/*' --tools 'refund*'
      overnight keys create ops --tenant acme --scope jobs.read --scope jobs.operate --json
    """

    use_zone(tz, json=json)
    new = NewKey(
        name=name,
        scopes=tuple(scope or ("calls",)),
        agent_id=agent,
        workflow=workflow,
        models=tuple(model or ()),
        routes=tuple(route or ()),
        tools=tuple(tools or ()),
        jobs=tuple(jobs or ()),
        expires_in_ms=_lifetime(expires_in),
    )

    async def work(keys: Keys, store: Store, settings: Settings) -> tuple[KeyRow, str, int, bool]:
        first = not await keys.list(limit=1)
        row, secret = await keys.create(tenant_of(tenant, settings), new, operator(by))
        return row, secret, store.clock(), first

    row, secret, now, first = with_keys(work)
    show_secret(row, secret, now, json=json)
    if first and not json:
        say("This is the first key: gateways on this store now require a key", err=True)


@program.command("list")
def list_keys(
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    everything: Annotated[bool, typer.Option("--all", help="Include expired and revoked keys.")] = False,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """List keys, newest first, without their secrets.

    \b
    Examples:
      overnight keys list
      overnight keys list --tenant acme --all --json
    """

    use_zone(tz, json=json)

    async def work(keys: Keys, store: Store, settings: Settings) -> list[dict[str, Any]]:
        tenant_id = tenants_of(tenant, all_tenants, settings)
        rows = await keys.list(tenant_id)
        while rows and (more := await keys.list(tenant_id, rows[-1].key_id)):
            rows += more
        shown = [public_key(row, store.clock()) for row in rows]
        return [key for key in shown if everything or key["state"] == "active"]

    shown = with_keys(work)
    if json:
        print_json(shown)
    else:
        show_keys(shown)


@program.command()
def show(key: KeyName, tenant: Tenant = None, tz: Tz = None, json: Json = False) -> None:
    """Show one key: its permissions, history and last use.

    \b
    Example:
      overnight keys show triage
    """

    use_zone(tz, json=json)

    async def work(keys: Keys, store: Store, settings: Settings) -> dict[str, Any]:
        return public_key(await keys.one(key, tenant_of(tenant, settings)), store.clock())

    shown = with_keys(work)
    if json:
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
        str, typer.Option(metavar="TIME", help="How long the old secret remains valid; 0: it expires at once.")
    ] = "24h",
    expires_in: Expires = None,
    by: By = None,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """Give a key a new secret. The old secret remains valid for --overlap; any earlier secret expires at once.

    \b
    Examples:
      overnight keys rotate triage
      overnight keys rotate triage --overlap 1h --expires-in 90d
    """

    use_zone(tz, json=json)
    how = Rotation(overlap_ms=milliseconds(overlap, "--overlap", 90), expires_in_ms=_lifetime(expires_in))

    async def work(keys: Keys, store: Store, settings: Settings) -> tuple[KeyRow, str, int]:
        return *await keys.rotate(key, tenant_of(tenant, settings), how, operator(by)), store.clock()

    show_secret(*with_keys(work), json=json)


@program.command()
def revoke(key: KeyName, tenant: Tenant = None, by: By = None, json: Json = False) -> None:
    """Revoke a key permanently. Every process rejects it within two seconds.

    \b
    Example:
      overnight keys revoke triage
    """

    async def work(keys: Keys, store: Store, settings: Settings) -> dict[str, Any]:
        return public_key(await keys.revoke(key, tenant_of(tenant, settings), operator(by)), store.clock())

    shown = with_keys(work)
    if json:
        print_json(shown)
    else:
        say(f"{shown['name']} ({shown['key_id']}) is revoked")


@program.command()
def allow(
    key: KeyName,
    tenant: Tenant = None,
    tools: ToolGlobs = None,
    jobs: JobGlobs = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Replace the tools or jobs that a key may use; '*' allows all.

    \b
    Example:
      overnight keys allow triage --jobs 'nightly/*' --tools 'refund*'
    """
    if tools is None and jobs is None:
        raise WrongUsage("--tools or --jobs is required")
    new = Allowance(tools=_globs(tools), jobs=_globs(jobs))

    async def work(keys: Keys, store: Store, settings: Settings) -> dict[str, Any]:
        return public_key(await keys.allow(key, tenant_of(tenant, settings), new, operator(by)), store.clock())

    shown = with_keys(work)
    if json:
        print_json(shown)
    else:
        allowed = [f"{name} {value_text(shown[name], ', ') or 'all'}" for name in ("tools", "jobs")]
        say(f"{shown['name']} ({shown['key_id']}) may use {'; '.join(allowed)}")


def _globs(given: list[str] | None) -> tuple[str, ...] | None:
    """The globs of an option; '*' stands for all, None for the present ones."""
    return None if given is None else () if "*" in given else tuple(given)


@program.command("rotate-master")
def rotate_master(by: By = None, json: Json = False) -> None:
    """Encrypt all provider keys, and the secrets of notification addresses, again with a new master key.

    A new key is added to the file in OVERNIGHT_HOME automatically. With OVERNIGHT_MASTER_KEY, first set it to
    "NEW,OLD" and restart all processes.

    \b
    Example:
      overnight keys rotate-master
    """

    async def work(keys: Keys, store: Store, _: Settings) -> tuple[str, int, int]:
        return await keys.rotate_master(operator(by), Addresses(store, keys.masters))

    master_id, count, others = with_keys(work)
    if json:
        print_json({"master_id": master_id, "sealed_anew": count, "addresses_sealed_anew": others})
    else:
        keys_text = "key" if count == 1 else "keys"
        more = f" and {others} notification address{'es' if others != 1 else ''}" if others else ""
        say(f"Master key {master_id} is now active; {count} provider {keys_text}{more} encrypted again")


@provider.command("set")
def set_provider(
    name: ProviderName,
    tenant: Tenant = None,
    from_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Read the key from this environment variable.")
    ] = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Store a tenant's provider key, read from standard input. The tenant's calls use it instead of the environment's key.

    \b
    Examples:
      overnight keys provider set openai --tenant acme
      pass show acme/openai | overnight keys provider set openai --tenant acme
      overnight keys provider set anthropic --tenant acme --from-env ACME_ANTHROPIC_KEY
    """

    async def work(keys: Keys, _: Any, settings: Settings) -> dict[str, Any]:

        check_provider(name, [each.name for each in load_settings_brain(settings).routing.providers])
        secret = _secret(name, from_env)
        return public_provider_key(await keys.set_provider_key(tenant_of(tenant, settings), name, secret, operator(by)))

    shown = with_keys(work)
    if json:
        print_json(shown)
    else:
        say(f"Provider key stored: calls of {shown['tenant_id']} to {name} now use it")


def _secret(name: str, from_env: str | None) -> str:
    """The secret from the environment, a prompt without echo, or standard input. Raises WrongUsage."""

    if from_env is not None:
        if not os.environ.get(from_env):
            raise WrongUsage(f"--from-env {from_env}: the variable is not set")
        return os.environ[from_env]
    return getpass.getpass(f"API key of {name}: ") if sys.stdin.isatty() else sys.stdin.read(8192)


@provider.command("list")
def list_providers(tenant: Tenant = None, all_tenants: AllTenants = False, tz: Tz = None, json: Json = False) -> None:
    """List the provider keys of a tenant, without the keys themselves.

    \b
    Example:
      overnight keys provider list
    """

    use_zone(tz, json=json)

    async def work(keys: Keys, _: Any, settings: Settings) -> list[dict[str, Any]]:
        tenant_id = tenants_of(tenant, all_tenants, settings)
        return [public_provider_key(row) for row in await keys.provider_keys(tenant_id)]

    shown = with_keys(work)
    if json:
        print_json(shown)
        return
    show_rows(("provider", "tenant_id", "set_at", "set_by", "master_id"), shown, "No provider keys.")


@provider.command("delete")
def delete_provider(name: ProviderName, tenant: Tenant = None, by: By = None, json: Json = False) -> None:
    """Delete a tenant's provider key. The tenant's calls use the environment's key again.

    \b
    Example:
      overnight keys provider delete openai --tenant acme
    """

    async def work(keys: Keys, _: Any, settings: Settings) -> str:
        tenant_id = tenant_of(tenant, settings)
        await keys.drop_provider_key(tenant_id, name, operator(by))
        return tenant_id

    tenant_id = with_keys(work)
    if json:
        print_json({"provider": name, "tenant_id": tenant_id, "deleted": True})
    else:
        say(f"Provider key deleted: calls of {tenant_id} to {name} use the key of the environment")
