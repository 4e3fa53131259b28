"""Gemini over chat and back: official types, signatures, schemas, random conversations."""

import json
from collections.abc import Iterable
from typing import Any

import msgspec
import openai.types.chat
import pytest
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.pricing.usage import estimated_usage, openai_usage
from overnight.providers.key_redaction import KeyGuard
from overnight.wire_formats import CODECS, chat_over_gemini, gemini, gemini_over_chat, wire_between
from overnight.wire_formats.chat_stream import Assembly as ChatAssembly
from overnight.wire_formats.chat_stream import stream_events
from overnight.wire_formats.contract import AnswerContext, InvalidBody, Losses
from overnight.wire_formats.gemini_schemas import json_schema, subset_schema
from overnight.wire_formats.gemini_signatures import OWN_MARK, SKIPPED, read_own, sign_own
from overnight.wire_formats.gemini_stream import Assembly

Json = dict[str, Any]
NEW, OLD = "gemini-3-pro-preview", "gemini-2.0-flash"
PNG = "data:image/png;base64,iVBORw0KGgo="
SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": SCHEMA}}
DECLARED = {"name": "look", "description": "Looks.", "parametersJsonSchema": SCHEMA}


def asked(body: Json | None = None, answer_id: str = "chatcmpl-1", model: str = NEW) -> AnswerContext:
    return AnswerContext(answer_id, model, body or {}, 1_767_225_600)


def to_gemini(body: Json, model: str = NEW) -> tuple[Json, list[str]]:
    """The request as Gemini gets it, which the official types accept, and what was lost."""
    losses = Losses()
    out = chat_over_gemini.request({"model": model, "max_tokens": 800, **body}, losses)
    check_gemini(out)
    return out, list(losses)


def to_chat(body: Json, model: str = "some-model") -> tuple[Json, list[str]]:
    losses = Losses()
    out = gemini_over_chat.request({"model": model, **body}, losses)
    check_chat(out)
    return out, list(losses)


def check_gemini(body: Json) -> None:
    """Google's types, and the order of calls and results that its API requires."""
    sent = json.loads(gemini.dispatched(body)[1])
    contents = [types.Content.model_validate(each) for each in sent["contents"]]
    for tool in sent.get("tools", ()):
        types.Tool.model_validate(tool)
    types.GenerationConfig.model_validate(sent.get("generationConfig", {}))
    types.ToolConfig.model_validate(sent.get("toolConfig", {}))
    if "systemInstruction" in sent:
        types.Content.model_validate(sent["systemInstruction"])
    assert contents[0].role == "user"
    before: list[str | None] = []
    for content in contents:
        parts = content.parts or []
        results = [part.function_response.name for part in parts if part.function_response]
        if content.role == "user":
            assert sorted(map(str, results)) == sorted(map(str, before)), "results must answer the calls before them"
        before = [part.function_call.name for part in parts if part.function_call]


def check_chat(body: Json) -> None:
    open_calls: set[str] = set()
    for message in body["messages"]:
        if message["role"] == "tool":
            assert message["tool_call_id"] in open_calls
            assert isinstance(message["content"], str)
            open_calls.remove(message["tool_call_id"])
            continue
        assert not open_calls, "calls without their results"
        open_calls = {call["id"] for call in message.get("tool_calls", ())}
        assert len(open_calls) == len(message.get("tool_calls", ()))
        assert all(len(each) <= 40 for each in open_calls)


def user(*parts: Json) -> Json:
    return {"role": "user", "parts": list(parts)}


def model(*parts: Json) -> Json:
    return {"role": "model", "parts": list(parts)}


def call(name: str, call_id: str, **arguments: Any) -> Json:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


# ── chat → Gemini: requests ─────────────────────────────────────────────────────────────────────────────────────────


def test_plain_conversation_becomes_contents() -> None:
    body = {
        "messages": [
            {"role": "developer", "content": "Be terse."},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "hi", "refusal": None, "annotations": []},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "and this?"},
                    {"type": "image_url", "image_url": {"url": PNG}},
                    {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
                    {
                        "type": "file",
                        "file": {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"},
                    },
                ],
            },
        ],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "seed": 7,
        "stop": ["END"],
        "n": 2,
        "logprobs": True,
        "top_logprobs": 3,
        "presence_penalty": 0.1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    out, lost = to_gemini(body)
    assert lost == []
    assert out == {
        "model": NEW,
        "stream": True,
        "maxOutputTokens": 800,
        "systemInstruction": {"parts": [{"text": "Be terse."}]},
        "contents": [
            user({"text": "hello"}),
            model({"text": "hi"}),
            user(
                {"text": "and this?"},
                {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}},
                {"inlineData": {"mimeType": "audio/wav", "data": "UklGRg=="}},
                {"inlineData": {"mimeType": "application/pdf", "data": "JVBERi0="}},
            ),
        ],
        "generationConfig": {
            "temperature": 0.5,
            "topP": 0.9,
            "topK": 4,
            "seed": 7,
            "stopSequences": ["END"],
            "candidateCount": 2,
            "responseLogprobs": True,
            "logprobs": 3,
            "presencePenalty": 0.1,
        },
    }
    path, sent = gemini.dispatched(out)
    assert path == f"/models/{NEW}:streamGenerateContent?alt=sse"
    assert json.loads(sent)["generationConfig"]["maxOutputTokens"] == 800
    assert not {"model", "stream", "maxOutputTokens"} & json.loads(sent).keys()


def test_results_follow_their_calls_in_order() -> None:
    body = {
        "messages": [
            {"role": "user", "content": "look"},
            {"role": "assistant", "tool_calls": [call("look", "a", at="sky"), call("look", "b")]},
            {"role": "user", "content": "hurry"},
            {"role": "tool", "tool_call_id": "b", "content": '{"seen": 2}'},
            {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "blue"}]},
        ],
        "tools": [TOOL],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    out, lost = to_gemini(body)
    assert lost == ["parallel_tool_calls"]
    _, called, results = out["contents"]
    assert [part["functionCall"] for part in called["parts"]] == [
        {"name": "look", "args": {"at": "sky"}, "id": "a"},
        {"name": "look", "args": {}, "id": "b"},
    ]
    # Another model made the calls, so Gemini 3 must not verify who did.
    assert [part.get("thoughtSignature") for part in called["parts"]] == [SKIPPED, None]
    assert results["parts"] == [
        {"functionResponse": {"name": "look", "id": "a", "response": {"output": "blue"}}},
        {"functionResponse": {"name": "look", "id": "b", "response": {"seen": 2}}},
        {"text": "hurry"},
    ]
    assert out["tools"] == [{"functionDeclarations": [DECLARED]}]
    assert out["toolConfig"] == {"functionCallingConfig": {"mode": "ANY"}}


def test_an_old_model_gets_the_subset_of_schemas() -> None:
    schema: Json = {
        "type": "object",
        "$defs": {"point": {"type": "object", "properties": {"x": {"type": "integer"}}, "additionalProperties": False}},
        "properties": {
            "kind": {"type": ["string", "null"], "enum": ["a", "b"]},
            "where": {"$ref": "#/$defs/point"},
            "either": {"anyOf": [{"type": "string"}, {"type": "number", "exclusiveMinimum": 1}]},
            "many": {"type": "array", "items": {"type": "string", "format": "uuid"}},
        },
        "required": ["kind"],
    }
    losses = Losses()
    assert subset_schema(schema, "p", losses) == {
        "type": "OBJECT",
        "properties": {
            "kind": {"type": "STRING", "nullable": True, "enum": ["a", "b"]},
            "where": {"type": "OBJECT", "properties": {"x": {"type": "INTEGER"}}},
            "either": {"anyOf": [{"type": "STRING"}, {"type": "NUMBER", "description": "(exclusiveMinimum: 1)"}]},
            "many": {"type": "ARRAY", "items": {"type": "STRING", "description": '(format: "uuid")'}},
        },
        "required": ["kind"],
    }
    assert losses == ["p.either.anyOf[1].exclusiveMinimum", "p.many.items.format"]
    out, _ = to_gemini({"messages": [{"role": "user", "content": "x"}], "tools": [TOOL]}, OLD)
    [declared] = out["tools"][0]["functionDeclarations"]
    assert declared["parameters"]["type"] == "OBJECT"
    assert "parametersJsonSchema" not in declared


def test_a_recursive_schema_ends() -> None:
    tree = {
        "$defs": {"node": {"type": "object", "properties": {"child": {"$ref": "#/$defs/node"}}}},
        "$ref": "#/$defs/node",
    }
    losses = Losses()
    made = subset_schema(tree, "p", losses)
    assert made["properties"]["child"]["type"] == "OBJECT"
    assert losses == ["p.child.$ref"]


@pytest.mark.parametrize(
    ("asked_for", "model_name", "config", "lost"),
    [
        ({"reasoning_effort": "low"}, NEW, {"thinkingLevel": "LOW", "includeThoughts": True}, []),
        ({"reasoning_effort": "none"}, NEW, None, ["reasoning_effort"]),
        ({"reasoning_effort": "none"}, "gemini-2.5-flash", {"thinkingBudget": 0}, []),
        ({"reasoning_effort": "none"}, "gemini-2.5-pro", None, ["reasoning_effort"]),
        ({"reasoning_effort": "low"}, "gemini-2.5-pro", {"thinkingBudget": 400, "includeThoughts": True}, []),
        ({"reasoning_effort": "low"}, OLD, None, ["reasoning_effort"]),
        ({"reasoning_effort": "huge"}, NEW, None, ["reasoning_effort"]),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 300}},
            "gemini-2.5-flash",
            {"thinkingBudget": 300, "includeThoughts": True},
            [],
        ),
        ({"reasoning": {"max_tokens": 9000}}, NEW, {"thinkingLevel": "HIGH", "includeThoughts": True}, []),
    ],
)
def test_effort_becomes_a_level_or_a_budget(
    asked_for: Json, model_name: str, config: Json | None, lost: list[str]
) -> None:
    out, losses = to_gemini({"messages": [{"role": "user", "content": "x"}], **asked_for}, model_name)
    assert out.get("generationConfig", {}).get("thinkingConfig") == config
    assert losses == lost


def test_a_schema_of_the_answer() -> None:
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA, "strict": True}},
    }
    assert to_gemini(body)[0]["generationConfig"] == {
        "responseMimeType": "application/json",
        "responseJsonSchema": SCHEMA,
    }
    assert to_gemini(body, OLD)[0]["generationConfig"]["responseSchema"]["type"] == "OBJECT"
    out, lost = to_gemini({**body, "tools": [TOOL]}, "gemini-2.5-pro")
    assert lost == ["response_format"]
    assert "JSON Schema" in out["systemInstruction"]["parts"][0]["text"]


def test_what_has_no_equivalent_is_named() -> None:
    body = {
        "messages": [
            {"role": "user", "content": "x", "name": "Ada"},
            {"role": "system", "content": "later"},
            {"role": "assistant", "content": "y", "reasoning_content": "foreign", "audio": {"id": "a"}},
            {"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}, {"type": "text", "text": "z"}]},
        ],
        "tools": [{"type": "web_search"}, {**TOOL, "function": {**TOOL["function"], "strict": True, "name": "9 ä"}}],
        "user": "u",
        "logit_bias": {"1": 2},
        "store": False,
        "metadata": {"a": "b"},
    }
    out, lost = to_gemini(body)
    assert set(lost) == {
        "user",
        "logit_bias",
        "metadata",
        "messages[0].name",
        "messages[1].role",
        "messages[2].audio",
        "messages[2].reasoning_content",
        "messages[3].content[0]",
        "tools[0]",
        "tools[1].function.name",
        "tools[1].function.strict",
    }
    assert out["tools"][0]["functionDeclarations"][0]["name"].startswith("_")


# ── Gemini → chat: requests ─────────────────────────────────────────────────────────────────────────────────────────


def test_contents_become_messages() -> None:
    body = {
        "systemInstruction": {"parts": [{"text": "Be terse."}]},
        "contents": [
            {"parts": [{"text": "hello"}, {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}}]},
            model({"text": "hi"}, {"executableCode": {"language": "PYTHON", "code": "1+1"}}),
            user({"text": "go on"}, {"fileData": {"fileUri": "https://x/y.png", "mimeType": "image/png"}}),
        ],
        "generationConfig": {
            "maxOutputTokens": 50,
            "temperature": 0.2,
            "topP": 1,
            "topK": 5.0,
            "stopSequences": ["A"],
            "candidateCount": 2,
            "seed": 3,
            "responseMimeType": "application/json",
            "responseSchema": {"type": "OBJECT", "properties": {"a": {"type": "STRING", "nullable": True}}},
            "thinkingConfig": {"thinkingBudget": 5000, "includeThoughts": True},
        },
    }
    out, lost = to_chat(body)
    assert lost == []
    assert out["messages"] == [
        {"role": "system", "content": "Be terse."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {"url": PNG}}],
        },
        {"role": "assistant", "content": "hi\n```python\n1+1\n```\n"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "go on"},
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
            ],
        },
    ]
    described = out.pop("response_format")["json_schema"]
    assert described["schema"] == {"type": "object", "properties": {"a": {"type": ["string", "null"]}}}
    del out["messages"], out["model"]
    assert out == {
        "max_tokens": 50,
        "temperature": 0.2,
        "top_k": 5,
        "stop": ["A"],
        "n": 2,
        "seed": 3,
        "reasoning_effort": "high",
    }


def test_calls_without_ids_get_their_results() -> None:
    body = {
        "contents": [
            user({"text": "look"}),
            model(
                {"functionCall": {"name": "look", "args": {"at": "sky"}}},
                {"functionCall": {"name": "smell"}},
                {"functionCall": {"name": "look", "args": {"at": "sea"}}},
            ),
            {
                "role": "function",
                "parts": [
                    {"functionResponse": {"name": "smell", "response": {"output": "salt"}}},
                    {"functionResponse": {"name": "look", "response": {"result": "blue"}}},
                    {"functionResponse": {"name": "look", "response": {"error": "dark"}}},
                ],
            },
        ],
        "tools": [{"functionDeclarations": [{"name": "look", "parameters": {"type": "OBJECT"}}, {"name": "smell"}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["look"]}},
    }
    out, lost = to_chat(body)
    assert lost == []
    sky, smell, sea = (each["id"] for each in out["messages"][1]["tool_calls"])
    assert {each["tool_call_id"]: each["content"] for each in out["messages"][2:]} == {
        smell: "salt",
        sky: "blue",
        sea: "Error: dark",
    }
    assert out["tool_choice"] == {"type": "function", "function": {"name": "look"}}
    assert [each["function"]["name"] for each in out["tools"]] == ["look"]


def test_gemini_features_without_an_equivalent_are_named() -> None:
    body = {
        "contents": [
            user(
                {"text": "x", "videoMetadata": {"fps": 1}}, {"fileData": {"fileUri": "gs://a", "mimeType": "video/mp4"}}
            ),
            model({"text": "hm", "thought": True}, {"text": "y", "thoughtSignature": "Z29vZ2xl"}),
            user({"text": "z"}),
        ],
        "tools": [{"googleSearch": {}}, {"functionDeclarations": [{"name": "f", "behavior": "NON_BLOCKING"}]}],
        "safetySettings": [{"category": "A", "threshold": "B"}],
        "generationConfig": {"speechConfig": {"a": 1}, "responseModalities": ["AUDIO"]},
        "labels": {"a": "b"},
        "toolConfig": {"retrievalConfig": {"languageCode": "de"}},
    }
    _, lost = to_chat(body)
    assert set(lost) == {
        "contents[0].parts[0].videoMetadata",
        "contents[0].parts[1]",
        "contents[1].parts[0]",
        "contents[1].parts[1].thoughtSignature",
        "tools[0].googleSearch",
        "tools[1].functionDeclarations[0].behavior",
        "safetySettings",
        "generationConfig.speechConfig",
        "generationConfig.responseModalities",
        "labels",
        "toolConfig.retrievalConfig",
    }


def test_cached_content_is_refused_elsewhere() -> None:
    with pytest.raises(InvalidBody, match="cachedContent"):
        to_chat({"contents": [user({"text": "x"})], "cachedContent": "cachedContents/1"})


def test_schemas_of_the_subset_are_json_schema() -> None:
    given = {
        "type": "OBJECT",
        "properties": {
            "n": {"type": "INTEGER", "format": "int64", "nullable": True},
            "s": {"type": "STRING", "format": "enum", "enum": ["a"], "nullable": True},
            "l": {"type": "ARRAY", "items": {"type": "STRING"}, "minItems": "2", "maxItems": "3"},
            "u": {"anyOf": [{"type": "STRING"}, {"type": "NUMBER"}], "nullable": True, "example": "x"},
        },
        "propertyOrdering": ["n"],
        "required": ["n"],
    }
    assert json_schema(given) == {
        "type": "object",
        "properties": {
            "n": {"type": ["integer", "null"], "format": "int64"},
            "s": {"type": ["string", "null"], "enum": ["a", None]},
            "l": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 3},
            "u": {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "null"}], "examples": ["x"]},
        },
        "required": ["n"],
    }


def test_names_with_underscores_are_read_too() -> None:
    body = {
        "contents": [{"role": "user", "parts": [{"inline_data": {"mime_type": "image/png", "data": "aa"}}]}],
        "generation_config": {"max_output_tokens": 7, "stop_sequences": ["a_b"]},
        "system_instruction": {"parts": [{"text": "s"}]},
        "tools": [
            {"function_declarations": [{"name": "f", "parameters": {"type": "object", "properties": {"a_b": {}}}}]}
        ],
    }
    request = gemini.read(gemini.addressed(json.dumps(body).encode(), "models/m", stream=True))
    fields = {name: json.loads(bytes(raw)) for name, raw in request.fields.items()}
    assert fields["contents"][0]["parts"][0] == {"inlineData": {"mimeType": "image/png", "data": "aa"}}
    assert fields["tools"][0]["functionDeclarations"][0]["parameters"]["properties"] == {"a_b": {}}
    assert (request.cap, request.model, request.stream) == (7, "m", True)
    assert json.loads(request.links[0].body) == {"role": "system", "parts": [{"text": "s"}]}


def test_the_path_wins_over_the_body() -> None:
    body = b' {"model": "other", "stream": false, "contents": [{"parts": [{"text": "x"}]}]} '
    request = gemini.read(gemini.addressed(body, "mine", stream=True))
    assert (request.model, request.stream) == ("mine", True)
    with pytest.raises(InvalidBody, match="contents"):
        gemini.read(gemini.addressed(b"{}", "mine", stream=False))
    with pytest.raises(InvalidBody, match="the body"):
        gemini.read(gemini.addressed(b"[1", "mine", stream=False))


@pytest.mark.parametrize("config", [{"maxOutputTokens": 0}, {"candidateCount": "2"}, {"maxOutputTokens": True}])
def test_an_invalid_limit_is_refused(config: Json) -> None:
    body = {"contents": [user({"text": "x"})], "generationConfig": config}
    with pytest.raises(InvalidBody, match="generationConfig"):
        gemini.read(json.dumps(body).encode())


def test_provider_run_tools_are_counted() -> None:
    body = {"contents": [user({"text": "x"})], "tools": [{"googleSearch": {}}, {"codeExecution": {}, "urlContext": {}}]}
    request = gemini.read(json.dumps(body).encode())
    assert dict(request.hosted) == {"google_search": 10, "google_code_execution": 10, "url_context": 10}
    assert request.open_ended
    answer = {
        "modelVersion": NEW,
        "candidates": [
            {
                "content": {"parts": [{"executableCode": {"code": "1"}}, {"codeExecutionResult": {"output": "1"}}]},
                "groundingMetadata": {"webSearchQueries": ["a", "b"]},
                "urlContextMetadata": {"urlMetadata": [{"retrievedUrl": "u"}]},
            }
        ],
    }
    assert gemini.tool_uses(answer) == {"google_search": 2, "google_code_execution": 1, "url_context": 1}
    assert gemini.tool_uses({**answer, "modelVersion": "gemini-2.5-pro"})["google_search"] == 1


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────

ANSWER: Json = {
    "candidates": [
        {
            "content": {
                "role": "model",
                "parts": [
                    {"text": "let me see", "thought": True},
                    {"text": "Looking. "},
                    {"text": "", "thoughtSignature": "c2lnMQ=="},
                    {
                        "functionCall": {"name": "look", "args": {"at": "sky"}, "id": "fc1"},
                        "thoughtSignature": "c2lnMg==",
                    },
                    {"functionCall": {"name": "look", "args": {"at": "sea"}}},
                ],
            },
            "finishReason": "STOP",
            "index": 0,
        }
    ],
    "usageMetadata": {
        "promptTokenCount": 10,
        "cachedContentTokenCount": 4,
        "toolUsePromptTokenCount": 2,
        "candidatesTokenCount": 7,
        "thoughtsTokenCount": 5,
        "totalTokenCount": 24,
    },
    "modelVersion": NEW,
    "responseId": "r1",
}


def chat_answer(answer: Json, context: AnswerContext | None = None) -> Json:
    """The completion, which a stream in any split must equal."""
    context = context or asked({"tools": [TOOL]})
    completion = chat_over_gemini.answer(answer, context)
    openai.types.chat.ChatCompletion.model_validate(completion)
    for events in (split(answer, 1), split(answer, 3), [answer]):
        translator = chat_over_gemini.StreamTranslator(context)
        upstream, assembly = Assembly(), ChatAssembly()
        for event in events:
            upstream.take(event)
            for chunk in translator.take(event):
                assembly.take(chunk)
        assert upstream.is_complete
        assert json.loads(upstream.completion())["usageMetadata"] == answer["usageMetadata"]
        streamed = json.loads(assembly.completion())
        assert plain(streamed["choices"]) == plain(completion["choices"])
        whole = chat_over_gemini.answer(json.loads(upstream.completion()), context)
        assert plain(whole["choices"]) == plain(completion["choices"])
    return completion


def plain(choices: list[Json]) -> Any:
    return [
        {**each, "message": {name: value for name, value in each["message"].items() if value is not None}}
        for each in choices
    ]


def split(answer: Json, size: int) -> Iterable[Json]:
    """The answer as the events of a stream: texts in pieces, every other part on its own."""
    rest = {name: value for name, value in answer.items() if name != "candidates"}
    for candidate in answer.get("candidates", ()):
        for part in candidate["content"]["parts"]:
            text = part.get("text", "")
            signed = {name: value for name, value in part.items() if name != "text"}
            pieces = (
                [text[at : at + size] for at in range(0, len(text), size)] if "thoughtSignature" not in part else []
            )
            for piece in pieces or [text]:
                sent = {"text": piece, **signed} if "text" in part else part
                yield {
                    "candidates": [{"content": {"role": "model", "parts": [sent]}, "index": candidate["index"]}],
                    **rest,
                }
        end = {name: value for name, value in candidate.items() if name != "content"}
        yield {"candidates": [end], **rest}
    if not answer.get("candidates"):
        yield answer


def test_signatures_return_unchanged_to_their_model_alone() -> None:
    completion = chat_answer(ANSWER)
    [choice] = completion["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert message["reasoning_content"] == "let me see"
    assert [each["function"]["arguments"] for each in message["tool_calls"]] == ['{"at":"sky"}', '{"at":"sea"}']
    assert message["tool_calls"][0]["id"] == "fc1"
    results = [{"role": "tool", "tool_call_id": each["id"], "content": "x"} for each in message["tool_calls"]]
    body = {"messages": [{"role": "user", "content": "look"}, message, *results], "tools": [TOOL]}
    out, lost = to_gemini(body)
    assert lost == []
    parts = out["contents"][1]["parts"]
    assert [part.get("thoughtSignature") for part in parts] == [None, "c2lnMQ==", "c2lnMg==", None]
    assert parts[0] == {"text": "let me see", "thought": True}
    out, lost = to_gemini(body, "gemini-3-flash-preview")
    assert lost == ["messages[1].thinking_blocks[0]", "messages[1].reasoning_content"]
    assert "c2lnMQ==" not in json.dumps(out)
    assert "c2lnMg==" not in json.dumps(out)


def test_usage_of_every_kind_is_counted_once() -> None:
    usage = gemini.usage_of(ANSWER)
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (12, 12)
    assert (usage.cached_tokens, usage.reasoning_tokens) == (4, 5)
    assert not usage.adjusted
    assert gemini.usage_of({}) is None


FILTERED = [
    "SAFETY",
    "RECITATION",
    "LANGUAGE",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "IMAGE_SAFETY",
    "MODEL_ARMOR",
]


@pytest.mark.parametrize(
    ("reason", "chat"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        *((each, "content_filter") for each in FILTERED),
        ("OTHER", "other"),
        ("NO_IMAGE", "no_image"),
        ("A_NEW_ONE", "a_new_one"),
    ],
)
def test_every_finish_reason(reason: str, chat: str) -> None:
    candidate = {"content": {"parts": [{"text": "so"}]}, "finishReason": reason, "index": 0}
    answer = {"candidates": [candidate], "usageMetadata": {"promptTokenCount": 1, "totalTokenCount": 1}}
    [choice] = chat_over_gemini.answer(answer, asked())["choices"]
    assert choice["finish_reason"] == chat
    assert bool(choice["message"]["refusal"]) == (chat == "content_filter")
    assert gemini.is_answer(answer)


@pytest.mark.parametrize("reason", ["MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "MALFORMED_RESPONSE"])
def test_an_unusable_answer_is_a_failure(reason: str) -> None:
    answer = {"candidates": [{"finishReason": reason, "index": 0}]}
    assert not gemini.is_answer(answer)
    with pytest.raises(ValueError, match=reason):
        Assembly().take(answer)


def test_a_blocked_prompt_is_a_refusal() -> None:
    answer = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 3}}
    [choice] = chat_answer(answer)["choices"]
    assert choice["finish_reason"] == "content_filter"
    assert "PROHIBITED_CONTENT" in choice["message"]["refusal"]
    assert not gemini.is_answer({"usageMetadata": {"promptTokenCount": 3}})


def test_sources_code_images_and_probabilities() -> None:
    text = "Grüße. "
    candidate = {
        "content": {
            "parts": [
                {"text": text},
                {"executableCode": {"language": "PYTHON", "code": "1+1"}},
                {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "2"}},
                {"inlineData": {"mimeType": "image/png", "data": "aa"}},
            ]
        },
        "finishReason": "STOP",
        "index": 0,
        "groundingMetadata": {
            "groundingChunks": [{"web": {"uri": "https://x", "title": "X"}}],
            "groundingSupports": [{"segment": {"endIndex": 8}, "groundingChunkIndices": [0]}],
        },
    }
    answer = {"candidates": [candidate], "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1}}
    message = chat_answer(answer)["choices"][0]["message"]
    assert message["content"] == f"{text}\n```python\n1+1\n```\n\n```\n2\n```\n"
    assert message["images"][0]["image_url"]["url"] == "data:image/png;base64,aa"
    assert message["annotations"][0]["url_citation"] == {
        "url": "https://x",
        "title": "X",
        "start_index": 0,
        "end_index": 6,
    }
    probable = {**candidate, "logprobsResult": {"chosenCandidates": [{"token": "G", "logProbability": -0.5}]}}
    completion = chat_over_gemini.answer({**answer, "candidates": [probable]}, asked())
    assert completion["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.5


COMPLETION: Json = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Looking.",
                "reasoning_content": "hm",
                "tool_calls": [call("look", "call_1", at="sky"), call("look", "call_2")],
            },
            "finish_reason": "tool_calls",
        }
    ],
    "usage": {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 3},
    },
}


def gemini_answer(completion: Json, context: AnswerContext) -> Json:
    """The answer, which Google's types accept and a stream in any split equals."""
    answer = gemini_over_chat.answer(completion, context)
    types.GenerateContentResponse.model_validate(answer)
    translator, assembly, chat = gemini_over_chat.StreamTranslator(context), Assembly(), ChatAssembly()
    for event in stream_events(json.dumps(completion).encode(), None):
        if not event.startswith(b"data: [DONE]"):
            chunk = msgspec.json.decode(event[6:])
            chat.take(chunk)
            for made in translator.take(chunk):
                types.GenerateContentResponse.model_validate(made)
                assembly.take(made)
    usage = openai_usage(completion.get("usage")) or estimated_usage(4, 4)
    for made in translator.end(None, usage):
        types.GenerateContentResponse.model_validate(made)
        assembly.take(made)
    streamed = json.loads(assembly.completion())
    assert [without_empty(each) for each in streamed["candidates"]] == [
        without_empty(each) for each in answer["candidates"]
    ]
    if completion.get("usage"):
        assert streamed["usageMetadata"] == answer["usageMetadata"]
    return answer


def without_empty(candidate: Json) -> Json:
    """A stream may end with an empty text, and signs each piece of a thought."""
    parts = [part for part in candidate["content"]["parts"] if part != {"text": ""}]
    return {**candidate, "content": {**candidate["content"], "parts": parts}}


def test_a_completion_becomes_an_answer() -> None:
    context = asked({"tools": [{"functionDeclarations": [DECLARED]}], "contents": []}, "resp", "m")
    answer = gemini_answer(COMPLETION, context)
    [candidate] = answer["candidates"]
    thought, text, *calls = candidate["content"]["parts"]
    assert (thought["text"], thought["thought"], text) == ("hm", True, {"text": "Looking."})
    assert read_own(thought["thoughtSignature"]) == ("m", [])
    assert [each["functionCall"] for each in calls] == [
        {"id": "call_1", "name": "look", "args": {"at": "sky"}},
        {"id": "call_2", "name": "look", "args": {}},
    ]
    assert candidate["finishReason"] == "STOP"
    assert answer["usageMetadata"] == {
        "promptTokenCount": 9,
        "candidatesTokenCount": 2,
        "totalTokenCount": 14,
        "cachedContentTokenCount": 2,
        "thoughtsTokenCount": 3,
    }
    # The client returns all parts; the same model gets its reasoning back, another one does not.
    results = [{"functionResponse": {"name": "look", "response": {"output": "x"}}}] * 2
    history = {"contents": [user({"text": "look"}), candidate["content"], user(*results)]}
    out, lost = to_chat(history, "m")
    assert (lost, out["messages"][1]["reasoning_content"]) == ([], "hm")
    out, lost = to_chat(history, "n")
    assert "reasoning_content" not in out["messages"][1]
    assert lost == ["contents[1].parts[0].thoughtSignature", "contents[1].parts[0]"]


def test_reasoning_blocks_of_a_chat_target_return() -> None:
    blocks = [{"type": "thinking", "thinking": "hm", "signature": "s" * 400, "model": "claude-x", "index": 0}]
    message = {**COMPLETION["choices"][0]["message"], "thinking_blocks": blocks}
    completion = {**COMPLETION, "choices": [{**COMPLETION["choices"][0], "message": message}]}
    context = asked({"contents": []}, "resp", "claude-x")
    parts = gemini_answer(completion, context)["candidates"][0]["content"]["parts"]
    assert parts[2]["thoughtSignature"].startswith(OWN_MARK)
    # A library may write the signature in the other alphabet of base64.
    parts[2]["thoughtSignature"] = parts[2]["thoughtSignature"].replace("-", "+").replace("_", "/")
    history = {"contents": [user({"text": "look"}), model(*parts)]}
    out, lost = to_chat({**history, "contents": [*history["contents"], results_of(parts)]}, "claude-x")
    assert lost == []
    assert out["messages"][1]["thinking_blocks"] == blocks
    without_calls = {**message, "tool_calls": None}
    completion = {**COMPLETION, "choices": [{"index": 0, "message": without_calls, "finish_reason": "stop"}]}
    parts = gemini_answer(completion, context)["candidates"][0]["content"]["parts"]
    assert read_own(parts[-1]["thoughtSignature"]) == ("claude-x", blocks)


def results_of(parts: list[Json]) -> Json:
    calls = [part["functionCall"] for part in parts if "functionCall" in part]
    return user(*({"functionResponse": {"name": each["name"], "id": each["id"], "response": {}}} for each in calls))


@pytest.mark.parametrize(
    ("reason", "ended"), [("stop", "STOP"), ("length", "MAX_TOKENS"), ("content_filter", "SAFETY"), ("odd", "OTHER")]
)
def test_finish_reasons_of_chat(reason: str, ended: str) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": reason}
    [candidate] = gemini_answer({**COMPLETION, "choices": [choice]}, asked({"contents": []}))["candidates"]
    assert candidate["finishReason"] == ended
    assert candidate.get("finishMessage") == ("odd" if ended == "OTHER" else None)


def test_a_signature_that_is_none_is_foreign() -> None:
    assert read_own("abc") is None
    assert read_own(OWN_MARK + "###") is None
    assert read_own(sign_own("m", [])[:15]) is None


@pytest.mark.parametrize("thoughts", [True, False])
def test_items_of_responses_keep_their_places(thoughts: bool) -> None:
    """A signature comes with the first call: its item stands between the text and the calls, streamed and whole."""
    parts = [part for part in ANSWER["candidates"][0]["content"]["parts"] if thoughts or not part.get("thought")]
    tool = {"type": "function", "name": "look", "parameters": SCHEMA}
    body = {"model": NEW, "input": "look", "stream": True, "tools": [tool]}
    wire = wire_between("responses", ("gemini",))
    assert wire is not None
    request = CODECS["responses"].read(json.dumps(body).encode())
    reader = wire.reader(request, lambda: asked(body, "resp_1"))
    pieces: list[bytes] = []
    whole = {**ANSWER, "candidates": [{**ANSWER["candidates"][0], "content": {"role": "model", "parts": parts}}]}
    for event in split(whole, 3):
        pieces += reader.take(event, b"")[0]
    usage = reader.usage()
    assert usage is not None
    pieces += reader.end(0.0, usage)
    events = [json.loads(each.partition(b"data: ")[2]) for each in pieces]
    done = {each["output_index"]: each["item"] for each in events if each["type"] == "response.output_item.done"}
    assert [done[at] for at in sorted(done)] == events[-1]["response"]["output"]
    assert json.loads(reader.recorded())["output"] == events[-1]["response"]["output"]


def test_a_key_in_pieces_is_taken_out() -> None:
    """A provider repeats its key, spread over the events of a stream."""
    guard, shown = KeyGuard(b"secret-0123456789abcdef"), list[bytes]()
    for text in ("the key is secret-01", "23456789abc", "def, keep it"):
        event = {"candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}]}
        shown += guard.take(event, [gemini.encode(event)])
    told = b"".join([*shown, *guard.rest()]).decode()
    assert "[key]" in told
    assert "0123456789" not in told
    assert "keep it" in told


# ── random conversations ────────────────────────────────────────────────────────────────────────────────────────────

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)
names = st.sampled_from(["look", "file", "9 odd näme", "x" * 70])


@st.composite
def conversations(draw: st.DrawFn) -> list[Json]:
    """Chat messages in which every call has its result."""
    messages: list[Json] = [{"role": "user", "content": draw(words)}]
    for turn in range(draw(st.integers(0, 4))):
        count = draw(st.integers(0, 3))
        calls = [
            call(draw(names), f"c{turn}_{at}", **draw(st.dictionaries(words, json_values, max_size=2)))
            for at in range(count)
        ]
        answered: Json = {"role": "assistant", "content": draw(words) if not calls or draw(st.booleans()) else None}
        if calls:
            answered["tool_calls"] = calls
        messages.append(answered)
        results = [{"role": "tool", "tool_call_id": each["id"], "content": draw(words)} for each in calls]
        messages += draw(st.permutations(results))
        if draw(st.booleans()) or not calls:
            messages.append({"role": "user", "content": draw(words)})
    return messages


@settings(max_examples=60, deadline=None)
@given(conversations())
def test_a_conversation_survives_both_ways(messages: list[Json]) -> None:
    out, lost = to_gemini({"messages": messages})
    assert all(each.endswith(".name") for each in lost)
    back, lost = to_chat({"contents": out["contents"]})
    assert all(each.endswith(".thoughtSignature") for each in lost)
    assert flat(back["messages"]) == flat(messages)


def flat(messages: list[Json]) -> list[Any]:
    """Texts, calls and results, with the results in the order of their calls, and without names that had to change."""
    out: list[Any] = []
    order: dict[str, int] = {}
    results: list[tuple[int, str]] = []
    for message in messages:
        if message["role"] == "tool":
            results.append((order.get(message["tool_call_id"], 0), result_text(message["content"])))
            continue
        out += [text for _, text in sorted(results)]
        results = []
        if message.get("content"):
            out.append(message["content"])
        for at, each in enumerate(message.get("tool_calls", ())):
            order[each["id"]] = at
            out.append(json.loads(each["function"]["arguments"]))
    return [*out, *(text for _, text in sorted(results))]


def result_text(content: str) -> Any:
    try:
        found = json.loads(content)
    except ValueError:
        return content
    return json.dumps(found) if isinstance(found, dict) else content


parts_of_answers = st.lists(
    st.one_of(
        st.builds(lambda text: {"text": text}, words),
        st.builds(lambda text: {"text": text, "thought": True}, words),
        st.builds(
            lambda args: {"functionCall": {"name": "look", "args": args, "id": "i"}},
            st.dictionaries(words, json_values),
        ),
        st.builds(lambda text: {"text": text, "thoughtSignature": "c2ln"}, words),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(parts_of_answers)
def test_chunks_and_record_of_any_answer_agree(parts: list[Json]) -> None:
    for at, part in enumerate(parts):
        if "functionCall" in part:
            part["functionCall"]["id"] = f"i{at}"
    candidate = {"content": {"role": "model", "parts": parts}, "finishReason": "STOP", "index": 0}
    chat_answer({"candidates": [candidate], "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 2}})
