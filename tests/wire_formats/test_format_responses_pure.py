"""The Responses codec against the official types: answers, event streams, translations."""

import json
from contextlib import suppress
from itertools import pairwise
from typing import Any

import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from overnight.pricing.usage import Usage
from overnight.wire_formats import (
    CODECS,
    AnswerContext,
    Losses,
    client_body,
    responses_native,
    responses_over_chat,
    wire_between,
)
from overnight.wire_formats.dialects import DEFAULT_DIALECT
from overnight.wire_formats.request import InvalidBody
from overnight.wire_formats.responses import continued, input_items, references
from overnight.wire_formats.responses_chunks import stream_translator as over_chat_stream_translator
from overnight.wire_formats.responses_input import messages
from overnight.wire_formats.sse import SseParser

RESPONSES, CHAT = CODECS["responses"], CODECS["chat"]
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
USED = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
COST = 0.25
texts = st.text(min_size=1, max_size=30)
arguments = st.dictionaries(st.text(max_size=8), st.text(max_size=8) | st.integers(0, 9), max_size=3)
INSTRUCTIONS = {"custom": {"type": "custom", "name": "patch"}, "plain": {"type": "function", "name": "look"}}


def asked(**body: Any) -> AnswerContext:
    return AnswerContext(
        "resp_0123", "m-1", {"input": "hello", "tools": list(INSTRUCTIONS.values()), **body}, 1_700_000_000
    )


def events_in(stream: bytes) -> list[dict[str, Any]]:
    return [json.loads(payload) for payload in SseParser().feed(stream)]


def accumulated(events: list[dict[str, Any]]) -> Any:
    """The response as the SDK puts it together: its state machine refuses what does not fit."""
    state = ResponseStreamState(input_tools=openai.omit, text_format=openai.omit)
    for number, event in enumerate(events):
        parsed = EVENT.validate_python(event)
        assert parsed.sequence_number == number
        state.handle_event(parsed)
    snapshot = state._ResponseStreamState__current_snapshot  # type: ignore[attr-defined]
    return state._completed_response, snapshot


def said_in(snapshot: Any) -> list[Any]:
    """What the deltas alone amount to."""
    said = []
    for item in snapshot.output:
        if item.type == "message":
            said.append(("message", [part.text for part in item.content if part.type == "output_text"]))
        elif item.type == "function_call":
            said.append(("call", item.call_id, item.name, item.arguments))
    return said


@st.composite
def completions(draw: st.DrawFn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": draw(st.none() | texts)}
    if draw(st.booleans()):
        message["reasoning_content"] = draw(texts)
    if draw(st.booleans()):
        thinking = message.get("reasoning_content", "hm")
        message["thinking_blocks"] = [{"type": "thinking", "thinking": thinking, "signature": draw(texts)}]
    if draw(st.booleans()):
        message["refusal"] = draw(texts)
    calls = draw(st.lists(st.tuples(st.sampled_from(["look", "patch"]), arguments), max_size=3))
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{place}", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
            for place, (name, given) in enumerate(calls)
        ]
    reason = draw(st.sampled_from(["stop", "length", "content_filter"]))
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
    return {"id": "c", "object": "chat.completion", "model": "m", "choices": [choice], "usage": USED}


def chunks_of(completion: dict[str, Any], cuts: list[int]) -> list[dict[str, Any]]:
    """A completion as a provider streams it: thoughts, then text, then calls, cut anywhere."""

    def cut(text: str) -> list[str]:
        places = sorted({min(each, len(text)) for each in cuts} | {0, len(text)})
        return [text[start:end] for start, end in pairwise(places)]

    message = completion["choices"][0]["message"]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": piece} for piece in cut(message.get("reasoning_content", ""))]
    if "thinking_blocks" in message:
        deltas.append({"thinking_blocks": message["thinking_blocks"]})
    deltas += [{"content": piece} for piece in cut(message["content"] or "")]
    deltas += [{"refusal": piece} for piece in cut(message.get("refusal", ""))]
    for place, call in enumerate(message.get("tool_calls", ())):
        head = {"index": place, "id": call["id"], "type": "function", "function": {"name": call["function"]["name"]}}
        deltas.append({"tool_calls": [head]})
        deltas += [
            {"tool_calls": [{"index": place, "function": {"arguments": piece}}]}
            for piece in cut(call["function"]["arguments"])
        ]
    made = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    made.append({"choices": [{"index": 0, "delta": {}, "finish_reason": completion["choices"][0]["finish_reason"]}]})
    return [*made, {"choices": [], "usage": USED}]


# ── over chat ────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(completions())
def test_answer_matches_the_sdk_types(completion: dict[str, Any]) -> None:
    answer = responses_over_chat.answer(completion, asked())
    assert RESPONSES.is_answer(answer)
    parsed = Response.model_validate(answer)
    message = completion["choices"][0]["message"]
    assert parsed.output_text == (message["content"] or "")
    assert parsed.usage.total_tokens == 12
    calls = [item for item in parsed.output if item.type in ("function_call", "custom_tool_call")]
    assert [call.name for call in calls] == [call["function"]["name"] for call in message.get("tool_calls", ())]


@given(completions(), st.lists(st.integers(0, 40), max_size=5))
def test_stream_equals_its_record(completion: dict[str, Any], cuts: list[int]) -> None:
    pieces, assembly = over_chat_stream_translator(asked()), CHAT.assembly()
    events: list[dict[str, Any]] = []
    for chunk in chunks_of(completion, cuts):
        assembly.take(chunk)
        events += pieces.take(chunk)
    recorded = responses_over_chat.answer(json.loads(assembly.completion()), asked())
    events += pieces.end(COST, Usage(input_tokens=5, output_tokens=7))
    completed, snapshot = accumulated(events)
    last = events[-1]["response"]
    assert last["usage"].pop("cost_usd") == COST
    assert last == recorded
    assert said_in(snapshot) == said_in(Response.model_validate(recorded))
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert sorted(done, key=json.dumps) == sorted(recorded["output"], key=json.dumps)
    assert (completed is None) == (recorded["status"] != "completed")


@given(completions())
def test_recorded_answer_is_split_into_a_stream(completion: dict[str, Any]) -> None:
    recorded = responses_over_chat.answer(completion, asked())
    events = events_in(b"".join(RESPONSES.stream_events(json.dumps(recorded).encode(), COST)))
    _, snapshot = accumulated(events)
    assert events[-1]["response"]["usage"].pop("cost_usd") == COST
    assert events[-1]["response"] == recorded
    assert said_in(snapshot) == said_in(Response.model_validate(recorded))


@given(completions())
def test_output_message_round_trips(completion: dict[str, Any]) -> None:
    answer = responses_over_chat.answer(completion, asked())
    losses = Losses()
    answers = {"function_call": "function_call_output", "custom_tool_call": "custom_tool_call_output"}
    calls = [item for item in answer["output"] if item["type"] in answers]
    outputs = [{"type": answers[item["type"]], "call_id": item["call_id"], "output": "o"} for item in calls]
    body = {**asked().body, "input": [{"role": "user", "content": "hello"}, *answer["output"], *outputs]}
    sent = responses_over_chat.request(body, losses)
    before = completion["choices"][0]["message"]
    after = sent["messages"][1] if len(sent["messages"]) > 1 else {"role": "assistant", "content": None}
    for name in ("content", "refusal", "reasoning_content", "thinking_blocks"):
        assert (after.get(name) or None) == (before.get(name) or None), name
    for was, now in zip(before.get("tool_calls", ()), after.get("tool_calls", ()), strict=True):
        assert now["id"] == was["id"]
        assert now["function"]["name"] == was["function"]["name"]
        if was["function"]["name"] == "look":
            assert now["function"]["arguments"] == was["function"]["arguments"]
    assert all(each.endswith("(no output)") for each in losses)  # its calls are still open


def test_no_text_passes_after_a_call_is_complete_until_the_end() -> None:
    """The gateway holds pieces from a telling one on; the telling ones are those of chat."""
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}}
    pieces = over_chat_stream_translator(asked())
    told = pieces.take({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})
    assert [event["type"] for event in told][-2:] == [
        "response.output_item.added",
        "response.function_call_arguments.delta",
    ]
    pieces.take({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    kinds = [event["type"] for event in pieces.end(None, Usage(input_tokens=1, output_tokens=1))]
    assert kinds == ["response.function_call_arguments.done", "response.output_item.done", "response.completed"]


def test_a_request_becomes_a_chat_request() -> None:
    losses = Losses()
    sent = responses_over_chat.request(
        {
            "model": "m",
            "instructions": "be brief",
            "input": [
                {"role": "developer", "content": "rules"},
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "what is this"},
                        {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"},
                        {"type": "input_file", "file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"},
                    ],
                },
                {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "let me look"}]},
                {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"},
                {"type": "function_call", "call_id": "call_2", "name": "look", "arguments": '{"b":2}'},
                {"type": "function_call_output", "call_id": "call_1", "output": "one"},
                {
                    "type": "function_call_output",
                    "call_id": "call_2",
                    "output": [{"type": "input_text", "text": "two"}],
                },
                {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {}},
                {"role": "user", "content": "and now?"},
            ],
            "tools": [
                {
                    "type": "function",
                    "name": "look",
                    "parameters": {"type": "object"},
                    "strict": True,
                    "description": "d",
                },
                {"type": "web_search"},
            ],
            "tool_choice": {"type": "function", "name": "look"},
            "parallel_tool_calls": False,
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
            "reasoning": {"effort": "low", "summary": "auto"},
            "temperature": 0.5,
            "max_output_tokens": 100,
            "truncation": "auto",
            "metadata": {"a": "b"},
            "store": True,
        },
        losses,
    )
    assert sent == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "system", "content": "rules"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is this"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
                    {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"}},
                ],
            },
            {
                "role": "assistant",
                "content": "let me look",
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}},
                    {"id": "call_2", "type": "function", "function": {"name": "look", "arguments": '{"b":2}'}},
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "one"},
            {"role": "tool", "tool_call_id": "call_2", "content": "two"},
            {"role": "user", "content": "and now?"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "look",
                    "parameters": {"type": "object", "properties": {}},
                    "description": "d",
                    "strict": True,
                },
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
        },
        "reasoning_effort": "low",
        "temperature": 0.5,
        "max_tokens": 100,
    }
    assert losses == [
        "input[2] (reasoning)",
        "input[8] (web_search_call)",
        "tools[1] (web_search)",
        "reasoning.summary",
        "truncation",
    ]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tool_choice": {"type": "web_search"}, "tools": [{"type": "web_search"}]}, "tool_choice"),
        ({"tool_choice": "required", "tools": [{"type": "web_search"}]}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "computer_call", "call_id": "c", "action": {}}]}, "input[0]"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0]"),
        ({"instructions": "be brief", "input": [{"type": "web_search_call", "id": "w"}]}, "input"),
    ],
)
def test_unsupported_fields_are_rejected_by_name(more: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidBody) as refused:
        responses_over_chat.request({"input": "hello", **more}, Losses())
    assert refused.value.param == param


PICTURE = "data:image/png;base64,AAAA"
SHOT: list[dict[str, Any]] = [
    {"role": "user", "content": "shoot"},
    {"type": "function_call", "call_id": "c1", "name": "shot", "arguments": "{}"},
    {"type": "function_call", "call_id": "c2", "name": "shot", "arguments": "{}"},
    {
        "type": "function_call_output",
        "call_id": "c1",
        "output": [{"type": "input_text", "text": "ok"}, {"type": "input_image", "image_url": PICTURE}],
    },
    {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_image", "image_url": PICTURE}]},
]


@pytest.mark.parametrize("more", [[], [{"role": "user", "content": "well?"}], [{"role": "system", "content": "rules"}]])
def test_tool_images_follow_all_results_in_chat(more: list[dict[str, Any]]) -> None:
    losses = Losses()
    talk = responses_over_chat.request({"input": SHOT + more}, losses)["messages"]
    assert talk[2:4] == [
        {"role": "tool", "tool_call_id": "c1", "content": "ok"},
        {"role": "tool", "tool_call_id": "c2", "content": ""},
    ]
    image = {"type": "image_url", "image_url": {"url": PICTURE}}
    said = [{"type": "text", "text": "What the tool showed:"}, image, image]
    joined = [{"type": "text", "text": each["content"]} for each in more if each["role"] == "user"]
    assert talk[4] == {"role": "user", "content": said + joined}
    assert talk[5:] == [each for each in more if each["role"] != "user"]
    assert losses == []


def test_tool_images_stay_in_results_in_messages() -> None:
    wire = wire_between("responses", ("messages",))
    assert wire is not None
    request = RESPONSES.read(msgspec.json.encode({"model": "m", "input": SHOT}))
    sent = msgspec.json.decode(wire.prepare(request, msgspec.Raw(b'"m"'), 100, DEFAULT_DIALECT).body)
    results = sent["messages"][-1]["content"]
    assert [block["type"] for block in results] == ["tool_result", "tool_result"]
    assert [[part["type"] for part in block["content"]] for block in results] == [["text", "image"], ["image"]]


@pytest.mark.parametrize("spoken", ["chat", "messages"])
@pytest.mark.parametrize("model", ["a-1", "o-2"])
def test_reasoning_items_go_to_no_other_model(spoken: str, model: str) -> None:
    blocks = [{"type": "thinking", "thinking": "hm", "signature": "s", "model": "a-1"}]
    message = {"role": "assistant", "content": "ok", "reasoning_content": "hm", "thinking_blocks": blocks}
    asked_for = AnswerContext("resp_1", "a-1", {"input": "x"}, 1)
    output = responses_over_chat.answer({"choices": [{"message": message}]}, asked_for)["output"]
    wire = wire_between("responses", (spoken,))
    assert wire is not None
    talk = [{"role": "user", "content": "x"}, *output, {"role": "user", "content": "y"}]
    request = RESPONSES.read(msgspec.json.encode({"model": "m", "input": talk}))
    prepared = wire.prepare(request, msgspec.Raw(msgspec.json.encode(model)), 100, DEFAULT_DIALECT)
    assert (b"hm" in prepared.body, prepared.losses) == (
        (True, ()) if model == "a-1" else (False, ("input[1] (reasoning)",))
    )


def test_allowed_tools_are_the_only_ones_offered() -> None:
    tools = [{"type": "function", "name": name} for name in ("a", "b", "c")]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "b"}]}
    sent = responses_over_chat.request({"input": "x", "tools": tools, "tool_choice": choice}, Losses())
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["b"]
    assert sent["tool_choice"] == "required"


# ── native ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def native(output: list[dict[str, Any]]) -> dict[str, Any]:
    whole = responses_over_chat.answer({"choices": [{"message": {}, "finish_reason": "stop"}], "usage": USED}, asked())
    tools = [{"type": "function", "name": "look", "parameters": {}, "strict": True}]
    return {**whole, "id": "resp_theirs", "output": output, "tools": tools, "store": False}


THEIRS: list[dict[str, Any]] = [
    {"id": "rs_x", "type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "gA"},
    {"id": "ws_x", "type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "q"}},
    {
        "id": "msg_x",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "hello there", "annotations": [], "logprobs": []}],
    },
    {
        "id": "fc_x",
        "type": "function_call",
        "call_id": "call_1",
        "name": "look",
        "arguments": "{}",
        "status": "completed",
    },
]


def test_native_answer_and_stream_have_our_ids() -> None:
    whole = native(THEIRS)
    ours = responses_native.answer(whole, asked(previous_response_id="resp_before"))
    assert [item["id"] for item in ours["output"]] == ["rs_0123_0", "ws_0123_1", "msg_0123_2", "fc_0123_3"]
    assert (ours["id"], ours["previous_response_id"], ours["store"]) == ("resp_0123", "resp_before", True)
    assert ours["output"][0]["encrypted_content"] == "gA"
    pieces, assembly = (
        responses_native.stream_translator(asked(previous_response_id="resp_before")),
        RESPONSES.assembly(),
    )
    events: list[dict[str, Any]] = []
    terminal_events: list[str] = []
    for event in events_in(b"".join(RESPONSES.stream_events(json.dumps(whole).encode(), None))):
        if assembly.take(event):
            terminal_events.append(event["type"])
        events += pieces.take(event)
    # The delta too: it is "{}", with which the arguments are complete.
    call = [f"response.function_call_arguments.{part}" for part in ("delta", "done")]
    assert terminal_events == [*call, "response.output_item.done", "response.completed"]
    assert assembly.is_complete
    assert assembly.characters == len("hm" + "hello there" + "{}")
    assert responses_native.answer(json.loads(assembly.completion()), asked(previous_response_id="resp_before")) == ours
    events += pieces.end(COST, Usage(input_tokens=5, output_tokens=7))
    completed, _ = accumulated(events)
    assert completed.id == "resp_0123"
    assert events[-1]["response"]["usage"].pop("cost_usd") == COST
    assert events[-1]["response"] == ours
    assert "resp_theirs" not in json.dumps(events)
    assert not any(f'"{each["id"]}"' in json.dumps(events) for each in THEIRS)


def test_native_request_is_not_stored_at_the_provider() -> None:
    losses = Losses()
    own = responses_over_chat.answer(
        {"choices": [{"message": {"thinking_blocks": [{"type": "thinking"}]}, "finish_reason": "stop"}]}, asked()
    )["output"]
    items = [*THEIRS, *own, {"type": "reasoning", "id": "rs_y", "summary": []}]
    sent = responses_native.request({"input": items, "previous_response_id": "resp_1", "store": True}, losses)
    assert sent["store"] is False
    assert "previous_response_id" not in sent
    assert [item["type"] for item in sent["input"]] == ["reasoning", "web_search_call", "message", "function_call"]
    assert not any("id" in item for item in sent["input"])
    assert sent["input"][0]["encrypted_content"] == "gA"
    assert losses == ["input[4] (reasoning)", "input[5] (reasoning)"]


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        (b"{}", "input"),
        (body(input=[]), "input"),
        (body(input=3), "input"),
        (body(input=[{"content": "x"}]), "input[0]"),
        (body(input=[{"role": "tool", "content": "x"}]), "input[0].role"),
        (body(input=[{"role": "user"}]), "input[0].content"),
        (body(input=[{"type": "function_call_output", "output": "x"}]), "input[0].call_id"),
        (body(input=[{"type": "instructions", "content": "x"}]), "input[0].type"),
        (body(input="x", tools=[1]), "tools"),
        (body(input="x", background=True), "background"),
        (body(input="x", conversation="conv_1"), "conversation"),
        (body(input="x", prompt={"id": "p"}), "prompt"),
        (body(input="x", max_output_tokens=0), "max_output_tokens"),
        (body(input="x", store="no"), "store"),
        (b"[1]", None),
        (b'{"input": "\xff"}', None),
        (b'{"input": [{"role": "user", "content": ' + b"[" * 5000 + b"]" * 5000 + b"}]}", None),
        (b'{"input": [{"cache_control": 1, "role": "user", "content": ' + b"[" * 900 + b"]" * 900 + b"}]}", None),
    ],
)
def test_invalid_body_is_rejected_by_field(sent: bytes, param: str | None) -> None:
    with pytest.raises(InvalidBody) as refused:
        RESPONSES.read(sent)
    assert refused.value.param == param


def test_continued_request_reuses_the_chain() -> None:
    first = RESPONSES.read(body(input="one", instructions="be brief"))
    output = [b'{"content":[],"id":"msg_1","role":"assistant","type":"message"}']
    second = RESPONSES.read(body(input="two", instructions="be brief", previous_response_id="resp_1"))
    second = continued(second, [*input_items([link.body for link in first.links]), *output], {})
    assert [link.node for link in second.links][:2] == [link.node for link in first.links]
    assert len(second.links) == 4
    by_hand = RESPONSES.read(
        body(instructions="be brief", input=[{"role": "user", "content": "one"}, json.loads(output[0])])[:-2]
        + b', {"role": "user", "content": "two"}]}'
    )
    assert second.links == by_hand.links
    assert second.fingerprint(None) == by_hand.fingerprint(None)
    assert json.loads(bytes(second.fields["input"])) == json.loads(bytes(by_hand.fields["input"]))
    assert second.prompt_bytes > first.prompt_bytes


def test_references_are_replaced_in_place() -> None:
    request = RESPONSES.read(body(input=[{"id": "msg_1"}, {"role": "user", "content": "x", "cache_control": {}}]))
    assert references(request) == ["msg_1"]
    request = continued(request, [], {"msg_1": b'{"a":1}'})
    sent = json.loads(bytes(request.fields["input"]))
    assert sent == [{"a": 1}, {"role": "user", "content": "x", "cache_control": {}}]
    assert [link.body for link in request.links] == [b'{"a":1}', b'{"content":"x","role":"user"}']


def test_credentials_of_tool_servers_are_not_recorded() -> None:
    tool = {"type": "mcp", "server_label": "s", "authorization": "Bearer x", "headers": {"x-key": "y"}}
    request = RESPONSES.read(body(input="x", tools=[tool]))
    assert request.tools == b'[{"server_label":"s","type":"mcp"}]'
    assert json.loads(bytes(request.fields["tools"])) == [tool]


def test_a_failed_stream_ends_with_response_failed() -> None:
    created, failed = events_in(
        RESPONSES.error_event(RESPONSES.error_body("over", "server_error", "server_error", None, 502))
    )
    assert [EVENT.validate_python(each).sequence_number for each in (created, failed)] == [0, 1]
    parsed = EVENT.validate_python(failed)
    assert (parsed.type, parsed.response.status) == ("response.failed", "failed")
    assert (parsed.response.error.message, parsed.response.error.code) == ("over", "server_error")
    assert created["response"]["id"] == failed["response"]["id"]


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "x", "auto", "function", "message", "user"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "role", "content", "text", "name", "format", "input", "output", "call_id", "tools", "id"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)
KINDS = ["message", "function_call", "function_call_output", "reasoning", "custom_tool_call", "item_reference", "what"]
FIELDS = ["tools", "tool_choice", "text", "reasoning", "include", "instructions", "store", "metadata", "top_logprobs"]


@given(
    st.lists(st.tuples(st.sampled_from(KINDS), anything), max_size=3),
    st.dictionaries(st.sampled_from(FIELDS), anything),
)
def test_any_body_is_parsed_or_rejected(items: list[tuple[str, Any]], fields: dict[str, Any]) -> None:
    """To every kind of target; and the answer to what was carried over is made without a fault."""
    said = [{"type": kind, **(more if isinstance(more, dict) else {"content": more})} for kind, more in items]
    completion = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}
    for speaks in ("responses", "chat", "messages"):
        wire = wire_between("responses", (speaks,))
        assert wire is not None
        with suppress(InvalidBody):
            request = RESPONSES.read(json.dumps({"input": said, **fields}).encode())
            assert not references(request) or any(kind == "item_reference" for kind, _ in items)
            wire.prepare(request, msgspec.Raw(b'"m"'), 100, DEFAULT_DIALECT)
            answer = responses_over_chat.answer(completion, AnswerContext("resp_1", "m", client_body(request), 1))
            assert RESPONSES.is_answer(answer)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"type": "function_call", "name": "f", "arguments": "{}"}, "input[0]: required field call_id is missing"),
        ({"role": "user", "content": [{"text": "x"}]}, "input[0]: required field type is missing"),
        ({"role": "user", "content": 5}, "input[0]: a field has the wrong type"),
    ],
)
def test_unreadable_item_is_named_without_exceptions(item: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidBody) as refused:
        messages({"model": "m", "input": [item]}, [])
    assert (str(refused.value), refused.value.param) == (message, "input[0]")
