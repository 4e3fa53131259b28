"""The invariants after a storm. Each check yields the violations, with their jobs."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import program
from .ends import check_ends
from .evidence import ANSWERS, Evidence, Fact, Position
from .tail import digest
from .workload import EXPECTED, deeds, same

FINISHED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Wrong:
    """A broken invariant."""

    rule: str
    what: str
    job_id: str | None = None


Found = Iterator[tuple[str, str | None]]


def nothing_went_wrong_on_the_way(evidence: Evidence) -> Found:
    for fault in evidence.seen.faults:
        yield fault, None
    for arrival in evidence.outside.unclaimed:
        if arrival.pid not in _stopped_in_the_midst(evidence):
            yield f"{arrival.subject} was asked of the outside world before its claim was durable", None


def no_acknowledged_event_is_lost(evidence: Evidence) -> Found:
    """What another process once read is still there, byte for byte; and no sequence has a gap."""
    now = {(fact.job_id, fact.seq): digest(fact.row) for fact in evidence.all_events()}
    for (job_id, seq), was in evidence.tailed.items():
        if now.get((job_id, seq)) != was:
            yield f"event {seq} was seen and is {'changed' if (job_id, seq) in now else 'gone'}", job_id
    if len(evidence.tailed) != len(now):
        yield f"the reader saw {len(evidence.tailed)} events, the database has {len(now)}", None
    for job_id, events in evidence.events.items():
        if [fact.seq for fact in events] != list(range(1, evidence.jobs[job_id]["last_seq"] + 1)):
            yield "its sequence has a gap, or does not end at last_seq", job_id
    succeeded = {fact.facts["call_id"] for fact in evidence.all_events() if fact.name == "model_succeeded"}
    for call_id in evidence.outside.heard - succeeded:
        yield f"a program was given the answer of {call_id}, which is not recorded", None


def _live_answers(events: list[Fact]) -> dict[Position, list[Fact]]:
    """The answers by position, without those that a retry dropped."""
    dropped = {seq for fact in events if fact.name == "answers_dropped" for seq in fact.facts["detail"]["seqs"]}
    found: dict[Position, list[Fact]] = defaultdict(list)
    for fact in events:
        if fact.name in ANSWERS and fact.position is not None and fact.seq not in dropped:
            found[fact.position].append(fact)
    return found


def no_recorded_value_changes(evidence: Evidence) -> Found:
    """A boundary is answered once."""
    for job_id, events in evidence.events.items():
        for position, answers in _live_answers(events).items():
            # A call that failed for good stands beside the answer of its fallback.
            final = [answer for answer in answers if answer.name != "model_failed"]
            if len(final) > 1:
                yield f"{position} was answered {len(final)} times: seqs {[answer.seq for answer in final]}", job_id


def _stopped_in_the_midst(evidence: Evidence) -> set[int]:
    """The processes that may have been stopped in the midst of a call: nothing can keep such a call from arriving late."""
    return {stop.pid for stop in evidence.seen.stops if not stop.claimed}


def _came_late(evidence: Evidence) -> set[str]:
    """The keys under which those may have done something after a decision about it."""
    midst = _stopped_in_the_midst(evidence)
    return {arrival.key for arrival in evidence.outside.arrived if arrival.pid in midst}


def no_effect_is_repeated_or_missing(evidence: Evidence) -> Found:
    counted = Counter(deed.subject for deed in evidence.outside.done)
    keys = defaultdict[str, set[str]](set)
    for deed in evidence.outside.done:
        keys[deed.subject].add(deed.key)
    must: dict[str, str | None] = {}
    may: set[str] = set()
    for job_id, (kind, case) in evidence.seen.cases.items():
        if evidence.jobs[job_id]["state"] == "succeeded":
            exactly, at_most = deeds(kind, case, evidence.seen.rejected)
            must |= dict.fromkeys(exactly, job_id)
            may |= at_most
    for label, result in evidence.seen.programs.items():
        must |= dict.fromkeys(program.deeds(label, evidence.seen.rejected), None) if result is not None else {}
    midst = _stopped_in_the_midst(evidence)
    came_late = _came_late(evidence)
    for arrival in evidence.outside.arrived:
        if arrival.again and arrival.pid not in midst:
            yield f"{arrival.subject} reached the vendor again, by pid {arrival.pid}", must.get(arrival.subject)
    for subject, count in counted.items():
        if count > 1:
            yield f"{subject} was done {count} times, under keys {keys[subject]}", must.get(subject)
        if subject in evidence.seen.rejected and not keys[subject] & came_late:
            yield f"{subject} was done although a person had said no", None
    for subject in must.keys() - counted.keys():
        yield f"{subject} was never done", must[subject]
    if all(job["state"] == "succeeded" for job in evidence.jobs.values() if job["parent_job_id"] is None):
        for subject in counted.keys() - must.keys() - may:
            if not keys[subject] & came_late:
                yield f"{subject} was done, and nobody wanted it", None


def every_effect_is_known(evidence: Evidence) -> Found:
    """None is left open, and what is committed has the id that the other side gave."""
    by_key = {deed.key: deed for deed in evidence.outside.done}
    for job_id, key, tool, state, provider_id in evidence.effects:
        if evidence.jobs[job_id]["state"] in FINISHED and state in ("claimed", "unknown"):
            yield f"{tool} {key} is still {state}", job_id
        if state == "committed" and (key not in by_key or str(by_key[key].number) != provider_id):
            yield f"{tool} {key} is committed as {provider_id}, outside as {by_key.get(key)}", job_id
        if state != "committed" and key in by_key and key not in _came_late(evidence):
            yield f"{tool} {key} is {state}, and was done as {by_key[key]}", job_id


def nothing_recorded_is_paid_twice(evidence: Evidence) -> Found:
    called, succeeded, lost = Counter(), Counter(), Counter()
    owner: dict[tuple[str, str], str] = {}
    for call in evidence.calls.values():
        owner[call.asked] = call.job_id
        called[call.asked] += 1
        # An answer that comes after its call was settled as lost is told, and is no end.
        call_ends = [end for end in call.ends if "settled" not in end.facts.get("detail", {})]
        if len(call_ends) != 1:
            yield f"{call.call_id} has the ends {[end.name for end in call_ends]}", call.job_id
        succeeded[call.asked] += any(end.name == "model_succeeded" for end in call_ends)
        lost[call.asked] += any(end.name == "model_lost" for end in call.ends)
    for asked, paid in evidence.paid.items():
        job_id = owner.get(asked)
        if paid > called[asked]:
            yield f"{asked} was paid {paid} times and called {called[asked]} times", job_id
        if succeeded[asked] > 1:
            yield f"{asked} was paid again after it was recorded: {succeeded[asked]} answers", job_id
        if paid > succeeded[asked] + lost[asked]:
            yield f"{asked} was paid {paid} times: {succeeded[asked]} recorded, {lost[asked]} lost", job_id
    for asked in succeeded - evidence.paid:
        yield f"{asked} is recorded more often than it was paid", owner[asked]


def only_calls_in_flight_are_lost(evidence: Evidence) -> Found:
    """A call is lost only if its lease ended by a kill, or its gateway was killed, while it had no end."""
    killed = {kill.owner for kill in evidence.seen.kills}
    for job_id, events in evidence.events.items():
        if evidence.jobs[job_id]["runtime"] != "python":
            continue
        open_calls: set[str] = set()
        in_flight: set[str] = set()
        # A survivor may settle the calls of a dead worker before another one takes the job over.
        early: dict[str, int] = {}
        for fact in events:
            call_id = fact.facts.get("call_id", "")
            if fact.name == "model_called":
                open_calls.add(call_id)
            elif fact.name == "worker_lost":
                in_flight |= open_calls
                early.clear()
                # A process that is stopped while it holds SQLite's write lock keeps all others from renewing their leases.
                if fact.facts["actor"] not in killed and not evidence.seen.stops:
                    yield f"{fact.facts['actor']} was given up for lost at {fact.seq}, but nobody had killed it", job_id
            elif fact.name in ("model_succeeded", "model_failed"):
                open_calls.discard(call_id)
            elif fact.name == "model_lost" and call_id not in in_flight:
                early[call_id] = fact.seq
        if not evidence.seen.stops:
            for call_id, seq in early.items():
                yield f"{call_id} was lost at {seq} without a kill", job_id


def every_job_comes_to_its_end(evidence: Evidence) -> Found:
    for job_id, (kind, case) in evidence.seen.cases.items():
        job = evidence.jobs[job_id]
        expected = EXPECTED[kind](case, evidence.seen.rejected)
        found = json.loads(job["result"] or b"null")
        if job["state"] not in FINISHED:
            yield f"{case.name} is stuck: {job['state']}", job_id
        elif job["state"] != "succeeded" or not same(expected, found):
            yield f"{case.name} {job['state']}: {found} instead of {expected} ({job['error']})", job_id
    for job_id, job in evidence.jobs.items():
        if job["state"] not in FINISHED and job_id not in evidence.seen.cases:
            yield f"{job['name']} {job['external_id'] or ''} is stuck: {job['state']}", job_id
    for label, result in evidence.seen.programs.items():
        if result != program.expected(label, evidence.seen.rejected):
            yield f"{label} ended with {result}", None


def values_are_those_recorded(evidence: Evidence) -> Found:
    """What a finished job says its clock readings and random values were is what its log says."""
    for job_id, (kind, _) in evidence.seen.cases.items():
        job = evidence.jobs[job_id]
        result = json.loads(job["result"] or b"null")
        if kind != "sequence" or not result:
            continue
        found = result[0][1:]
        recorded = [fact.content for fact in evidence.events[job_id] if fact.name == "value_recorded"][1:]
        if found != recorded:
            yield f"it used {found}, recorded are {recorded}", job_id


def budgets_add_up(evidence: Evidence) -> Found:
    for call_id, job_id, owner in evidence.reservations:
        yield f"{call_id} of {owner} is still reserved", job_id
    spent, calls = Counter[str](), Counter[str]()
    for job_id, events in evidence.events.items():
        own = sum(map(_booked, events))
        made = sum(fact.name == "model_called" for fact in events)
        if own != evidence.usage.get(job_id, 0):
            yield f"its events cost {own}, its usage says {evidence.usage.get(job_id, 0)}", job_id
        above: str | None = job_id
        while above is not None:
            spent[above] += own
            calls[above] += made
            above = evidence.jobs[above]["parent_job_id"]
    for job_id, reserved, booked, counted in evidence.budgets:
        if (reserved, booked, counted) != (0, spent[job_id], calls[job_id]):
            want = f"0 reserved, {spent[job_id]} spent, {calls[job_id]} calls"
            yield f"its budget says {reserved} reserved, {booked} spent, {counted} calls instead of {want}", job_id


def _booked(fact: Fact) -> int:
    """What an event adds to the cost of its job, and to what it may have cost at most."""
    facts, detail = fact.facts, fact.facts.get("detail") or {}
    if fact.name == "model_replayed":
        return 0
    was = detail.get("was_cost_microusd", 0) + detail.get("was_bound_microusd", 0)  # of a correction: it replaces these
    return facts.get("cost_microusd", 0) + facts.get("bound_microusd", 0) - was


def calls_end_once(evidence: Evidence) -> Found:
    """Each model call has exactly one end."""
    for job_id, events in evidence.events.items():
        try:
            check_ends(fact.facts for fact in events)
        except AssertionError as problem:
            yield str(problem), job_id


RULES: list[Callable[[Evidence], Found]] = [
    nothing_went_wrong_on_the_way,
    no_acknowledged_event_is_lost,
    no_recorded_value_changes,
    no_effect_is_repeated_or_missing,
    every_effect_is_known,
    nothing_recorded_is_paid_twice,
    only_calls_in_flight_are_lost,
    every_job_comes_to_its_end,
    values_are_those_recorded,
    budgets_add_up,
    calls_end_once,
]


def broken(evidence: Evidence) -> list[Wrong]:
    """Everything that is wrong."""
    return [Wrong(rule.__name__, what, job_id) for rule in RULES for what, job_id in rule(evidence)]
