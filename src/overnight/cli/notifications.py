"""`overnight notifications`: where people are told about reviews, and what was sent to them.

URLs of Slack, passwords and other secrets are read from standard input, never from arguments.
"""

import asyncio
import getpass
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import typer

from overnight.notifications import (
    Addresses,
    Delivered,
    DeliveryFilter,
    NewAddress,
    SecretRotation,
    outcome_name,
    public_address,
    public_delivery,
)
from overnight.process_environment import masters_of, outgoing_policy
from overnight.settings import Settings
from overnight.store import open_store

from .actor import operator
from .durations import milliseconds
from .keys_view import show_rows
from .lookup import tenant_of, tenants_of
from .options import AllTenants, By, Json, Tenant, Tz
from .output import print_json, say
from .time_zone import use_zone
from .usage import WrongUsage, reject_early_options

T = TypeVar("T")
program = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
add = typer.Typer(no_args_is_help=True, help="Register an address.", rich_markup_mode=None)
program.add_typer(add, name="add")

AddressName = Annotated[str, typer.Argument(metavar="ADDRESS", help="The name of an address, or its id.")]
NewName = Annotated[str, typer.Argument(metavar="NAME", help="The name, which decisions by link record as link:NAME.")]
Links = Annotated[str, typer.Option(metavar="WHAT", help="What links in messages may do: decide, show or none.")]
Content = Annotated[bool, typer.Option("--content/--no-content", help="Send questions and arguments.")]
AtMostOnce = Annotated[
    bool, typer.Option("--at-most-once", help="Never repeat a delivery whose outcome is unknown (default: repeat).")
]
Kinds = Annotated[
    list[str] | None,
    typer.Option("--kind", metavar="KIND", help="Send only this kind of reviews; may be repeated (default: all)."),
]


@program.callback()
def _default(  # pyright: ignore[reportUnusedFunction]
    context: typer.Context, tenant: Tenant = None, all_tenants: AllTenants = False, json: Json = False
) -> None:
    """Tell people about reviews by webhook, mail or Slack. Without a subcommand, lists the addresses.

    \b
    Examples:
      overnight notifications
      overnight notifications add webhook ops https://hooks.example.com/overnight
      overnight notifications add slack night-shift < slack-url.txt
      overnight notifications test ops
      overnight notifications deliveries --state failed
    """
    if context.invoked_subcommand is not None:
        return reject_early_options(context)
    return list_addresses(tenant, all_tenants, json)


@program.command("list")
def list_addresses(tenant: Tenant = None, all_tenants: AllTenants = False, json: Json = False) -> None:
    """List the addresses, without their secrets.

    \b
    Example:
      overnight notifications list --tenant acme --json
    """

    async def work(addresses: Addresses, settings: Settings) -> list[dict[str, Any]]:
        rows = await addresses.list(tenants_of(tenant, all_tenants, settings))
        return [public_address(row) for row in rows]

    shown = _with_addresses(work)
    if json:
        return print_json(shown)
    heads = ("name", "tenant_id", "kind", "target", "state", "links", "address_id")
    return show_rows(heads, shown, "No addresses. Register one with `overnight notifications add`.")


@add.command("webhook")
def add_webhook(
    name: NewName,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to post; `-` reads it from standard input.")],
    tenant: Tenant = None,
    links: Links = "decide",
    content: Content = True,
    at_most_once: AtMostOnce = False,
    kind: Kinds = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Register a webhook. Prints its signing secret once, on standard output.

    \b
    Examples:
      overnight notifications add webhook ops https://hooks.example.com/overnight
      overnight notifications add webhook audit - --links none --no-content < url.txt
    """
    url = _secret("url") if url == "-" else url
    options: dict[str, Any] = {"links": links, "content": content, "repeat_safe": not at_most_once}
    _add(NewAddress(name=name, kind="webhook", url=url, kinds=tuple(kind or ()), **options), tenant, by, json)


@add.command("slack")
def add_slack(
    name: NewName,
    tenant: Tenant = None,
    links: Links = "decide",
    content: Content = True,
    at_most_once: AtMostOnce = False,
    kind: Kinds = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Register an incoming webhook of Slack, or of a program with the same format. Its URL is read from standard input.

    \b
    Example:
      overnight notifications add slack night-shift < slack-url.txt
    """
    options: dict[str, Any] = {"links": links, "content": content, "repeat_safe": not at_most_once}
    new = NewAddress(name=name, kind="slack", url=_secret("url"), kinds=tuple(kind or ()), **options)
    _add(new, tenant, by, json)


@add.command("email")
def add_email(
    name: NewName,
    to: Annotated[list[str], typer.Option(metavar="MAIL", help="A recipient; may be repeated.")],
    sender: Annotated[str, typer.Option("--from", metavar="MAIL", help="The sender.")],
    server: Annotated[str, typer.Option(metavar="HOST", help="The SMTP server.")],
    port: Annotated[int | None, typer.Option(metavar="PORT", help="Default: 587, or 465 with tls.")] = None,
    security: Annotated[str, typer.Option(metavar="HOW", help="starttls, tls or none.")] = "starttls",
    username: Annotated[
        str, typer.Option(metavar="NAME", help="The user; its password is read from standard input.")
    ] = "",
    tenant: Tenant = None,
    links: Links = "decide",
    content: Content = True,
    at_most_once: AtMostOnce = False,
    kind: Kinds = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Register mail addresses, and the SMTP server that delivers to them.

    \b
    Example:
      overnight notifications add email ops --to ann@example.com --from overnight@example.com --server smtp.example.com \\
        --username overnight < password.txt
    """
    options: dict[str, Any] = {"links": links, "content": content, "repeat_safe": not at_most_once}
    new = NewAddress(
        name=name,
        kind="email",
        to=tuple(to),
        sender=sender,
        server=server,
        port=port,
        security=security,
        username=username,
        password=_secret("password") if username else "",
        kinds=tuple(kind or ()),
        **options,
    )
    _add(new, tenant, by, json)


@program.command()
def rotate(
    address: AddressName,
    overlap: Annotated[
        str, typer.Option(metavar="TIME", help="How long the old secret signs too, such as 12h (0: not at all).")
    ] = "1d",
    tenant: Tenant = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Replace the signing secret of a webhook. Prints the new one once. During the overlap, messages have two signatures.

    \b
    Examples:
      overnight notifications rotate ops
      overnight notifications rotate ops --overlap 0
    """
    how = SecretRotation(overlap_ms=milliseconds(overlap, "--overlap", 90))

    async def work(addresses: Addresses, settings: Settings) -> tuple[dict[str, Any], str]:
        row, secret = await addresses.rotate(address, tenant_of(tenant, settings), how, operator(by))
        return public_address(row), secret

    shown, secret = _with_addresses(work)
    if json:
        print_json({"secret": secret, **shown})
    else:
        say(secret)
        say(f"{shown['name']} signs with this secret, which is not shown again", err=True)


@program.command()
def remove(address: AddressName, tenant: Tenant = None, by: By = None, json: Json = False) -> None:
    """Remove an address and its secrets. Links that were sent to it end.

    \b
    Example:
      overnight notifications remove ops
    """

    async def work(addresses: Addresses, settings: Settings) -> dict[str, Any]:
        return public_address(await addresses.remove(address, tenant_of(tenant, settings), operator(by)))

    shown = _with_addresses(work)
    if json:
        print_json(shown)
    else:
        say(f"{shown['name']} ({shown['address_id']}) is removed; its links have ended")


@program.command("test")
def send_sample(address: AddressName, tenant: Tenant = None, by: By = None, json: Json = False) -> None:
    """Send a sample to an address, once, from this process. Exit code 1 unless it was delivered.

    \b
    Example:
      overnight notifications test ops
    """

    async def work(addresses: Addresses, settings: Settings) -> tuple[str, str | None]:
        outcome = await addresses.test(address, tenant_of(tenant, settings), operator(by))
        return outcome_name(outcome), None if isinstance(outcome, Delivered) else outcome.why

    state, why = _with_addresses(work)
    if json:
        print_json({"outcome": state, "why": why})
    else:
        say(f"{address}: {state.replace('_', ' ')}{f': {why}' if why else ''}")
    if state != "delivered":
        raise typer.Exit(1)


@program.command()
def deliveries(
    state: Annotated[
        str,
        typer.Option(metavar="STATE", help="waiting, sending, delivered, failed, unknown or withdrawn (default: all)."),
    ] = "",
    review: Annotated[str, typer.Option(metavar="REVIEW", help="Only of this review.")] = "",
    job: Annotated[str, typer.Option(metavar="JOB", help="Only of the reviews of this job.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """List what was sent or is to be sent.

    \b
    Examples:
      overnight notifications deliveries --state failed
      overnight notifications deliveries --review rev_01a1b2c3 --json
    """
    use_zone(tz, json=json)

    async def work(addresses: Addresses, settings: Settings) -> list[dict[str, Any]]:
        tenant_id = tenants_of(tenant, all_tenants, settings)
        wanted = DeliveryFilter(tenant_id=tenant_id, state=state, review_id=review, job_id=job, most=limit)
        return [public_delivery(row, name) for row, name in await addresses.deliveries(wanted)]

    shown = _with_addresses(work)
    if json:
        return print_json(shown)
    for each in shown:
        each["attempts"] = str(each["attempts"])
    heads = ("delivery_id", "address", "review_id", "state", "attempts", "next_attempt_at", "problem")
    return show_rows(heads, shown, "No deliveries.")


@program.command()
def retry(
    delivery: Annotated[str, typer.Argument(metavar="DELIVERY", help="The id of a delivery.")],
    tenant: Tenant = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Try again, for another day, what failed or has an unknown outcome.

    \b
    Example:
      overnight notifications retry msg_1f0c
    """

    async def work(addresses: Addresses, settings: Settings) -> dict[str, Any]:
        return public_delivery(await addresses.retry(delivery, tenant_of(tenant, settings), operator(by)), None)

    shown = _with_addresses(work)
    if json:
        print_json(shown)
    else:
        say(f"{shown['delivery_id']} waits for its next attempt")


def _add(new: NewAddress, tenant: str | None, by: str | None, json: bool) -> None:
    async def work(addresses: Addresses, settings: Settings) -> tuple[dict[str, Any], str | None]:
        row, secret = await addresses.add(tenant_of(tenant, settings), new, operator(by))
        return public_address(row), secret

    shown, secret = _with_addresses(work)
    if json:
        return print_json({"secret": secret, **shown})
    if secret is not None:
        say(secret)
        say(f"{shown['name']} signs with this secret, which is not shown again", err=True)
        return None
    return say(f"{shown['name']} ({shown['address_id']}): {shown['kind']} {shown['target']}")


def _with_addresses(work: Callable[[Addresses, Settings], Awaitable[T]]) -> T:
    """Run `work(addresses, settings)` on the store of the environment, which is created if missing."""
    settings = Settings.from_environment()

    with open_store(settings.database_url) as store:
        addresses = Addresses(store, masters_of(settings), outgoing_policy(settings))

        async def run() -> T:
            return await work(addresses, settings)

        return asyncio.run(run())


def _secret(what: str) -> str:
    """One line from standard input, which a terminal does not show. Raises WrongUsage."""
    text = getpass.getpass(f"{what}: ") if sys.stdin.isatty() else sys.stdin.readline()
    if not text.strip():
        raise WrongUsage(f"the {what} is empty; pass it on standard input as one line")
    return text.strip()
