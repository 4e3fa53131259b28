"""Prompt-cache markers: placed in long prefixes, absent from recorded and compared requests."""

import json
from typing import Any

import pytest

from caching import Caching
from overnight.domain import Attribution
from overnight.gateway.cache.prompt_markers import with_cache_key, with_markers, with_prompt_markers
from overnight.gateway.identity import Subject
from overnight.store import Store
from overnight.testing import SpawnedProvider
from overnight.wire_formats import Prepared
from overnight.wire_formats.dialects import dialect_of
from serving import serving

LONG = "word " * 2000
TOOL = {"name": "file", "description": LONG, "input_schema": {"type": "object"}}
USER, SAID = {"role": "user", "content": LONG}, {"role": "assistant", "content": "yes"}


def marked(body: dict[str, Any], model: str = "claude-sonnet-4-5") -> list[str]:
    """The places that got a marker; everything else must be as it was."""
    sent, count = with_markers(json.dumps({"model": model, "max_tokens": 9, **body}).encode(), model)
    found: list[str] = []

    def walk(value: Any, place: str) -> Any:
        if isinstance(value, dict):
            if value.pop("cache_control", None) is not None:
                found.append(place)
            return {key: walk(each, f"{place}.{key}".strip(".")) for key, each in value.items()}
        if isinstance(value, list):
            return [walk(each, f"{place}[{at}]") for at, each in enumerate(value)]
        return value

    left = walk(json.loads(sent), "")
    for part in ("system", *[("messages", at) for at in range(len(body["messages"]))]):
        was = body.get(part) if isinstance(part, str) else body["messages"][part[1]]["content"]
        now = left.get(part) if isinstance(part, str) else left["messages"][part[1]]["content"]
        assert now in (was, [{"type": "text", "text": was}])
    assert left.get("tools") == body.get("tools")
    assert count == len(found)
    return found


def test_markers_on_last_tool_system_prompt_and_last_turn() -> None:
    body = {"tools": [TOOL, TOOL], "system": "brief", "messages": [USER, SAID, {"role": "user", "content": "go on"}]}
    assert set(marked(body)) == {"tools[1]", "system[0]", "messages[2].content[0]"}


def test_single_question_receives_no_marker() -> None:
    assert marked({"system": LONG, "messages": [USER]}) == ["system[0]"]
    assert marked({"messages": [USER]}) == []


def test_short_prefixes_receive_no_marker() -> None:
    assert marked({"tools": [{"name": "a"}], "system": "brief", "messages": [USER]}) == ["messages[0].content[0]"]
    assert marked({"system": "brief", "messages": [SAID, {"role": "user", "content": "hi"}]}) == []


@pytest.mark.parametrize(
    ("model", "worth"),
    [("claude-sonnet-4-5", True), ("claude-3-5-haiku", True), ("claude-haiku-4.5", False), ("claude-opus-4.6", False)],
)
def test_minimum_prefix_depends_on_the_model(model: str, worth: bool) -> None:
    assert bool(marked({"system": LONG, "messages": [{"role": "user", "content": "q"}]}, model)) is worth


def test_client_markers_are_kept() -> None:
    own = {"type": "text", "text": LONG, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    body = json.dumps({"tools": [TOOL], "messages": [{"role": "user", "content": [own]}]}).encode()
    assert with_markers(body, "claude-sonnet-4-5") == (body, 0)


def test_unmarkable_blocks_receive_no_marker() -> None:
    thinking = {"type": "thinking", "thinking": LONG, "signature": "s"}
    empty = {"type": "text", "text": " "}
    picture = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/a.png"}}
    late = {"name": "late", "defer_loading": True}
    turns = [USER, {"role": "assistant", "content": [thinking]}, {"role": "user", "content": [picture, empty]}]
    assert set(marked({"tools": [TOOL, late], "messages": [*turns, SAID]})) == {"tools[0]", "messages[2].content[0]"}
    assert marked({"messages": [USER, {"role": "user", "content": [thinking]}, SAID]}) == []


@pytest.mark.parametrize("body", [b"x" * 9000, b"[" * 9000, b'{"tools":7,"messages":' + b" " * 9000 + b"[]}"], ids=len)
def test_unreadable_body_is_unchanged(body: bytes) -> None:
    assert with_markers(body, "claude-sonnet-4-5") == (body, 0)


def test_openai_cache_key_hides_names() -> None:
    one, other = Attribution("acme", session_id="s"), Attribution("beta", session_id="s")
    keys = {with_cache_key(b'{"model":"m"}', who, "job")[0] for who in (one, one, other)}
    assert len(keys) == 2
    assert all(len(json.loads(key)["prompt_cache_key"]) == 32 for key in keys)
    own = b'{"model":"m","prompt_cache_key":"mine"}'
    assert with_cache_key(own, one, "job") == (own, 0)


@pytest.mark.parametrize(
    ("base_url", "unattributed", "count"),
    [
        ("https://api.openai.com/v1", False, 1),
        ("https://api.openai.com/v1", True, 0),
        ("https://api.mistral.ai/v1", False, 0),
        ("http://127.0.0.1:1/v1", False, 0),
    ],
)
def test_only_supporting_providers_receive_a_cache_key(base_url: str, unattributed: bool, count: int) -> None:
    sent = Prepared("/chat/completions", b'{"model":"m"}')
    subject = Subject(Attribution(), "job_1", ("job_1",), False, "m", unattributed=unattributed)
    assert with_prompt_markers(sent, "chat", "m", dialect_of(base_url), subject)[1] == count


async def test_markers_reach_only_the_anthropic_target(store: Store, provider: SpawnedProvider) -> None:
    routing = f"""
default_model: claude-sonnet-4-5
providers: {{mine: {{kind: anthropic, base_url: '{provider.base_url}', api_key_env: MY_KEY, models: ['claude-*']}}}}
cache: {{prompt_markers: MARKERS}}
"""
    fingerprints: list[Any] = []
    for markers in ("true", "false"):
        async with serving(store, provider, routing.replace("MARKERS", markers), environment={"MY_KEY": "k"}) as served:
            cached, job = Caching(served), f"markers {markers}"
            messages = [{"role": "system", "content": LONG}, {"role": "user", "content": "q"}]
            assert (await cached.ask("", job, messages=messages)).cache is None
            [called], [answered] = await cached.facts(job, "model_called"), await cached.facts(job, "model_succeeded")
            assert (answered.detail or {}).get("prompt_markers") == (1 if markers == "true" else None)
            [event] = [each for each in await served.events(job) if each.facts.event == "model_succeeded"]
            [asked] = [each for each in await served.events(job) if each.facts.event == "model_called"]
            fingerprints.append((called.input_ref, asked.content, event.fingerprint))
    assert fingerprints[0] == fingerprints[1]
