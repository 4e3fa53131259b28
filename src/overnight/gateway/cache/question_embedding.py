"""The vector of a question, made by a call of our own: admitted, metered and recorded in the job like any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from overnight.domain import CallFacts, OvernightError

from ..identity import Subject
from .vectors import read_vector

if TYPE_CHECKING:
    from ..gateway import Gateway

_encode = msgspec.json.Encoder().encode
LABEL = "semantic cache"
FORM = "embeddings"
FAILED = "the question could not be embedded"


class Embedded(msgspec.Struct, frozen=True):
    """`numbers` is None when there is no vector; `why` says why. `cost_microusd` was spent either way."""

    numbers: list[float] | None
    cost_microusd: int = 0
    why: str = ""


async def embed(gateway: Gateway, subject: Subject, model: str, text: str, until: float) -> Embedded:
    """Embed `text` in the name of `subject` until a time of the loop. Raises nothing that a provider or a budget is to blame
    for: a call that wanted a cache goes on without one."""
    from overnight.wire_formats import CODECS

    from ..call.pipeline import Flight

    who = msgspec.structs.replace(subject.who, task_id=None)
    aside = msgspec.structs.replace(subject, who=who, label=LABEL, place=None, fingerprint=None, aside=True)
    try:
        request = CODECS[FORM].read(_encode({"model": model, "input": text, "encoding_format": "float"}))
        flight = Flight(
            gateway, aside, request, gateway.decide(CallFacts(model=model, agent=who.agent_id, format=FORM))
        )
    except OvernightError as error:
        return Embedded(None, 0, f"{FAILED}: {error}")
    flight.deadline = min(flight.deadline, until)
    try:
        await flight.run()
    except OvernightError as error:
        return Embedded(None, flight.cost, f"{FAILED}: {error}")
    finally:
        flight.landed()
        if aside.known and not subject.known:
            subject.job_id, subject.ancestors, subject.known = aside.job_id, aside.ancestors, True
    if flight.reply is None:
        return Embedded(None, flight.cost, f"{FAILED}: {flight.failure.message if flight.failure else 'no answer'}")
    numbers = read_vector(flight.reply.body)
    return Embedded(numbers, flight.cost, "" if numbers else f"{FAILED}: the answer holds no vector")
