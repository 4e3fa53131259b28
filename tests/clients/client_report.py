"""Shared by all clients: the headers of the job, the tool, and the report of the result."""

import json
import os

HEADERS = {"x-job-id": os.environ["JOB"], "x-agent-name": "weather-agent"}
_asked = []


def weather_of(city: str) -> str:
    _asked.append(city)
    return "18 degrees and quiet"


def report(answer: str, pieces: int) -> None:
    """The last line of output. `pieces` counts what came streamed."""
    print(json.dumps({"answer": answer, "asked": _asked, "pieces": pieces}))
