"""The event: one immutable fact about a job, in the past tense.

Event types that need an explanation:

    step_failed      an attempt of a step raised an error; a retry is a later step_started
    value_recorded   a clock reading, random number or identifier that job code requested
    timer_set        a sleep or timeout started; `detail.due_at` is durable, so a crash does not extend it
    timer_fired      the time of a timer was reached
    signal_received  an external answer to a wait arrived
    child_started    a child job was created; child_finished carries its result
    attempt_started  a new attempt began; the previous attempt is fenced
    answers_dropped  a retry re-runs calls: the results in `detail.seqs` are void, those since `detail.since` are not
        replayed
    boundary_kept    a retry reached such a call, and its result is still valid: `detail.of`, or the operation that
        was started
    model_replayed   a recorded answer was returned again at no cost; `detail.of` is its seq
    cache_missed     the caches had no answer for a call; `decision.why`
    cache_shadow     the answer that the semantic cache would have returned, and its difference; `detail`
    degraded         no provider answered a call: a fixed or older answer was returned; `decision.kind`,
        `decision.why`
    cancel_requested the cancellation of the job was requested
    diverged         the code does not match its history; `detail.diff`
    budget_topped_up an amount was added to the budget of the job, or to one that it waits for; `detail` has budget
        and amounts
    loop_stopped     the job repeated the same call; a review decides whether it continues
    cost_corrected   a call that was booked at a bound has a known cost: the new booking; `detail.source` is
        late_answer,
                     operator or invoice. In the log of another job that it woke, `detail.of_job_id` names the job of
                         the call
    cost_alarm       the job costs far more than similar jobs; reported once
    worker_lost      the lease expired, or the worker process ended
    replay_ended     recovery has replayed the whole history; the job continues live
    tool_refused     an effect was not begun: invalid arguments, a rule, or a limit; `decision.why`
    tool_drifted     the result of a tool does not fit its contract; `decision`
    tool_duplicated  a second execution of a committed effect was reported; `detail` has both ids of the provider
    review_expired   a review was not decided in time, which is not a rejection
    review_superseded a review does not apply any more: its job ended, its arguments or its rule changed
    notification_sent a review was sent to an address of a person; `detail` names both
    notification_failed a review could not be sent, or perhaps was: `error.class` is failed or unknown
"""

from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from .json_text import decode_for_display

LIFECYCLE = (
    "created",
    "scheduled",
    "started",
    "step_started",
    "tool_called",
    "tool_succeeded",
    "tool_failed",
    "tool_unknown",
    "step_committed",
    "parked",
    "resumed",
    "completed",
    "failed",
    "cancelled",
)
MODEL = (
    "model_called",
    "model_succeeded",
    "model_failed",
    "model_lost",
    "fallback_taken",
    "circuit_opened",
    "circuit_closed",
    "cache_hit",
    "budget_stopped",
    "rate_limited",
)
REVIEW_EVENTS = ("review_requested", "review_decided")
OTHER_EVENTS = (
    "step_failed",
    "value_recorded",
    "timer_set",
    "timer_fired",
    "signal_received",
    "child_started",
    "child_finished",
    "attempt_started",
    "answers_dropped",
    "boundary_kept",
    "model_replayed",
    "cache_missed",
    "cache_shadow",
    "degraded",
    "cancel_requested",
    "diverged",
    "budget_topped_up",
    "loop_stopped",
    "cost_alarm",
    "cost_corrected",
    "worker_lost",
    "replay_ended",
    "tool_refused",
    "tool_drifted",
    "tool_duplicated",
    "review_expired",
    "review_superseded",
    "notification_sent",
    "notification_failed",
)
EVENT_NAMES = frozenset(LIFECYCLE + MODEL + REVIEW_EVENTS + OTHER_EVENTS)


class ErrorFacts(msgspec.Struct, frozen=True, omit_defaults=True, rename={"error_class": "class"}):
    """The cause of a failure. `message` is bounded and contains no secret; it is content, and empty after erasure."""

    error_class: str
    message: str = ""
    code: str | None = None
    retryable: bool = False


class Event(msgspec.Struct, omit_defaults=True):
    """An event before it is stored. The ledger assigns `seq` and the time under the lock of the job's row.

    `content` is inline JSON (parameters, arguments, a result). It is stored separately and outside of the seal, so
    that it can be erased while the event stays. `path` and `ordinal` are set if the event answers a boundary.
    `content_mac` is its HMAC under a key that is erased with it; earlier versions wrote `content_sha256`.
    Free texts (a question, a note, the message of an exception) are content too: see `event_texts.py`.
    `about` is the caller's record that the call is about. Of a model call, `queued_ms` is the time in queues and in the
    store before its attempt was sent, `first_byte_ms` the time until the first event of a streamed answer.
    `cost_microusd` is known cost; `bound_microusd` is the maximum of additional unknown cost. `booked` reads both.
    """

    event: str
    step: str | None = None
    task_id: str | None = None
    session_id: str | None = None
    agent_id: str | None = None
    workflow: str | None = None
    attempt: int | None = None
    actor: str | None = None
    idempotency_key: str | None = None
    route: str | None = None
    model: str | None = None
    provider: str | None = None
    call_id: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cost_microusd: int | None = None
    bound_microusd: int | None = None
    latency_ms: float | None = None
    input_ref: str | None = None
    output_ref: str | None = None
    content_mac: str | None = None
    content_sha256: str | None = None
    error: ErrorFacts | None = None
    decision: dict[str, Any] | None = None
    detail: dict[str, Any] | None = None
    kind: str | None = None
    name: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    brain_version: str | None = None
    about: str | None = None
    queued_ms: float | None = None
    first_byte_ms: float | None = None


def booked(event: Event) -> tuple[int | None, int | None]:
    """(known cost, bound) of an event in micro-dollars; None for each that is absent.

    The estimated cost of earlier versions was a bound.
    """
    cost, bound = event.cost_microusd, event.bound_microusd
    if bound is None and cost and (event.event == "model_lost" or (event.detail or {}).get("estimated")):
        return 0, cost
    return cost, bound


class Recorded(msgspec.Struct):
    """A stored event: its place in the job, and the facts."""

    job_id: str
    seq: int
    at: int
    facts: Event
    path: str | None = None
    ordinal: int | None = None
    fingerprint: str | None = None
    content: bytes | None = None
    tenant_id: str = "default"
    parent_job_id: str | None = None


def iso_utc(at_us: int) -> str:
    """Microseconds since the epoch as ISO 8601 in UTC with milliseconds."""
    return datetime.fromtimestamp(at_us / 1_000_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _to_public(value: Any, key: str = "") -> Any:
    """Convert internal units to public ones at any depth: times to UTC text, money to dollars."""
    if isinstance(value, dict):
        pairs = cast(dict[str, Any], value)
        return {name.replace("_microusd", "_usd"): _to_public(inner, name) for name, inner in pairs.items()}
    if isinstance(value, list):
        return [_to_public(item) for item in cast(list[Any], value)]
    if isinstance(value, int) and key.endswith("_at"):
        return iso_utc(value)
    if isinstance(value, int) and key.endswith("_microusd"):
        return value / 1_000_000
    return value


def public_event(recorded: Recorded, *, with_content: bool = False) -> dict[str, Any]:
    """The event in its public JSON names. Content is included only on request, since it may be personal data."""
    facts = {key: value for key, value in msgspec.to_builtins(recorded.facts).items() if value is not None}
    name = facts.pop("event")
    for money in ("cost_microusd", "bound_microusd"):
        facts.pop(money, None)
    cost, bound = booked(recorded.facts)
    public: dict[str, Any] = {
        "seq": recorded.seq,
        "event": name,
        "ts": iso_utc(recorded.at),
        "job_id": recorded.job_id,
        "run_id": recorded.job_id,
        "tenant_id": recorded.tenant_id,
    }
    if recorded.parent_job_id:
        public["parent_job_id"] = recorded.parent_job_id
    public |= {key: _to_public(value) if key in {"detail", "decision"} else value for key, value in facts.items()}
    if cost is not None:
        public["cost_usd_est"] = cost / 1_000_000
    if bound is not None:
        public["bound_usd"] = bound / 1_000_000
    if recorded.path is not None:
        public["position"] = {"path": recorded.path, "ordinal": recorded.ordinal}
    if recorded.fingerprint:
        public["fingerprint"] = recorded.fingerprint
    if with_content and recorded.content is not None:
        public["content"] = decode_for_display(recorded.content)
    return public
