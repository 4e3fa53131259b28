"""Responses and embeddings of the scripted provider, with the official client."""

import base64
import math
from array import array
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from overnight.testing import SpawnedProvider

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOL: Any = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}
RULES = """
rules:
  - match: {user_contains: look, tool_result: false}
    answer: {thinking: hm hm, text: looking, tool_calls: [{name: look, arguments: {at: sky}}]}
  - match: {tool_result: true}
    answer: 'saw {tool_result}'
  - match: {user_contains: cut}
    fault: {cut_after_chunks: 4}
  - match: {user_contains: busy}
    fault: {status: 429}
"""


@pytest.fixture
def provider(provider: SpawnedProvider) -> SpawnedProvider:
    provider.set_rules(RULES)
    return provider


@pytest.fixture
def client(provider: SpawnedProvider) -> Iterator[openai.OpenAI]:
    provider.reset()
    with openai.OpenAI(base_url=provider.base_url, api_key="unused", max_retries=0) as opened:
        yield opened


def test_plain_answer_is_labelled_scripted(client: openai.OpenAI, provider: SpawnedProvider) -> None:
    answer = client.responses.create(model="m", input="hello")
    Response.model_validate(answer.model_dump())
    assert answer.output_text == "(scripted) offline answer to: hello"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert provider.stats()["paid_calls"] == 1


def test_stream_equals_the_plain_answer(client: openai.OpenAI) -> None:
    with client.responses.stream(model="m", input="look up", tools=[TOOL]) as stream:
        events = list(stream)
        whole = stream.get_final_response()
    plain = client.responses.create(model="m", input="look up", tools=[TOOL])
    assert [item.type for item in plain.output] == ["reasoning", "message", "function_call"]
    for streamed, made in zip(whole.output, plain.output, strict=True):
        different = {"id", "call_id", "parsed_arguments", "content"}
        assert streamed.model_dump(exclude=different) == made.model_dump(exclude=different)
    assert whole.output_text == plain.output_text == "looking"
    with client.responses.create(model="m", input="look up", stream=True) as raw:
        for number, event in enumerate(raw):
            assert EVENT.validate_python(event.model_dump(by_alias=True)).sequence_number == number
    assert events[-1].type == "response.completed"


def test_tool_turn_continues_without_stored_items(client: openai.OpenAI) -> None:
    first = client.responses.create(model="m", input="look up", tools=[TOOL])
    before: list[Any] = [{"role": "user", "content": "look up"}]
    items: list[Any] = [item.model_dump(exclude={"id"}, exclude_none=True) for item in first.output]
    given = {"type": "function_call_output", "call_id": items[-1]["call_id"], "output": "stars"}
    again = client.responses.create(model="m", input=[*before, *items, given], tools=[TOOL])
    assert again.output_text == "saw stars"
    refused: list[tuple[list[Any], str]] = [
        ([*before, *first.output, given], "not found"),
        ([*before, *items[:-1], given], "No tool call found"),
        ([*before, *items], "No tool output found"),
        ([*before, {**items[0], "encrypted_content": "gAAAother"}, *items[1:], given], "could not be verified"),
        ([*before, {"type": "surprise"}], "Invalid value"),
    ]
    for sent, why in refused:
        with pytest.raises(openai.BadRequestError, match=why):
            client.responses.create(model="m", input=sent, tools=[TOOL])
    with pytest.raises(openai.BadRequestError, match="not found"):
        client.responses.create(model="m", input="x", previous_response_id=first.id)


def test_faults_are_those_of_every_format(client: openai.OpenAI, provider: SpawnedProvider) -> None:
    with pytest.raises(openai.RateLimitError):
        client.responses.create(model="m", input="busy")
    with pytest.raises(openai.RateLimitError):
        client.embeddings.create(model="m", input="busy")
    assert provider.stats()["paid_calls"] == 0
    with pytest.raises(openai.APIConnectionError):
        client.embeddings.create(model="m", input="cut")
    with pytest.raises(openai.APIConnectionError), client.responses.stream(model="m", input="cut") as stream:
        stream.until_done()
    short = client.responses.create(model="m", input="hello", max_output_tokens=2)
    assert (short.status, short.output_text) == ("incomplete", "(scripte")


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_similar_texts_have_similar_vectors(client: openai.OpenAI, provider: SpawnedProvider) -> None:
    said = ["How do I reset my password?", "how do I reset my  password", "Which is the highest mountain of Asia?"]
    answer = client.embeddings.create(model="e", input=said)
    first, near, far = (each.embedding for each in answer.data)
    assert cosine(first, near) > 0.95
    assert cosine(first, far) < 0.5
    assert math.isclose(cosine(first, first), 1, rel_tol=1e-5)
    assert (answer.model, len(first)) == ("e", 256)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    assert provider.stats()["paid_calls_by_model"] == {"e": 1}


def test_vectors_are_the_same_in_both_encodings(client: openai.OpenAI) -> None:
    as_list = client.embeddings.create(model="e", input="hello", encoding_format="float", dimensions=16)
    as_text: Any = client.embeddings.create(model="e", input="hello", encoding_format="base64", dimensions=16)
    assert list(array("f", base64.b64decode(as_text.data[0].embedding))) == as_list.data[0].embedding
    assert len(as_list.data[0].embedding) == 16


def test_token_inputs_and_invalid_inputs(client: openai.OpenAI) -> None:
    assert len(client.embeddings.create(model="e", input=[1, 2, 3]).data) == 1
    assert len(client.embeddings.create(model="e", input=[[1, 2], [3]]).data) == 2
    for sent in ("", [], ["a", ""]):
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model="e", input=sent)
