"""What the effect storm leaves in the store: the effects and their events, by plain SQL."""

import json
from collections import defaultdict
from typing import Any

from effect_judge import EffectRecord

from .rows import Rows


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
