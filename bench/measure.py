"""Run workloads side by side and state one ratio.

A workload is a command whose last line of output is JSON with `value`. Each run is a process of its own; the workloads
take turns (A B A B ...) because the machine's speed drifts, and the ratio is the median of the ratios within each turn.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

RUNS = 5
ALSO = ("p50_ms", "p99_ms", "first_byte_p50_ms", "server_cpu_us")  # shown when a workload reports them


@dataclass
class Workload:
    """What to run, and after `compare` what came out: one entry per run."""

    name: str
    command: Sequence[str]
    env: dict[str, str] | None = None
    values: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    """User and system time of the process and the children it waited for."""
    outputs: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> None:
        before = _children_cpu()
        env = self.env if self.env is not None else dict(os.environ)
        done = subprocess.run(self.command, check=False, env=env, stdout=subprocess.PIPE, text=True)
        lines = done.stdout.strip().splitlines()
        if done.returncode != 0 or not lines:
            raise SystemExit(f"{self.name} failed with status {done.returncode}: {done.stdout[-500:]}")
        output = json.loads(lines[-1])
        self.values.append(float(output["value"]))
        self.cpu_seconds.append(_children_cpu() - before)
        self.outputs.append(output)


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def compare(
    bench: str,
    unit: str,
    ours: Workload,
    against: Workload,
    *others: Workload,
    runs: int = RUNS,
    goal: float | None = None,
) -> float:
    """Interleave all workloads `runs` times, print the table and the JSON line, return the ratio ours / against.

    `value` is the median of ours; `spread` is the lowest and highest ratio of a turn; `goal` is the least ratio wanted.
    """
    workloads = (ours, against, *others)
    for turn in range(runs):
        for workload in workloads if turn % 2 == 0 else reversed(workloads):
            workload.run()
    print(f"\n{bench} ({unit}, {runs} runs)")
    print(f"{'':<34}{'median':>12}{'min':>12}{'max':>12}{'CPU s':>8}")
    for each in workloads:
        middle, low, high = statistics.median(each.values), min(each.values), max(each.values)
        more = "".join(
            f"  {key} {statistics.median(o[key] for o in each.outputs):g}" for key in ALSO if key in each.outputs[0]
        )
        cpu = statistics.median(each.cpu_seconds)
        print(f"{each.name:<34}{middle:>12,.1f}{low:>12,.1f}{high:>12,.1f}{cpu:>8.2f}{more}")
    return ratio(bench, unit, ours, against, goal)


def ratio(bench: str, unit: str, ours: Workload, against: Workload, goal: float | None = None) -> float:
    """Report two workloads that have taken turns, and return the median of their ratios."""
    ratios = [mine / theirs for mine, theirs in zip(ours.values, against.values, strict=True)]
    report(bench, statistics.median(ours.values), unit, ratios, against.name, goal)
    return statistics.median(ratios)


def report(
    bench: str, value: float, unit: str, ratios: Sequence[float], against: str, goal: float | None = None
) -> None:
    """The last line of every benchmark, for machines."""
    line = {
        "bench": bench,
        "value": round(value, 3),
        "unit": unit,
        "ratio": round(statistics.median(ratios), 4),
        "against": against,
        "runs": len(ratios),
        "spread": [round(min(ratios), 4), round(max(ratios), 4)],
    }
    if goal is not None:
        line |= {"goal": f"≥ {goal:g} ×", "met": statistics.median(ratios) >= goal}
    print(json.dumps(line, ensure_ascii=False))
    sys.stdout.flush()


def figure(
    bench: str, unit: str, values: Sequence[float], *, at_most: float | None = None, at_least: float | None = None
) -> None:
    """Report a figure that stands on its own: the median of the runs, their spread, and the most or least it may be."""
    value = statistics.median(values)
    line: dict[str, Any] = {
        "bench": bench,
        "value": round(value, 3),
        "unit": unit,
        "runs": len(values),
        "spread": [round(min(values), 3), round(max(values), 3)],
    }
    if at_most is not None:
        line |= {"goal": f"≤ {at_most:g} {unit}", "met": value <= at_most}
    if at_least is not None:
        line |= {"goal": f"≥ {at_least:g} {unit}", "met": value >= at_least}
    print(json.dumps(line, ensure_ascii=False))
    sys.stdout.flush()
