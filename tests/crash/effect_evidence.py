"""What the effect storm leaves: the rows and events of the product, and the vendor's own record."""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from .rows import Rows


@dataclass
class EffectRecord:
    """An effect as the product knows it. `vendor_key`: the key that the vendor received. `events`: its own, in order."""

    effect_id: str
    effect_key: str
    job_id: str
    tool: str
    subject: str
    state: str
    provider_id: str | None
    over_http: bool
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def vendor_key(self) -> str:
        return self.effect_id if self.over_http else self.effect_key


@dataclass
class EffectEvidence:
    """`subjects`: everything that was wanted. `ended`: what each program or job said of each of them, as a word; "" if it never
    ended. `inbox`: the pending cards before anybody decided, as the command line shows them; `unknown_then`: the ids of the
    effects that were unknown at that moment. `receipts`: the entries of all receipts. `stopped`: processes that stood still.
    """

    subjects: list[str]
    effects: list[EffectRecord]
    arrivals: list[dict[str, Any]]
    deeds: list[dict[str, Any]]
    ended: dict[str, str]
    inbox: list[dict[str, Any]]
    unknown_then: set[str]
    receipts: list[dict[str, Any]]
    stopped: set[int] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)


def read_effects(rows: Rows) -> list[EffectRecord]:
    """All effects with their events, by plain SQL."""
    found = rows.ask(
        "SELECT effect_id, effect_key, job_id, tool, state, provider_id, client_key FROM effect ORDER BY claimed_at"
    )
    events: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    subjects: dict[str, str] = {}
    for body, content in rows.ask("SELECT body, content FROM event ORDER BY job_id, seq"):
        facts = json.loads(body)
        key = facts.get("idempotency_key")
        if facts.get("kind") != "effect" or key is None:
            continue
        events[key].append((facts["event"], facts))
        if facts["event"] == "tool_called" and content:
            subjects[key] = json.loads(content)["subject"]
    return [
        EffectRecord(
            effect_id=effect_id,
            effect_key=key,
            job_id=job_id,
            tool=tool,
            subject=subjects.get(key, ""),
            state=state,
            provider_id=provider_id,
            over_http=client_key is not None,
            events=events[key],
        )
        for effect_id, key, job_id, tool, state, provider_id, client_key in found
    ]
