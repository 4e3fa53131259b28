"""The work to prepare a request grows in proportion to its calls: a request with many cannot stop the event loop."""

import json
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from overnight.wire_formats import CODECS, wire_between
from overnight.wire_formats.dialects import Dialect

Json = dict[str, Any]


def responses_calls(count: int) -> Json:
    calls = [{"type": "function_call", "call_id": f"c{n}", "name": "f", "arguments": "{}"} for n in range(count)]
    outputs = [{"type": "function_call_output", "call_id": f"c{n}", "output": "o"} for n in reversed(range(count))]
    return {"model": "m", "input": [{"role": "user", "content": "x"}, *calls, *outputs]}


def gemini_calls(count: int) -> Json:
    calls = [{"functionCall": {"name": f"f{n}", "args": {}}} for n in range(count)]
    results = [{"functionResponse": {"name": f"f{n}", "response": {}}} for n in reversed(range(count))]
    said = {"role": "user", "parts": [{"text": "x"}]}
    return {"model": "m", "contents": [said, {"role": "model", "parts": calls}, {"role": "user", "parts": results}]}


def steps(form: str, body: Json) -> int:
    """The function calls and resumed generators of one preparation for a chat target."""
    request, wire = CODECS[form].read(json.dumps(body).encode()), wire_between(form, ("chat",))
    assert wire is not None
    found = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal found
        found += event == "call"

    sys.setprofile(count)
    try:
        wire.prepare(request, msgspec.Raw(b'"m"'), 100, Dialect())
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize(("form", "made"), [("responses", responses_calls), ("gemini", gemini_calls)])
def test_twice_the_calls_take_twice_the_work(form: str, made: Callable[[int], Json]) -> None:
    steps(form, made(10))
    assert steps(form, made(800)) < 2.5 * steps(form, made(400))
