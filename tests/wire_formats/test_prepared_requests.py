"""One request prepared for several targets and formats: no target affects another."""

import json
from itertools import product
from typing import Any

import msgspec
import pytest

from overnight.wire_formats import CODECS, Prepared, wire_between
from overnight.wire_formats.dialects import dialect_of
from overnight.wire_formats.request import Request

Json = dict[str, Any]
TOOL = {"type": "object", "properties": {"city": {"type": "string"}}}
THINKING = {"type": "thinking", "thinking": "hm", "signature": "sealed"}
BODIES: dict[str, Json] = {
    "chat": {
        "model": "asked",
        "messages": [
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "content": None,
                "thinking_blocks": [{**THINKING, "model": "first"}],
                "tool_calls": [
                    {"id": "call_a_b_c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "call_a_b_c", "content": "rain"},
        ],
        "tools": [{"type": "function", "function": {"name": "look", "parameters": TOOL}}],
        "stream": True,
        "max_completion_tokens": 9000,
        "reasoning": {"max_tokens": 8000},
        "top_k": 3,
        "user": "me",
    },
    "compact": {"model": "asked", "input": [{"role": "user", "content": "hello"}], "instructions": "be brief"},
    "responses": {
        "model": "asked",
        "instructions": "be brief",
        "input": [{"role": "user", "content": "weather?"}],
        "tools": [{"type": "function", "name": "look", "parameters": TOOL}],
        "max_output_tokens": 9000,
        "reasoning": {"effort": "low"},
    },
    "messages": {
        "model": "asked",
        "system": "be brief",
        "messages": [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": [THINKING, {"type": "text", "text": "rain"}]},
            {"role": "user", "content": "thanks"},
        ],
        "max_tokens": 9000,
        "thinking": {"type": "enabled", "budget_tokens": 8000},
        "tools": [{"name": "look", "input_schema": TOOL}],
        "temperature": 1,
    },
    "embeddings": {"model": "asked", "input": ["hello"], "dimensions": 8},
    "gemini": {
        "model": "asked",
        "stream": True,
        "systemInstruction": {"parts": [{"text": "be brief"}]},
        "contents": [
            {"role": "user", "parts": [{"text": "weather?"}]},
            {
                "role": "model",
                "parts": [{"functionCall": {"name": "look", "args": {}}, "thoughtSignature": "c2VhbGVk"}],
            },
            {"role": "user", "parts": [{"functionResponse": {"name": "look", "response": {"output": "rain"}}}]},
        ],
        "tools": [{"functionDeclarations": [{"name": "look", "parametersJsonSchema": TOOL}]}],
        "generationConfig": {"maxOutputTokens": 9000, "topK": 3, "thinkingConfig": {"thinkingBudget": 8000}},
    },
    "gemini_embeddings": {"model": "asked", "requests": [{"content": {"parts": [{"text": "hello"}]}}]},
}
WIRES = [(client, spoken) for client, spoken in product(CODECS, CODECS) if wire_between(client, (spoken,)) is not None]
TARGETS = {
    "first": ("claude-opus-4-8", 50, "https://api.openai.com/v1"),
    "second": ("claude-sonnet-4-5", 5000, "https://api.mistral.ai/v1"),
}


def read(client: str) -> Request:
    return CODECS[client].read(json.dumps(BODIES[client]).encode())


def prepare(request: Request, spoken: str, target: str) -> Prepared:
    model, tokens, base_url = TARGETS[target]
    wire = wire_between(request.format, (spoken,))
    assert wire is not None
    return wire.prepare(request, msgspec.Raw(json.dumps(model).encode()), tokens, dialect_of(base_url))


def snapshot(request: Request) -> Json:
    fields = {name: bytes(value) for name, value in request.fields.items()}
    return {**msgspec.structs.asdict(request), "fields": fields}


@pytest.mark.parametrize(("client", "spoken"), WIRES)
def test_preparing_leaves_the_request_unchanged(client: str, spoken: str) -> None:
    request, before = read(client), snapshot(read(client))
    prepare(request, spoken, "first")
    assert snapshot(request) == before
    assert prepare(request, spoken, "second") == prepare(read(client), spoken, "second")
    assert snapshot(request) == before


@pytest.mark.parametrize("client", CODECS)
def test_a_request_cannot_be_changed(client: str) -> None:
    request: Any = read(client)
    with pytest.raises(TypeError):
        request.fields["model"] = msgspec.Raw(b'"other"')
    with pytest.raises(AttributeError):
        request.stream = True
