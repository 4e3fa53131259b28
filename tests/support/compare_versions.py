"""Compare the answers and events of this checkout's gateway with those of another one.

    PYTHONPATH=tests/support:bench python tests/support/compare_versions.py /tmp/other/src

Every endpoint, over every format that its provider may speak, whole and streamed, with a good answer and every class of failure.
Status, headers, body and recorded events are compared, without ids and times. Prints each difference.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

from endpoints import MODES, request_of
from failure_acts import ACTS, MIDSTREAM, routing
from faulty_upstream import faulty_upstream
from overnight.domain import public_event
from overnight.ledger import Feed
from overnight.store import open_store

OURS = Path(__file__).parents[2] / "src"
VARIES = re.compile(
    r"\b[a-z]+_[0-9a-f]{16,}\b|\b[0-9a-f]{16,}\b|\b\d{10,}\b|\d{4}-\d\d-\d\dT[\d:.]+Z|127\.0\.0\.1:\d+"
    r"|(?<=ms\": )[\d.]+|(?<=ms\":)[\d.]+|(chatcmpl|msg|resp|call|rs|fc)_?-?[0-9A-Za-z]{12,}"
)
HEADERS = ("date", "x-overnight-overhead-ms", "x-overnight-job-id", "content-length")
FIELDS = (
    "ts",
    "content_mac",
    "content_sha256",
    "latency_ms",
    "queued_ms",
    "first_byte_ms",
    "trace_id",
    "span_id",
    "brain_version",
)


@contextlib.contextmanager
def gateway(source: Path, home: Path, routing_yaml: str) -> Iterator[str]:
    (home / "brain").mkdir(parents=True)
    (home / "brain" / "routing.yaml").write_text(routing_yaml)
    environment = os.environ | {"OVERNIGHT_HOME": str(home), "OVERNIGHT_BRAIN": str(home / "brain")}
    environment |= {"PYTHONPATH": str(source), "OVERNIGHT_DATABASE_URL": str(home / "ledger.db")}
    command = [
        sys.executable,
        "-m",
        "overnight",
        "gateway",
        "--port",
        "0",
        "--offline-base-url",
        "http://127.0.0.1:9/v1",
    ]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=home) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
        process.terminate()


def plain(text: str) -> str:
    return VARIES.sub("#", text)


async def answers(url: str, spoken: str, plan: dict[str, Any]) -> dict[str, Any]:
    """The answers by name of the request."""
    found: dict[str, Any] = {}
    async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
        for name in ("good", *(f"{each}{alone}" for each in plan for alone in ("", "-alone"))):
            for form, speaks, streamed in MODES:
                if speaks != spoken:
                    continue
                path, sent = request_of(form, name, streamed)
                label = f"{name} {form} over {spoken}{' streamed' if streamed else ''}"
                headers = {"x-job-id": label.replace(" ", "-"), "x-job-attempt": "1"}
                try:
                    answer = await client.post(path, json=sent, headers=headers)
                except httpx2.HTTPError as error:
                    found[label] = type(error).__name__
                    continue
                kept = {key: plain(value) for key, value in answer.headers.items() if key not in HEADERS}
                found[label] = {"status": answer.status_code, "headers": kept, "body": plain(answer.text)}
    return found


async def recorded(home: Path) -> dict[str, Any]:
    events: dict[str, Any] = {}
    with open_store(str(home / "ledger.db")) as store:
        ledger = {row[0]: row[1] for row in []}
        page = await Feed(store).read(most=100_000)
        for each in page.events:
            told = {key: value for key, value in public_event(each.event).items() if key not in FIELDS}
            if told["event"] == "created":
                ledger[each.event.job_id] = told["detail"].get("external_id", "")
            name = ledger[each.event.job_id]
            events.setdefault(name, []).append(json.loads(plain(json.dumps(told))))
    return events


def differences(ours: dict[str, Any], theirs: dict[str, Any], path: str = "") -> Iterator[str]:
    for key in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(key), theirs.get(key)
        if isinstance(mine, dict) and isinstance(other, dict):
            yield from differences(mine, other, f"{path}{key}.")
        elif isinstance(mine, list) and isinstance(other, list) and len(mine) == len(other):
            yield from differences(dict(enumerate(mine)), dict(enumerate(other)), f"{path}{key}.")
        elif mine != other:
            yield f"{path}{key}\n    before {str(other)[:400]}\n    now    {str(mine)[:400]}"


async def compare(other: Path) -> int:
    count, answered = 0, 0
    for streams in (False, True):
        acts = MIDSTREAM if streams else ACTS
        for spoken in dict.fromkeys(spoken for _, spoken, _ in MODES):
            if streams and spoken.endswith("embeddings"):
                continue
            plan = {name: act(spoken) if callable(act) and name in ("server_error", "overloaded", "rate_limited") and streams
                    else act for name, act in acts.items()}  # fmt: skip
            async with faulty_upstream(
                {f"bad-{name}": act for name, act in plan.items() if name != "connection"}
            ) as upstream:
                got, logs = [], []
                for source in (OURS, other):
                    with tempfile.TemporaryDirectory() as home:
                        place = Path(home) / "home"
                        place.mkdir()
                        with gateway(source, place, routing(upstream, spoken, list(plan))) as url:
                            got.append(await answers(url, spoken, plan))
                        logs.append(await recorded(place))
                answered += len(got[0])
                for what, (ours, theirs) in {"answer": got, "events": logs}.items():
                    for each in differences(ours, theirs):
                        count += 1
                        print(f"{what}: {each}")
    print(f"{answered} answers, {count} differences")
    return 1 if count else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the src folder of the other version")
    sys.exit(asyncio.run(compare(parser.parse_args().other.resolve())))
