"""Checks of model calls in any log: each has exactly one end, and corrections come after it."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

ENDS = frozenset({"model_succeeded", "model_failed", "model_lost"})


def check_ends(bodies: Iterable[Mapping[str, Any]], in_flight: Collection[str] = ()) -> int:
    """Assert it of the events of one job, in order, as JSON bodies; how many calls there were. `in_flight`: calls that still
    hold a reservation."""
    called: set[str] = set()
    late: set[str] = set()
    ended: Counter[str] = Counter()
    for body in bodies:
        name, call_id = body["event"], body.get("call_id", "")
        detail = body.get("detail") or {}
        if name == "model_called":
            assert call_id not in called, f"{call_id} was called twice"
            called.add(call_id)
        elif name in ENDS and call_id and not {"cache", "degraded"} & detail.keys():
            assert call_id in called, f"{name} of {call_id}, which was never called"
            ended[call_id] += 1
        elif name == "cost_corrected" and "of_job_id" not in detail:
            assert ended[call_id], f"{call_id} was corrected before it ended"
            if detail.get("source") == "late_answer":
                assert call_id not in late, f"the late answer of {call_id} was counted twice"
                late.add(call_id)
    twice = [call_id for call_id, times in ended.items() if times > 1]
    assert not twice, f"ended more than once: {twice}"
    open_calls = called - ended.keys()
    assert open_calls == set(in_flight) & called, f"without an end: {open_calls}; reserved: {set(in_flight) & called}"
    return len(called)
