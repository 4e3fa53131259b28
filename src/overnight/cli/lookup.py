"""Lookup of the tenant, job or review that a command names. Resources of other tenants are reported as not found."""

import shlex

from overnight.domain import BadInput, NotFound, check_identifier
from overnight.ledger import JobRow, Ledger
from overnight.reviews import ReviewFilter, ReviewRow, find_reviews, read_review
from overnight.settings import Settings

from .usage import WrongUsage

FULL_LENGTH = 36
SHORT_ID = 20
"""`job_` and 16 hex digits: the millisecond and 16 random bits."""


def tenant_of(tenant: str | None, settings: Settings) -> str:
    """The tenant given with --tenant, else that of the settings. Raises BadInput."""

    return settings.tenant_id if tenant is None else check_identifier(tenant, "--tenant")


def tenants_of(tenant: str | None, every: bool, settings: Settings) -> str:
    """As `tenant_of`; "" for all tenants. Raises WrongUsage, BadInput."""
    if not every:
        return tenant_of(tenant, settings)
    if tenant is not None:
        raise WrongUsage("--tenant and --all-tenants exclude each other")
    return ""


def for_tenant(command: str, tenant_id: str, settings: Settings) -> str:
    """The command with --tenant where the settings name another tenant, so that it works when pasted."""

    takes_tenant = command.startswith("overnight ") and command not in {"overnight up"}
    return (
        f"{command} --tenant {shlex.quote(tenant_id)}" if takes_tenant and tenant_id != settings.tenant_id else command
    )


def is_job_id(name: str) -> bool:
    """Whether `name` is a job id, or a prefix of one as lists show it."""
    digits = name.removeprefix("job_")
    return SHORT_ID <= len(name) <= FULL_LENGTH and digits != name and set(digits) <= set("0123456789abcdef")


async def find_job(ledger: Ledger, name: str, tenant_id: str) -> JobRow:
    """A job of this tenant: by `last`, a job id or its prefix, or its external id. Raises NotFound; BadInput for an ambiguous
    prefix.

    `last` is the newest job; for a child job, its root.
    """
    if name == "last":
        newest = await ledger.jobs(tenant_id=tenant_id, most=1)
        if not newest:
            raise NotFound(
                f"tenant {tenant_id} has no jobs; create one with `overnight demo` or `overnight run`, or select another --tenant"
            )
        return await ledger.job(newest[0].root_job_id, tenant_id)
    found: dict[str, JobRow] = {}
    if name.startswith("job_") and len(name) <= FULL_LENGTH:
        # Ids end in hexadecimal digits, so all ids with this prefix sort before the prefix followed by `g`.
        page = await ledger.jobs(tenant_id=tenant_id, before=name + "g", most=4)
        found = {job.job_id: job for job in page if job.job_id.startswith(name)}
    try:
        named = await ledger.job(name, tenant_id)
        found.setdefault(named.job_id, named)
    except NotFound:
        pass
    if not found:
        raise NotFound(
            f"job {name} of tenant {tenant_id}. `overnight jobs` lists jobs; --tenant selects another tenant"
        )
    if len(found) > 1:
        several = ", ".join(list(found)[:3]) + (", …" if len(found) > 3 else "")
        raise BadInput(f"{name} matches several jobs of tenant {tenant_id}: {several}. Give a full job id")
    return next(iter(found.values()))


async def find_review(ledger: Ledger, name: str, tenant_id: str) -> ReviewRow:
    """A review of this tenant: by its id, or the prefix of a pending one, else of any. Raises NotFound; BadInput for an ambiguous
    prefix."""
    if len(name) < FULL_LENGTH:
        for state in ("pending", ""):
            # An id sorts after its prefixes.
            page = await find_reviews(ledger.store, ReviewFilter(tenant_id=tenant_id, state=state, after=name, most=4))
            found = [review for review in page if review.review_id.startswith(name)]
            if len(found) > 1:
                several = ", ".join(review.review_id for review in found[:3]) + (", …" if len(found) > 3 else "")
                kind = "pending reviews" if state else "reviews"
                raise BadInput(f"{name} matches several {kind}: {several}. Give a longer prefix")
            if found:
                return found[0]
    missing = NotFound(
        f"review {name} of tenant {tenant_id}. `overnight reviews` lists pending reviews; --tenant selects another tenant"
    )
    try:
        review = await read_review(ledger.store, name)
    except BadInput:
        raise missing from None
    if review.tenant_id != tenant_id:
        raise missing
    return review
