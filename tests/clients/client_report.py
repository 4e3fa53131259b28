"""Shared by all clients: the headers of the job, the tool, and the report of the result."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

HEADERS = {"x-job-id": os.environ["JOB"], "x-agent-name": "weather-agent"}
CUSTOM_HEADERS = "\n".join(f"{name}: {value}" for name, value in HEADERS.items())
"""In the form of `ANTHROPIC_CUSTOM_HEADERS`."""
_asked: list[str] = []


def weather_of(city: str) -> str:
    _asked.append(city)
    return "18 degrees and quiet"


def write_program() -> None:
    """Write the tool as a program, `./weather CITY`, for clients whose tool is a shell."""
    program = Path("weather")
    program.write_text('#!/bin/sh\necho "$1" >> asked\necho 18 degrees and quiet\n')
    program.chmod(0o755)


def asked_of_program() -> list[str]:
    """Return the cities that the program was run for."""
    return Path("asked").read_text().split()


def report(answer: str, pieces: int, asked: Sequence[str] | None = None) -> None:
    """Print the last line of output. `pieces` counts the chunks that arrived streamed."""
    print(json.dumps({"answer": answer, "asked": list(_asked if asked is None else asked), "pieces": pieces}))
