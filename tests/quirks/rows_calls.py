"""Tool calls whose names come in fragments, again or late, whose arguments are objects, and whose ids are no ids."""

from typing import Any

from quirk_rows import (
    DONE,
    ROLE,
    TOKENS,
    Gets,
    Quirk,
    body,
    called,
    chunk,
    completion,
    message,
    part,
    sse,
    usage_chunk,
)

_CALL = Gets(text="", calls=(("get_weather", {"city": "Oslo"}),), finish="calls", usage=TOKENS)
_TWO = Gets(calls=(("get_weather", {"city": "Oslo"}), ("get_weather", {"city": "Rome"})), finish="calls", usage=TOKENS)
_REPEATED = "https://github.com/NousResearch/hermes-agent/pull/12230"
_OBJECT = "https://github.com/ggml-org/llama.cpp/issues/20198"
_JSON = '{"city": "Oslo"}'


def _stream(*deltas: dict[str, Any]) -> list[Any]:
    return [sse(ROLE, *map(chunk, deltas), chunk(finish="tool_calls"), usage_chunk(), DONE)]


def _row(name: str, source: str, *deltas: dict[str, Any], gets: Gets = _CALL) -> Quirk:
    return Quirk(name=f"call-{name}", source=source, gets=gets, stream=_stream(*deltas))


def _history(*turns: dict[str, Any]) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
    return {"messages": [{"role": "user", "content": "case-0"}, *turns], "tools": tools}


ROWS = [
    _row("name-in-fragments", _REPEATED, part("", "get", id="call_1"), part("", "_weather"), part(_JSON)),
    _row("name-growing", _REPEATED, part("", "get", id="call_1"), part("", "get_weather"), part(_JSON)),
    _row(
        "name-on-every-piece",
        _REPEATED,
        part("", "get_weather", id="call_1"),
        part('{"city": ', "get_weather"),
        part('"Oslo"}', "get_weather"),
        part("", "get_weather"),
    ),
    _row(
        "name-and-id-on-every-piece",
        _REPEATED,
        part("", "get_weather", id="call_1"),
        part('{"city": ', "get_weather", id="call_1"),
        part('"Oslo"}', "get_weather", id="call_1"),
    ),
    _row("name-late", _REPEATED, part('{"city": ', id="call_1"), part('"Oslo"}', "get_weather")),
    _row("name-empty-on-pieces", _REPEATED, part("", "get_weather", id="call_1"), part(_JSON, "")),
    _row("name-null-on-pieces", "https://github.com/vllm-project/vllm/issues/14951",
         part("", "get_weather", id="call_1"),
         {"tool_calls": [{"index": 0, "id": None, "type": None, "function": {"name": None, "arguments": _JSON}}]}),
    _row("arguments-null-first", "https://github.com/vllm-project/vllm/issues/9693",
         part(None, "get_weather", id="call_1"), part(_JSON)),
    _row("arguments-object", _OBJECT, part({"city": "Oslo"}, "get_weather", id="call_1")),
    _row("function-null", _REPEATED, part(_JSON, "get_weather", id="call_1"),
         {"tool_calls": [{"index": 0, "function": None}]}),
    _row("tool-calls-null", _REPEATED, {"content": None, "tool_calls": None},
         part(_JSON, "get_weather", id="call_1"), {"content": None, "tool_calls": []}),
    _row("index-missing", _REPEATED, part("", "get_weather", index=None, id="call_1"), part(_JSON, index=None)),
    _row("index-missing-twice", _REPEATED, part(_JSON, "get_weather", index=None, id="call_1"),
         part('{"city": "Rome"}', "get_weather", index=None, id="call_2"), gets=_TWO),
    _row("index-same-twice", _REPEATED, part(_JSON, "get_weather", id="call_1"),
         part('{"city": "Rome"}', "get_weather", id="call_2"), gets=_TWO),
    _row("index-from-one", _REPEATED, part("", "get_weather", index=1, id="call_1"), part(_JSON, index=1)),
    _row("id-on-every-piece", _REPEATED, part("", "get_weather", id="call_1"), part(_JSON, id="call_1")),
    _row("id-new-on-every-piece", _REPEATED, part("", "get_weather", id="call_1"), part('{"city": ', id="call_2"),
         part('"Oslo"}', id="call_3")),
    _row("id-empty", _REPEATED, part("", "get_weather", id=""), part(_JSON)),
    _row("id-missing", _REPEATED, part("", "get_weather"), part(_JSON)),
    _row("id-same-twice", _REPEATED, part(_JSON, "get_weather", id="call_1"),
         part('{"city": "Rome"}', "get_weather", index=1, id="call_1"), gets=_TWO),
    *[
        Quirk(name=f"call-whole-{name}", source=source, gets=gets, whole=[body(completion({"tool_calls": calls}, "tool_calls"))])
        for name, source, gets, calls in (
            ("arguments-object", _OBJECT, _CALL, [called("get_weather", {"city": "Oslo"})]),
            ("id-empty", _REPEATED, _CALL, [called("get_weather", _JSON, "")]),
            ("id-missing", _REPEATED, _CALL, [called("get_weather", _JSON, None)]),
            ("id-same-twice", _REPEATED, _TWO,
             [called("get_weather", _JSON), called("get_weather", '{"city": "Rome"}')]),
            ("type-missing", _REPEATED, _CALL,
             [{"id": "call_1", "function": {"name": "get_weather", "arguments": _JSON}}]),
        )
    ],
    Quirk(
        name="call-whole-without-function",
        source=_REPEATED,
        gets=Gets(text="from the spare"),
        whole=[body(completion({"tool_calls": [{"id": "call_1", "type": "function", "function": None}]}, "tool_calls"))],
        billed=TOKENS,
        asked=("chat", "chat", "spare"),
        failures=("malformed", "malformed"),
    ),
    Quirk(
        name="call-stop-with-call",
        source="https://github.com/ollama/ollama/issues/7881",
        gets=_CALL,
        whole=[body(completion({"tool_calls": [called("get_weather", _JSON)]}, "stop"))],
        each={"chat": Gets(calls=_CALL.calls, usage=TOKENS)},
    ),
]  # fmt: skip


def _asks(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"chat": _history(*turns)}


_IDS = "https://docs.claude.com/en/docs/agents-and-tools/tool-use/implement-tool-use"
_USE = {"type": "tool_use", "name": "get_weather"}
_DONE = [body(message({"type": "text", "text": "hello"}))]
_HELLO = Gets(text="hello", finish="stop", usage=TOKENS)


def _turn(*ids: str) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [called("get_weather", _JSON, each) for each in ids]}


def _result(call_id: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


ROWS += [
    Quirk(
        name="call-ids-repeated-over-turns-towards-claude",
        source=_IDS,
        target="messages",
        clients=("chat",),
        gets=_HELLO,
        whole=_DONE,
        request=_asks(_turn("call_0"), _result("call_0", "sun"), _turn("call_0"), _result("call_0", "rain")),
        distinct="tool_use_id",
    ),
    Quirk(
        name="call-ids-empty-towards-claude",
        source=_IDS,
        target="messages",
        clients=("chat",),
        gets=_HELLO,
        whole=_DONE,
        request=_asks(_turn("", ""), _result("", "sun"), _result("", "rain")),
        distinct="tool_use_id",
    ),
    Quirk(
        name="call-ids-same-in-one-turn-towards-claude",
        source=_IDS,
        target="messages",
        clients=("chat",),
        gets=_HELLO,
        whole=_DONE,
        request=_asks(_turn("call_0", "call_0"), _result("call_0", "sun"), _result("call_0", "rain")),
        distinct="tool_use_id",
    ),
    Quirk(
        name="call-results-late-towards-claude",
        source=_IDS,
        target="messages",
        clients=("chat",),
        gets=_HELLO,
        whole=_DONE,
        request=_asks(_turn("a", "b"), _result("a", "sun"), {"role": "user", "content": "and?"}, _result("b", "rain")),
        distinct="tool_use_id",
    ),
]
