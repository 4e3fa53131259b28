"""Time limits for each part of a model call."""

import msgspec


class TimeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits in milliseconds, from `deadlines` in routing.yaml.

    `queue_ms`: waiting for budgets, rate limits, circuits and the store, over all attempts. `connect_ms`: opening a
    connection. `first_byte_ms`: a stream until its first byte. `silence_ms`: a stream between two reads; None takes
    the smaller of the default and the call's deadline. `total_ms`: everything but queueing, to the end of a stream; a
    longer deadline of a route takes precedence, which is possible only if the file does not set `total_ms`.
    """

    queue_ms: int = 30_000
    connect_ms: int = 10_000
    first_byte_ms: int = 300_000
    silence_ms: int | None = None
    total_ms: int = 600_000

    def silence(self, deadline_ms: int) -> float:
        """The maximum silence of a stream in seconds, for a call with this deadline."""
        return (self.silence_ms if self.silence_ms is not None else min(DEFAULT_SILENCE_MS, deadline_ms)) / 1000

    def stream_total(self, deadline_ms: int) -> float:
        """The maximum duration of a started stream in seconds."""
        return max(self.total_ms, deadline_ms) / 1000


DEFAULT_SILENCE_MS = 120_000
