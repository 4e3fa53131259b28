"""The figures of a storm, and the facts to investigate a failure."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from .evidence import MILLIONS, Evidence, told
from .invariants import RULES, Wrong
from .storm import Storm


def figures(storm: Storm, evidence: Evidence, wrong: list[Wrong], took_s: float) -> dict[str, Any]:
    """The facts of one storm, as they stand in its line of JSON."""
    seen = storm.seen
    names = Counter(fact.name for fact in evidence.all_events())
    ends = Counter(end.name for call in evidence.calls.values() for end in call.ends)
    paid = sum(evidence.paid.values())
    subjects = Counter(deed.subject for deed in evidence.outside.done)
    return {
        "store": "postgres" if storm.url.startswith("postgres") else "sqlite",
        "seed": storm.terms.seed,
        "kills": len(seen.kills),
        "kills_by_role": dict(Counter(kill.role for kill in seen.kills)),
        "kills_at_points": sum(storm.plan.hits.values()),
        "kills_in_pairs": sum(kill.how == "pair" for kill in seen.kills),
        "stops_past_the_lease": len(seen.stops),
        "stops_after_a_claim": sum(stop.claimed for stop in seen.stops),
        "arrivals_at_the_vendor": len(evidence.outside.arrived),
        "arrivals_again": sum(arrival.again for arrival in evidence.outside.arrived),
        "kills_at_random": sum(kill.how == "random" for kill in seen.kills),
        "places_hit": len(storm.plan.hits),
        "places_missing": [f"{role} at {point}" for point, role in storm.plan.missing],
        "jobs": len(evidence.jobs),
        "programs": len(seen.programs),
        "events": sum(names.values()),
        "events_seen_meanwhile": evidence.tailed_meanwhile,
        "workers_lost": names["worker_lost"],
        "recoveries": names["resumed"] + names["attempt_started"],
        "effects_done": len(evidence.outside.done),
        "effects_repeated": sum(count - 1 for count in subjects.values()),
        "effects_unknown": names["tool_unknown"],
        "decided_by_person": dict(seen.persons),
        "model_calls_paid": paid,
        "model_calls_recorded": ends["model_succeeded"],
        "model_calls_lost_in_flight": ends["model_lost"],
        "model_calls_paid_again": sum(count - 1 for count in evidence.paid.values()),
        "model_calls_replayed": names["model_replayed"],
        "cost_usd": _sum(evidence, "cost_microusd") / MILLIONS,
        "bound_usd": _sum(evidence, "bound_microusd") / MILLIONS,
        "violations": len(wrong),
        "took_s": round(took_s, 1),
    }


def _sum(evidence: Evidence, field: str) -> int:
    """Of all calls; a correction replaces what its call was booked at before."""
    return sum(
        fact.facts.get(field, 0) - (fact.facts.get("detail") or {}).get(f"was_{field}", 0)
        for fact in evidence.all_events()
    )


def table(facts: dict[str, Any], storm: Storm, wrong: list[Wrong]) -> str:
    """The same for people."""
    lines = [f"── {facts['store']}, seed {facts['seed']} " + "─" * 60]
    for name, value in facts.items():
        shown = ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, dict) else value
        lines.append(f"{name.replace('_', ' '):<28}{shown if shown != [] else 'none'}")
    lines.append("")
    lines += [
        f"  {role:<8} killed at {point:<18}{count:>4}" for (point, role), count in sorted(storm.plan.hits.items())
    ]
    lines.append("")
    broken = Counter(each.rule for each in wrong)
    for rule in RULES:
        verdict = f"BROKEN {broken[rule.__name__]} times" if broken[rule.__name__] else "holds"
        lines.append(f"  {rule.__name__.replace('_', ' '):<42}{verdict}")
    lines += [f"    {each.rule}: {each.what} [{each.job_id or '-'}]" for each in wrong[:20]]
    return "\n".join(lines)


def dump(storm: Storm, evidence: Evidence, wrong: list[Wrong], facts: dict[str, Any]) -> Path:
    """Write everything about the jobs concerned to a file; its path."""
    concerned = {each.job_id for each in wrong if each.job_id is not None}
    jobs = [
        {
            "job": {
                key: repr(value) if isinstance(value, bytes) else value for key, value in evidence.jobs[job_id].items()
            },
            "events": [told(fact) for fact in evidence.events[job_id]],
        }
        for job_id in sorted(concerned)
    ]
    content = {
        "figures": facts,
        "wrong": [vars(each) for each in wrong],
        "kills": [vars(kill) for kill in storm.seen.kills],
        "jobs": jobs,
        "logs": {process.owner: process.last_words() for process in storm.fleet.processes if process.last_words()},
    }
    file = storm.folder / f"violations-{facts['store']}-{facts['seed']}.json"
    file.write_text(json.dumps(content, indent=1, default=str))
    return file
