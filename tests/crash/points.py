"""The crash points, and the roles that reach them."""

import random
import re
from collections import Counter

from .fleet import ROOT, Armed

WORKER, GATEWAY, STREAMS, PROGRAM = "worker", "gateway", "streams", "program"
PASSED_BY: dict[str, tuple[str, ...]] = {
    "step_started": (WORKER,),
    "step_ran": (WORKER,),
    "step_committed": (WORKER,),
    "effect_claimed": (WORKER, PROGRAM),
    "effect_called": (WORKER, PROGRAM),
    "effect_committed": (WORKER, PROGRAM),
    "child_started": (WORKER,),
    "model_recorded": (WORKER,),
    "model_admitted": (WORKER, GATEWAY, STREAMS),
    "model_answered": (WORKER, GATEWAY, STREAMS),
    "model_settled": (WORKER, GATEWAY, STREAMS),
}
PLACES = [(point, role) for point, roles in PASSED_BY.items() for role in roles]
MOST_PASSES = {WORKER: 12, GATEWAY: 6, STREAMS: 6, PROGRAM: 2}
TESTED_ELSEWHERE = {
    "batch_written", "batch_committed", "log_opened", "log_written", "log_flushed", "log_rotated", "sink_delivered",
    "sink_committed", "notification_claimed", "notification_sent", "effect_waits", "effect_repeated",
    "claim_recorded", "report_recorded",
}  # fmt: skip
"""The points of the writer and of sinks: tests/telemetry/test_log_crashes.py. Those of effects that wait for approval, or
are repeated under their key: tests/effects/test_effect_approvals.py and test_unknown_outcomes.py. Those of effects over HTTP:
tests/gateway/test_effects_killed.py. Those of deliveries: tests/notifications/test_sender_crashes.py."""
_CALL = re.compile(r'crash_point\(\s*"(\w+)"\s*\)')


def points_in_source() -> set[str]:
    """Every name that the product's code calls `crash_point` with, except for those that are tested elsewhere."""
    files = (ROOT / "src" / "overnight").rglob("*.py")
    return {name for file in files for name in _CALL.findall(file.read_text(encoding="utf-8"))} - TESTED_ELSEWHERE


class Plan:
    """What the next process of a role is armed with. Each place in `wanted` comes first, until it was hit."""

    def __init__(self, chance: random.Random, wanted: list[tuple[str, str]], armed_share: float) -> None:
        self._chance, self._armed_share = chance, armed_share
        self.waiting = list(wanted)
        chance.shuffle(self.waiting)
        self._under_way: list[tuple[str, str]] = []
        self.hits: Counter[tuple[str, str]] = Counter()

    @property
    def missing(self) -> list[tuple[str, str]]:
        """The places that no process was killed at so far."""
        return [*self.waiting, *self._under_way]

    def next(self, role: str, calm: bool) -> Armed | None:
        """A crash point for a new process; None: it is left to the others. `calm`: only what is still missing."""
        for place in self.waiting:
            if place[1] == role:
                self.waiting.remove(place)
                self._under_way.append(place)
                return Armed(place[0], self._chance.randint(1, 2))
        if calm or self._chance.random() > self._armed_share:
            return None
        point = self._chance.choice([point for point, at in PLACES if at == role])
        return Armed(point, self._chance.randint(1, MOST_PASSES[role]))

    def ended(self, role: str, armed: Armed, hit: bool) -> None:
        """An armed process ended: at its point, or otherwise."""
        place = (armed.point, role)
        if hit:
            self.hits[place] += 1
        if place in self._under_way:
            self._under_way.remove(place)
            if not hit:
                self.waiting.insert(0, place)
