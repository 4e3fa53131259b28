"""Every endpoint, format and class of failure: status, body, bookings and the one recorded end.

The tables are complete by test: a new format, pair of formats or class fails here until somebody has decided what it does.
"""

import asyncio
import json
from typing import Any, NamedTuple

import pytest

from endpoints import ENDPOINTS, MODES, PAIRS, WITHOUT_STREAMS, request_of
from failure_acts import ACTS, MIDSTREAM, routing
from faulty_upstream import (
    error_of,
    faulty_upstream,
)
from overnight.api.routes import CALLS
from overnight.budgets import BUDGET_SQL
from overnight.providers.error_classes import CLASSES
from overnight.store import Store, open_store
from overnight.wire_formats import CODECS
from serving import Served, serving


class Expected(NamedTuple):
    """What a class does. `own_words`: the provider's own status and words are passed on, in the client's format."""

    status: int
    tries: int
    falls_back: bool
    billed: bool
    own_words: int | None = None


# With two tries for everything but timeouts, which have one.
EXPECTED: dict[str, Expected] = {
    "rate_limited": Expected(429, 2, True, False),
    "quota": Expected(429, 1, True, False),
    "overloaded": Expected(503, 2, True, False),
    "server_error": Expected(502, 2, True, False),
    "timeout": Expected(504, 1, True, True),
    "connection": Expected(502, 2, True, False),
    "lost": Expected(502, 2, True, True),
    "cut": Expected(502, 2, True, True),
    "malformed": Expected(502, 2, True, True),
    "invalid_request": Expected(400, 1, False, False, own_words=422),
    "auth": Expected(502, 1, True, False),
    "not_found": Expected(404, 1, True, False),
    "content_filter": Expected(400, 1, False, False, own_words=400),
    "context_length": Expected(400, 1, True, False, own_words=400),
}
NEVER_FROM_A_PROVIDER = {"circuit_open", "gateway_busy"}
REPORTED = {"server_error", "overloaded", "rate_limited"}
NEVER_IN_A_STREAM = {  # they are found out before a provider begins to answer
    "quota", "connection", "lost", "invalid_request", "auth", "not_found", "content_filter", "context_length",
}  # fmt: skip


def test_every_endpoint_pair_and_class_has_an_expectation() -> None:
    assert {f"/v1{CODECS[name].path}" for name in ENDPOINTS if CODECS[name].path} == set(CALLS)
    assert set(ENDPOINTS) == set(CODECS) == {client for client, _ in PAIRS}
    assert set(EXPECTED) | NEVER_FROM_A_PROVIDER == set(CLASSES)
    assert set(ACTS) == set(EXPECTED)
    assert set(MIDSTREAM) | NEVER_IN_A_STREAM == set(EXPECTED)
    assert set(SHAPES) == set(CODECS)


# ── shapes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def openai_error(body: Any) -> bool:
    error = body.get("error")
    return set(body) == {"error"} and set(error) == {"message", "type", "param", "code"} and bool(error["message"])


def anthropic_error(body: Any) -> bool:
    error = body.get("error", {})
    kinds = {
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "request_too_large",
    }
    kinds |= {"rate_limit_error", "api_error", "overloaded_error", "timeout_error", "billing_error"}
    return body.get("type") == "error" and error.get("type") in kinds and bool(error.get("message"))


def google_error(body: Any) -> bool:
    error = body.get("error", {})
    return set(body) == {"error"} and {"code", "message", "status"} <= set(error) and bool(error["message"])


def responses_event(body: Any) -> bool:
    return body.get("type") in ("error", "response.failed") and "message" in json.dumps(body)


SHAPES = {"chat": openai_error, "responses": openai_error, "messages": anthropic_error, "embeddings": openai_error}
SHAPES |= {"compact": openai_error, "gemini": google_error, "gemini_embeddings": google_error}
EVENTS = {"chat": openai_error, "responses": responses_event, "messages": anthropic_error, "gemini": google_error}


def last_event(text: str) -> Any:
    """The data of a stream's last event."""
    lines = [line for line in text.split("\n") if line.startswith("data:")]
    return json.loads(lines[-1].removeprefix("data:"))


# ── a gateway before both ───────────────────────────────────────────────────────────────────────────────────────────


async def ask(served: Served, client: str, route: str, streamed: bool, attempt: str = "1") -> Any:
    path, body = request_of(client, route, streamed)
    headers = {"x-job-id": route, "x-job-attempt": attempt}
    return await served.http.post(path, json=body, headers=headers)


async def booked(served: Served, job_id: str) -> dict[str, int]:
    values = {"tenant_id": "default", "scope": "job", "scope_id": job_id}
    [row] = await served.store.read(BUDGET_SQL["read_budget"], values)
    fields = ("reserved_microusd", "spent_microusd", "bound_microusd", "calls")
    names = (
        BUDGET_SQL["read_budget"].sql["sqlite"].split("FROM")[0].removeprefix("SELECT").replace("\n", " ").split(",")
    )
    found = dict(zip((name.strip() for name in names), row, strict=True))
    return {name: found[name] for name in fields}


async def problems_of_money(served: Served, name: str, expected: Expected | None) -> list[str]:
    """Each failed try at nothing, at what came or at all that was reserved; the sums alike, nothing left reserved."""
    events = await served.events(name)
    job_id = events[0].job_id
    reserved = {e.facts.call_id: e.facts.detail["reserved_microusd"] for e in events if e.facts.event == "model_called"}
    found: list[str] = []
    for event in events:
        facts = event.facts
        if facts.event == "model_failed":
            owed = reserved[facts.call_id] if expected is None or expected.billed else 0
            if expected is None and name in REPORTED:
                owed = facts.input_tokens + facts.output_tokens  # at a dollar a million
                if not 0 < owed < reserved[facts.call_id]:
                    found.append(f"{name}: {owed} tokens of {reserved[facts.call_id]}")
            elif expected is None:
                bound = owed - facts.input_tokens - facts.output_tokens
                if facts.bound_microusd != bound:
                    found.append(f"{name}: the bound is {facts.bound_microusd} of {owed}, not {bound}")
            if facts.cost_microusd + (facts.bound_microusd or 0) != owed:
                found.append(
                    f"{name}: a failed try cost {facts.cost_microusd} and at most {facts.bound_microusd} more,"
                    f" reserved were {reserved[facts.call_id]}"
                )
    spent = sum(event.facts.cost_microusd or 0 for event in events)
    bounds = sum(event.facts.bound_microusd or 0 for event in events)
    row = await booked(served, job_id)
    if row != {"reserved_microusd": 0, "spent_microusd": spent, "bound_microusd": bounds, "calls": len(reserved)}:
        found.append(f"{name}: the budget says {row}, the events {spent} and {bounds} in {len(reserved)} calls")
    return found


@pytest.fixture
def store(tmp_path: Any) -> Any:
    with open_store(str(tmp_path / "ledger.db")) as opened:
        yield opened


@pytest.mark.parametrize(("client", "spoken", "streamed"), MODES)
async def test_failures_before_the_first_chunk(store: Store, client: str, spoken: str, streamed: bool) -> None:
    classes = list(EXPECTED)
    async with (
        faulty_upstream({f"bad-{name}": act for name, act in ACTS.items()}) as upstream,
        serving(store, upstream, routing(upstream, spoken, classes)) as served,  # type: ignore[arg-type]
    ):
        asked = [(name, route) for name in classes for route in (name, f"{name}-alone")]
        # Those with a deadline come last, when nobody is in their way.
        asked.sort(key=lambda each: each[0] == "timeout")
        got = await asyncio.gather(*(ask(served, client, route, streamed) for _, route in asked[:-2]))
        got += await asyncio.gather(*(ask(served, client, route, streamed) for _, route in asked[-2:]))
        found: list[str] = []
        for (name, route), answer in zip(asked, got, strict=True):
            found += await problems(served, client, spoken, name, route, answer)
            found += await problems_of_money(served, route, EXPECTED[name])
        for name in classes:
            if name != "connection" and upstream.asked[f"bad-{name}"] != 2 * EXPECTED[name].tries:
                found.append(f"{name}: the provider was asked {upstream.asked[f'bad-{name}']} times")
    assert found == []


async def problems(served: Served, client: str, spoken: str, name: str, route: str, answer: Any) -> list[str]:
    """What is not as expected of one call whose first target fails."""
    expected, saved = EXPECTED[name], EXPECTED[name].falls_back and not route.endswith("-alone")
    found: list[Any] = []
    tries = ["model_called", "model_failed"] * expected.tries
    ends = ["fallback_taken", "model_called", "model_succeeded"] if saved else []
    story = await served.story(route)
    if story != ["created", *tries, *ends]:
        found.append(story)
    failed = [event.facts.error for event in await served.events(route) if event.facts.event == "model_failed"]
    if {error.error_class for error in failed} != {name}:
        found.append([error.error_class for error in failed])
    if saved:
        if answer.status_code != 200 or answer.headers["x-overnight-fallback"] != "good":
            found.append((answer.status_code, dict(answer.headers)))
        if client not in WITHOUT_STREAMS and "three" not in answer.text:
            found.append(answer.text)
        return [f"{route}: {problem}" for problem in found]
    passed_on = expected.own_words is not None
    status = expected.own_words if passed_on else expected.status
    if answer.status_code != status or answer.headers["x-should-retry"] != "false":
        found.append((answer.status_code, dict(answer.headers)))
    if not SHAPES[client](answer.json()):
        found.append(answer.json())
    if passed_on and client == spoken and answer.content != error_of(spoken, *_words(name)):
        found.append(answer.content)
    if passed_on and _words(name)[0] not in answer.text:
        found.append(answer.text)
    if not passed_on and name not in answer.text:
        found.append(answer.text)
    return [f"{route}: {problem}" for problem in found]


def _words(name: str) -> tuple[str, str, str | None]:
    return {
        "invalid_request": ("temperature is too high", "invalid_request_error", None),
        "content_filter": ("blocked by content filtering policy", "invalid_request_error", "content_filter"),
        "context_length": ("prompt is too long: 9 > 8", "invalid_request_error", "context_length_exceeded"),
    }[name]


@pytest.mark.parametrize(("client", "spoken"), [pair for pair in PAIRS if pair[0] not in WITHOUT_STREAMS])
async def test_failures_after_the_first_chunk(store: Store, client: str, spoken: str) -> None:
    """The client has had a part: nobody else can go on from there, so it is told, billed in full and never given again."""
    classes = list(MIDSTREAM)
    made = {name: act if name in ("cut", "timeout", "malformed") else act(spoken) for name, act in MIDSTREAM.items()}
    async with (
        faulty_upstream({f"bad-{name}": act for name, act in made.items()}) as upstream,
        serving(store, upstream, routing(upstream, spoken, classes)) as served,  # type: ignore[arg-type]
    ):
        got = await asyncio.gather(*(ask(served, client, name, True) for name in classes))
        found: list[Any] = []
        for name, answer in zip(classes, got, strict=True):
            if answer.status_code != 200 or not EVENTS[client](last_event(answer.text)):
                found.append((name, answer.status_code, answer.text[-500:]))
            if name not in answer.text.rpartition("data:")[2]:
                found.append((name, "the last event does not say why", answer.text[-300:]))
            events = await served.events(name)
            if [event.facts.event for event in events] != ["created", "model_called", "model_failed"]:
                found.append((name, [event.facts.event for event in events]))
            if events[-1].facts.error.error_class != name:
                found.append((name, events[-1].facts.error))
            found += await problems_of_money(served, name, None)
        await ask(served, client, "cut", True, attempt="2")
        if "model_replayed" in await served.story("cut"):
            found.append("a part of an answer was given again")
        assert upstream.asked["good"] == 0
    assert found == []
