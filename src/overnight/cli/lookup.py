"""Which tenant, job or review a person means. Nothing of another tenant is found, or is said to be there."""

from typing import TYPE_CHECKING, Annotated

import typer

from overnight.domain import BadInput, NotFound

if TYPE_CHECKING:
    from overnight.ledger import JobRow, Ledger
    from overnight.reviews import ReviewRow
    from overnight.settings import Settings

FULL_LENGTH = 36
SHORT_ID = 20
"""`job_` and 16 hex digits: the millisecond and 16 random bits."""

Tenant = Annotated[
    str | None,
    typer.Option(
        "--tenant",
        metavar="TENANT",
        help="Of this tenant (default: OVERNIGHT_TENANT, else default).",
        show_default=False,
    ),
]
AllTenants = Annotated[bool, typer.Option("--all-tenants", help="Of every tenant.")]


class WrongUsage(BadInput):
    """The command line itself is off: exit code 2."""


def tenant_of(tenant: str | None, settings: "Settings") -> str:
    """The tenant that is meant: the one that was named, else that of the settings. Raises BadInput."""
    from overnight.domain import check_identifier

    return settings.tenant_id if tenant is None else check_identifier(tenant, "--tenant")


def tenants_of(tenant: str | None, every: bool, settings: "Settings") -> str:
    """As `tenant_of`; "" for all tenants, which must be asked for. Raises WrongUsage, BadInput."""
    if not every:
        return tenant_of(tenant, settings)
    if tenant is not None:
        raise WrongUsage("--tenant and --all-tenants: give one of the two")
    return ""


def for_tenant(command: str, tenant_id: str, settings: "Settings") -> str:
    """A command to paste, which works where it is pasted: with --tenant where the settings name another tenant."""
    import shlex

    ours = command.startswith("overnight ") and command not in {"overnight up"}
    return f"{command} --tenant {shlex.quote(tenant_id)}" if ours and tenant_id != settings.tenant_id else command


def refuse_early_options(context: typer.Context) -> None:
    """Raises WrongUsage for an option that stands before the subcommand, where it would be lost: `budget --tenant a top-up`."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            word = f"{context.command_path} {context.invoked_subcommand}"
            raise WrongUsage(f"{parameter.opts[0]} stands before the subcommand: give it after `{word}`")


def is_job_id(name: str) -> bool:
    """Whether it is a job id or, as lists show it, the beginning of one."""
    digits = name.removeprefix("job_")
    return SHORT_ID <= len(name) <= FULL_LENGTH and digits != name and set(digits) <= set("0123456789abcdef")


async def find_job(ledger: "Ledger", name: str, tenant_id: str) -> "JobRow":
    """A job of this tenant: by `last`, a job id or its beginning, or the id given from outside. Raises NotFound, or BadInput
    where it fits several.

    `last` is the newest job; of a child job, the one it all began with.
    """
    if name == "last":
        newest = await ledger.jobs(tenant_id=tenant_id, most=1)
        if not newest:
            raise NotFound(
                f"tenant {tenant_id} has no job yet; `overnight demo` or `overnight run` makes one, --tenant names another"
            )
        return await ledger.job(newest[0].root_job_id, tenant_id)
    found: dict[str, JobRow] = {}
    if name.startswith("job_") and len(name) <= FULL_LENGTH:
        # Ids end in hexadecimal digits, so that all with this beginning stand below it with a g.
        page = await ledger.jobs(tenant_id=tenant_id, before=name + "g", most=4)
        found = {job.job_id: job for job in page if job.job_id.startswith(name)}
    try:
        named = await ledger.job(name, tenant_id)
        found.setdefault(named.job_id, named)
    except NotFound:
        pass
    if not found:
        raise NotFound(
            f"{name}: no such job of tenant {tenant_id}. `overnight jobs` lists them, --tenant names another tenant"
        )
    if len(found) > 1:
        several = ", ".join(list(found)[:3]) + (", …" if len(found) > 3 else "")
        raise BadInput(f"{name} fits several jobs of tenant {tenant_id}: {several}. Give a whole job id")
    return next(iter(found.values()))


async def find_review(ledger: "Ledger", name: str, tenant_id: str) -> "ReviewRow":
    """A review of this tenant: by its id, or the beginning of an open one. Raises NotFound, BadInput where it fits several."""
    from overnight.reviews import list_reviews, read_review

    if len(name) < FULL_LENGTH:
        open_ones = await list_reviews(ledger.store, tenant_id=tenant_id, most=1000)
        found = [review for review in open_ones if review.review_id.startswith(name)]
        if len(found) > 1:
            several = ", ".join(review.review_id for review in found[:3]) + (", …" if len(found) > 3 else "")
            raise BadInput(f"{name} is the beginning of several open reviews: {several}. Give more of it")
        if found:
            return found[0]
    missing = (
        f"{name}: no such review of tenant {tenant_id}. `overnight reviews` lists the open ones, --tenant names another"
    )
    try:
        review = await read_review(ledger.store, name)
    except BadInput:
        raise NotFound(missing) from None
    if review.tenant_id != tenant_id:
        raise NotFound(missing)
    return review
