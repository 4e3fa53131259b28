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
    """A hard stop. `scope` and `limit` name the budget; the money is in micro-dollars."""

    def __init__(self, message: str, *, scope: str, limit: str, spent: int, allowed: int) -> None:
        super().__init__(message)
        self.scope = scope
        self.limit = limit
        self.spent = spent
        self.allowed = allowed
