"""A short storm of `kill -9` on each store that covers every crash point. `make crash` runs longer."""

from dataclasses import replace
from pathlib import Path

from crash.evidence import Evidence
from crash.invariants import broken
from crash.points import PASSED_BY, PLACES, points_in_source
from crash.report import figures, table
from crash.storm import Storm, Terms

HALVES = {"sqlite": PLACES[::2], "postgres": PLACES[1::2]}


def test_storm_covers_every_crash_point() -> None:
    """A new point must be entered in tests/crash/points.py, with the roles that pass it."""
    assert points_in_source() == PASSED_BY.keys()
    assert {point for half in HALVES.values() for point, _ in half} == PASSED_BY.keys()


async def test_storm_loses_and_repeats_nothing(store_url: str, tmp_path: Path) -> None:
    places = HALVES["postgres" if store_url.startswith("postgres") else "sqlite"]
    storm = Storm(store_url, tmp_path, Terms(len(places), 1, places, jobs_at_once=7, settle_s=45))
    try:
        await storm.run()
        evidence = Evidence(storm)
        wrong = broken(evidence)
        facts = figures(storm, evidence, wrong, 0)
        assert not wrong, table(facts, storm, wrong)
        assert not storm.plan.missing
        assert facts["kills"] >= len(places)
        assert facts["workers_lost"] > 0
        assert facts["model_calls_recorded"] > 0
        assert facts["effects_done"] > 0
        tamper(evidence)
        assert {each.rule for each in broken(evidence)} == NOTICED
    finally:
        storm.close()


async def test_stopped_workers_repeat_nothing(store_url: str, tmp_path: Path) -> None:
    """SIGSTOP for longer than the lease, between a claim and its call and anywhere else; the vendor keeps every arrival."""
    storm = Storm(store_url, tmp_path, Terms(0, 1, [], workers=2, jobs_at_once=7, settle_s=45, stops=3, lease_s=4.0))
    try:
        await storm.run()
        evidence = Evidence(storm)
        wrong = broken(evidence)
        facts = figures(storm, evidence, wrong, 0)
        assert not wrong, table(facts, storm, wrong)
        assert facts["stops_past_the_lease"] == 3
        assert facts["stops_after_a_claim"] > 0
        assert facts["workers_lost"] > 0
        assert facts["effects_unknown"] > 0
    finally:
        storm.close()


NOTICED = {
    "no_acknowledged_event_is_lost",
    "no_effect_is_repeated_or_missing",
    "nothing_recorded_is_paid_twice",
    "every_job_comes_to_its_end",
    "budgets_add_up",
}


def tamper(evidence: Evidence) -> None:
    """Change the evidence as bugs would: rules that never complain prove nothing."""
    events = next(iter(evidence.events.values()))
    events[1] = replace(events[1], row=(*events[1].row[:-1], b"another content"))
    evidence.outside.done.append(evidence.outside.done[0])
    answered = next(call for call in evidence.calls.values() if call.ends[0].name == "model_succeeded")
    evidence.paid[answered.asked] += 10
    evidence.jobs[next(iter(evidence.seen.cases))]["result"] = b"[]"
    evidence.reservations.append(("call_1", events[0].job_id, "nobody"))
