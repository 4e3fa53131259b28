"""Every benchmark, one after the other, and the table for RESULTS.md.

    python bench/run_all.py                       all, as RESULTS.md states them (about half an hour)
    python bench/run_all.py appends parked        some
    python bench/run_all.py --runs 1              a quick look

Nothing else should run on the machine meanwhile. The table is printed, not written: what it says needs somebody who reads it.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCRIPTS = ("steps", "appends", "storage", "parked", "gateway", "two_processes", "streams", "overload", "effects_http")


def machine() -> str:
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} × {processor}, {memory:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()};"
        f" load average {load:.2f} at the start, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; commit {commit()}"
    )


def commit() -> str:
    """The version that is measured; a changed tree is said to be one. `BENCH_COMMIT` names it where there is no git."""
    if named := os.environ.get("BENCH_COMMIT"):
        return named
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, check=False, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def run(script: str, runs: int | None) -> tuple[list[dict[str, Any]], int]:
    """The JSON lines a benchmark printed, and its exit status; all of its output is passed on."""
    command = [sys.executable, str(HERE / f"{script}.py"), *(["--runs", str(runs)] if runs else [])]
    found: list[dict[str, Any]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith('{"bench"'):
                found.append(json.loads(line))
    return found, process.returncode


def short(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:,.0f}"


def row(script: str, line: dict[str, Any]) -> str:
    """One row: a ratio with what it is against, or a figure that stands on its own."""
    value, unit = short(line["value"]), line["unit"]
    low, high = line["spread"]
    ratio = f"{short(line['ratio'])} × {line['against']}" if "ratio" in line else ""
    verdict = {True: "met", False: "**missed**", None: ""}[line.get("met")]
    if "goal" in line and low < float(line["goal"].split()[1]) < high:
        verdict += ", spread crosses the goal"
    cells = (line["bench"], f"{value} {unit}", ratio, f"{short(low)} to {short(high)}", str(line["runs"]))
    return f"| {' | '.join(cells)} | {line.get('goal', '')} | {verdict} | `{script}.py` |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "scripts", nargs="*", metavar="benchmark", help=f"of {', '.join(SCRIPTS)}; all if none is named"
    )
    parser.add_argument("--runs", type=int)
    options = parser.parse_args()
    unknown = [name for name in options.scripts if name not in SCRIPTS]
    if unknown:
        parser.error(f"{unknown[0]}: no such benchmark; there are {', '.join(SCRIPTS)}")
    began, rows, broken = machine(), list[str](), list[str]()
    for script in options.scripts or SCRIPTS:
        print(f"\n── {script} ──", flush=True)
        found, status = run(script, options.runs)
        rows += [row(script, line) for line in found]
        if status != 0:
            broken.append(f"{script}.py ended with status {status}: its figures above are not complete")
    print(f"\n{began}; load average {os.getloadavg()[0]:.2f} at the end\n")
    print("| benchmark | median | ratio | spread | runs | goal | | command |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    if broken:
        raise SystemExit("\n".join(broken))


if __name__ == "__main__":
    main()
