"""Which job or review a person means."""

from typing import TYPE_CHECKING

from overnight.domain import BadInput, NotFound

if TYPE_CHECKING:
    from overnight.ledger import JobRow, Ledger
    from overnight.reviews import ReviewRow

FULL_LENGTH = 36
SHORT_ID = 20
"""`job_` and 16 hex digits: the millisecond and 16 random bits."""


class WrongUsage(BadInput):
    """The command line itself is off: exit code 2."""


def is_job_id(name: str) -> bool:
    """Whether it is a job id or, as lists show it, the beginning of one."""
    digits = name.removeprefix("job_")
    return SHORT_ID <= len(name) <= FULL_LENGTH and digits != name and set(digits) <= set("0123456789abcdef")


async def find_job(ledger: "Ledger", name: str, tenant_id: str = "default") -> "JobRow":
    """By `last`, a job id or its beginning, or the id given from outside. Raises NotFound, or BadInput where it fits several.

    `last` is the newest job; of a child job, the one it all began with.
    """
    if name == "last":
        newest = await ledger.jobs(most=1)
        if not newest:
            raise NotFound("there is no job yet; `overnight demo` or `overnight run` makes one")
        return await ledger.job(newest[0].root_job_id)
    if name.startswith("job_") and len(name) < FULL_LENGTH:
        # Ids end in hexadecimal digits, so that all with this beginning stand below it with a g.
        found = [job for job in await ledger.jobs(before=name + "g", most=4) if job.job_id.startswith(name)]
        if len(found) > 1:
            several = ", ".join(job.job_id for job in found[:3]) + (", …" if len(found) > 3 else "")
            raise BadInput(f"{name} is the beginning of several jobs: {several}. Give more of it")
        if found:
            return found[0]
    try:
        return await ledger.job(name)
    except NotFound:
        if tenant_id == "default":
            raise
        return await ledger.job(name, tenant_id)


async def find_review(ledger: "Ledger", name: str) -> "ReviewRow":
    """By a review id, or the beginning of an open one. Raises BadInput."""
    from overnight.reviews import list_reviews, read_review

    if len(name) < FULL_LENGTH:
        found = [review for review in await list_reviews(ledger.store, most=1000) if review.review_id.startswith(name)]
        if len(found) > 1:
            raise BadInput(f"{name} is the beginning of several open reviews; `overnight reviews` shows the whole ids")
        if found:
            return found[0]
    return await read_review(ledger.store, name)
