"""Every error a caller may meet, as one tree.

OvernightError
├── BadInput            the caller's words are off; the message names the place and the way out
├── Unauthenticated     no key was given where one is needed, or it is not a valid one
├── Forbidden           the key is valid, and does not reach as far as this
├── NotFound            no such job, review, brain version
├── Conflict            the thing exists already, with other content
├── Fenced              a newer attempt or lease holds the job; this writer must stop
├── Divergence          the code no longer asks what its history answers
├── BudgetStopped       settled spend or a hard count leaves no room for this call
├── LoopStopped         the job asks the same again and again; a person decides whether it goes on
└── StoreUnavailable    the database could not be reached or written
"""


class OvernightError(Exception):
    """Root of all errors raised on purpose."""


class BadInput(OvernightError):
    """The input cannot be taken as it is."""


class Unauthenticated(OvernightError):
    """Nobody knows who asks: the key is missing, unknown, expired or revoked."""


class Forbidden(OvernightError):
    """Who asks is known, and may not do this. The message says what they may."""


class NotFound(OvernightError):
    """What was named does not exist for this tenant."""


class Conflict(OvernightError):
    """It exists already, and differs."""


class Fenced(OvernightError):
    """Another worker or a newer attempt owns the job now."""


class Divergence(OvernightError):
    """A boundary differs from the recorded one at the same position."""


class StoreUnavailable(OvernightError):
    """The database refused or lost the write; nothing of it was kept."""


class BudgetStopped(OvernightError):
    """A hard stop. `scope`, `name` and `per` say whose budget it is and for how long (`scope_id` is its row), `limit` which of
    its limits; money is in micro-dollars. `resets_at`: when its day or month is over (microseconds). `top_ups`: how often
    people had added to it. `bound_microusd`: what calls of unknown cost are booked at, beside `spent`; `bounds`: the largest
    of them (call, job, micro-dollars, why). `corrections`: how often such calls had been corrected.
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
    """A job asks the same again and again. `review_id` is the question to a person whether it may go on; `rejected` that the
    answer was no."""

    def __init__(self, message: str, *, review_id: str, rejected: bool = False) -> None:
        super().__init__(message)
        self.review_id, self.rejected = review_id, rejected
