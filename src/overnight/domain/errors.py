"""The errors that callers can receive, as one tree.

OvernightError
├── BadInput            the input is invalid; the message names the place and the remedy
├── Unauthenticated     an API key is required but missing or invalid
├── Forbidden           the API key is valid but does not permit this
├── NotFound            the job, review or brain version does not exist
├── Conflict            the current state does not permit this
├── Fenced              a newer attempt or lease holds the job; this writer must stop
├── Divergence          the job code no longer matches its history
├── BudgetStopped       spending or a hard count leaves no room for this call
├── LoopStopped         the job repeats the same call; a person decides whether it continues
└── StoreUnavailable    the database could not be reached or written
"""


class OvernightError(Exception):
    """The base of all errors. `title` is the standard phrase that precedes the message, or ""."""

    title = ""


class BadInput(OvernightError):
    """The input is invalid."""


class Unauthenticated(OvernightError):
    """The API key is missing, unknown, expired or revoked."""

    title = "Unauthorized"


class Forbidden(OvernightError):
    """The API key does not permit this. The message names what it permits."""

    title = "Forbidden"


class NotFound(OvernightError):
    """The named resource does not exist for this tenant."""

    title = "Not found"


class Conflict(OvernightError):
    """The current state does not permit this."""

    title = "Conflict"


class Fenced(OvernightError):
    """Another worker or a newer attempt owns the job."""

    title = "Conflict"


class Divergence(OvernightError):
    """A boundary differs from the recorded one at the same position."""


class StoreUnavailable(OvernightError):
    """The database rejected or lost the write; nothing was stored."""


class BudgetStopped(OvernightError):
    """A budget is exhausted.

    `scope`, `name` and `per` identify the budget (`scope_id` is its row), `limit` its limit. Money is in micro-dollars.
    `resets_at`: the end of its day or month in microseconds. `top_ups`: the number of top-ups. `bound_microusd`: the booking
    of calls of unknown cost, in addition to `spent`; `bounds`: the largest of them (call, job, micro-dollars, reason).
    `corrections`: the number of corrected calls.
    """

    def __init__(
        self,
        message: str,
        *,
        scope: str,
        limit: str,
        spent: int,
        allowed: int,
        scope_id: str = "",
        name: str = "",
        per: str = "total",
        resets_at: int | None = None,
        top_ups: int = 0,
        bound_microusd: int = 0,
        bounds: tuple[tuple[str, str, int, str], ...] = (),
        corrections: int = 0,
    ) -> None:
        super().__init__(message)
        self.bound_microusd, self.bounds, self.corrections = bound_microusd, bounds, corrections
        self.scope, self.scope_id, self.name, self.per = scope, scope_id, name, per
        self.limit, self.spent, self.allowed = limit, spent, allowed
        self.resets_at, self.top_ups = resets_at, top_ups


class LoopStopped(OvernightError):
    """A job repeats the same call. `review_id` is the review that decides whether it continues; `rejected`: it was
    rejected."""

    def __init__(self, message: str, *, review_id: str, rejected: bool = False) -> None:
        super().__init__(message)
        self.review_id, self.rejected = review_id, rejected
