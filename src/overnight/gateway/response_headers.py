"""The HTTP answer of a call that has ended, and the headers that say what was done for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from overnight.domain import BadInput

from .error_responses import JSON, Answer, failed

if TYPE_CHECKING:
    from .call.pipeline import Flight

MOST_HEADER = 1000
_PLAIN = bytes(each if 32 <= each != 127 else ord("?") for each in range(256))
"""Names come from clients' bodies, ids from providers; what cannot stand in a header must not end the answer."""

REQUEST_ID = {"messages": b"request-id"}
"""Where the clients of a format look for the request's id, if not in `x-request-id`."""


def answer_of(flight: Flight) -> Answer:
    """The HTTP answer of a call that has ended."""
    target, reply = flight.target, flight.reply
    if reply is not None:
        answer = Answer(200, [JSON], reply.body)
    elif flight.failure is not None:
        where = f"{target.provider} {target.model}"
        wire = flight.wire
        said = wire.client is wire.spoken
        answer = failed(flight.failure, where, flight.tries, flight.failure_body, wire.client, own_words=said)
    else:
        raise BadInput("the call has no end yet")
    answer.headers += call_headers(flight)
    return answer


def call_headers(flight: Flight, *, streams: bool = False) -> list[tuple[bytes, bytes]]:
    """What every answer says about its call; `streams`: its pieces are still to come, though the provider may be done."""
    given = flight.given
    call_id, model = flight.call_id, flight.target.model
    if given is not None:
        call_id, model = given.facts.call_id or "", given.facts.model or ""
    request_id = flight.reply.request_id if flight.reply else None
    told_model = _listed((model,))
    headers = [
        (b"x-job-id", flight.subject.job_id.encode()),
        (b"x-overnight-call-id", call_id.encode()),
        (b"x-overnight-model", told_model),
        (REQUEST_ID.get(flight.request.format, b"x-request-id"), (request_id or call_id.encode()).translate(_PLAIN)),
    ]
    # What a stream costs is not known when its headers go out; it stands in the usage piece.
    if not streams and (flight.reply is not None or flight.failure is not None or given is not None):
        headers.append((b"x-overnight-cost-usd", b"%d.%06d" % divmod(flight.cost, 1_000_000)))
        if flight.bound:
            headers.append((b"x-overnight-cost-bound-usd", b"%d.%06d" % divmod(flight.bound, 1_000_000)))
    headers.append((b"x-overnight-overhead-ms", b"%.2f" % flight.overhead_ms()))
    if (left := flight.admission.left_microusd) is not None:
        headers.append((b"x-overnight-budget-left-usd", b"%d.%06d" % divmod(max(left, 0), 1_000_000)))
    if flight.losses:
        headers.append((b"x-overnight-dropped", _listed(flight.losses)))
    if flight.lowered or 0 < flight.tokens < (flight.request.cap or 0):
        headers.append((b"x-overnight-output-cap", b"%d" % flight.tokens))
    cache = flight.visit.told(flight.cached) if flight.visit is not None else None
    if cache is not None and flight.replayed is None and flight.degraded is None:
        headers.append((b"x-overnight-cache", cache.encode()))
    if given is not None and (degraded := (given.facts.detail or {}).get("degraded")):
        headers.append((b"x-overnight-degraded", degraded["kind"].encode()))
    if flight.way.passed:
        headers.append((b"x-overnight-circuit-open", _listed(flight.way.passed)))
    if flight.replayed is not None:
        headers.append((b"x-overnight-replayed", b"true"))
    elif flight.fell_back and flight.tries:
        headers.append((b"x-overnight-fallback", told_model))
    return headers


def _listed(names: Iterable[str]) -> bytes:
    """As much as a header may hold; three dots at its end say that there was more."""
    text = ", ".join(names)
    if len(text) > MOST_HEADER:
        whole = text[: MOST_HEADER - 3].rpartition(", ")[0]
        text = f"{whole}, ..." if whole else f"{text[: MOST_HEADER - 3]}..."
    return text.encode("latin-1", "replace").translate(_PLAIN)
