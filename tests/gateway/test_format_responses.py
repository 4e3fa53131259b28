"""The Responses API by the official client, to Responses and chat targets."""

import asyncio
import json
from typing import Any

import msgspec
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from overnight.store import Store
from overnight.story import build_timeline, load_job_tree
from overnight.testing import SpawnedProvider
from serving import Served, serving

NATIVE, CHAT, MESSAGES = "gpt-5.4-mini", "deepseek-chat", "claude-sonnet-4-5"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOL: Any = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
    "strict": False,
}
RULES = """
rules:
  - match: {user_contains: look, tool_result: false, tools_offered: [look]}
    answer: {thinking: hm hm, text: looking, tool_calls: [{name: look, arguments: {at: sky}}, {name: look, arguments: {at: sea}}]}
  - match: {tool_result: true}
    answer: 'saw {tool_result}'
  - match: {user_contains: weather}
    answer: '{"city": "Bergen", "rain": true}'
  - match: {user_contains: remember}
    answer: 'answer {count}'
  - match: {user_contains: hello}
    answer: {text: hello yourself, usage: {prompt_tokens: 100, completion_tokens: 20, cached_tokens: 40, reasoning_tokens: 3}}
"""


class Weather(BaseModel):
    city: str
    rain: bool


@pytest.fixture
def provider(provider: SpawnedProvider) -> SpawnedProvider:
    provider.set_rules(RULES)
    return provider


every_way = pytest.mark.parametrize("model", [NATIVE, CHAT, MESSAGES])


async def recorded(served: Served, job: str) -> list[dict[str, Any]]:
    """The answers in the log of a job."""
    found = [event for event in await served.events(job) if event.facts.event == "model_succeeded"]
    return [json.loads(await served.ledger.answer(event) or b"") for event in found]


def sent(served: Served, text: str, **more: Any) -> Any:
    body = {"model": CHAT, "input": text, **more.pop("body", {})}
    return served.http.post("/v1/responses", json=body, **more)


# ── one answer ───────────────────────────────────────────────────────────────────────────────────────────────────────


@every_way
async def test_plain_answer_equals_its_record(served: Served, model: str) -> None:
    raw = await served.openai.responses.with_raw_response.create(
        model=model, input="hello", instructions="be brief", metadata={"a": "b"}, extra_headers={"x-job-id": "j"}
    )
    answer = raw.parse()
    Response.model_validate(json.loads(raw.text))
    assert answer.output_text == "hello yourself"
    assert (answer.status, answer.store) == ("completed", True)
    assert answer.metadata == ({} if model == NATIVE else {"a": "b"})  # natively, what the provider says
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.cached_tokens == 40
    assert answer.usage.output_tokens_details.reasoning_tokens == 3
    assert answer.id == raw.headers["x-overnight-call-id"].replace("call_", "resp_")
    assert [json.loads(raw.text)] == await recorded(served, "j")
    called = (await served.events("j"))[1]
    assert called.facts.detail["format"] == "responses"
    chain = await served.ledger.content("default", called.facts.input_ref)
    assert [json.loads(link) for link in chain] == [
        {"content": "be brief", "type": "instructions"},
        {"content": "hello", "role": "user"},
    ]
    succeeded = (await served.events("j"))[2]
    assert (succeeded.facts.input_tokens, succeeded.facts.cached_tokens, succeeded.facts.output_tokens) == (100, 40, 20)


async def test_usage_costs_the_same_in_every_format(served: Served) -> None:
    said = await served.openai.responses.with_raw_response.create(model=NATIVE, input="hello")
    chatted = await served.ask("hello", model=NATIVE)
    assert float(said.headers["x-overnight-cost-usd"]) == float(chatted.headers["x-overnight-cost-usd"]) > 0


@every_way
async def test_stream_accumulates_to_its_record_and_reports_cost(served: Served, model: str) -> None:
    async with served.openai.responses.stream(
        model=model, input="look up", tools=[TOOL], extra_headers={"x-job-id": "s"}
    ) as stream:
        kinds = [event.type async for event in stream]
        whole = await stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.function_call_arguments.done") == 2
    [made] = await recorded(served, "s")
    assert [
        item.model_dump(exclude={"parsed_arguments"}, exclude_unset=True)
        for item in whole.output
        if item.type != "message"
    ] == [item for item in made["output"] if item["type"] != "message"]
    assert whole.output_text == "looking"
    assert whole.id == made["id"]
    [succeeded] = [event for event in await served.events("s") if event.facts.event == "model_succeeded"]
    assert whole.usage.cost_usd == succeeded.facts.cost_microusd / 1_000_000


@every_way
async def test_raw_stream_events_match_the_types(served: Served, model: str) -> None:
    body = {"stream": True, "tools": [TOOL], "model": model}
    answer = await sent(served, "look up", body=body, headers={"x-job-id": "raw"})
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    names = [line[7:] for line in answer.text.splitlines() if line.startswith("event: ")]
    assert names == [event["type"] for event in events]
    for number, event in enumerate(events):
        assert EVENT.validate_python(event).sequence_number == number
    last = events[-1]["response"]
    assert last["usage"].pop("cost_usd") >= 0
    assert [last] == await recorded(served, "raw")
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == last["output"]
    # Word by word and argument by argument, as the provider streams them.
    assert names.count("response.function_call_arguments.delta") >= 4


@every_way
async def test_the_synchronous_client_works_too(served: Served, model: str) -> None:
    def ask() -> tuple[str, str]:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:
            plain = client.responses.create(model=model, input="hello")
            with client.responses.stream(model=model, input="hello") as stream:
                return plain.output_text, stream.get_final_response().output_text

    assert await asyncio.to_thread(ask) == ("hello yourself", "hello yourself")


@every_way
async def test_structured_output_is_parsed(served: Served, model: str) -> None:
    answer = await served.openai.responses.parse(model=model, input="the weather", text_format=Weather)
    assert answer.output_parsed == Weather(city="Bergen", rain=True)
    async with served.openai.responses.stream(model=model, input="the weather", text_format=Weather) as stream:
        assert (await stream.get_final_response()).output_parsed == Weather(city="Bergen", rain=True)


@every_way
async def test_truncated_answer_is_incomplete(served: Served, model: str) -> None:
    answer = await served.openai.responses.create(model=model, input="something else", max_output_tokens=3)
    assert (answer.status, answer.max_output_tokens or 3) == ("incomplete", 3)
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    async with served.openai.responses.stream(model=model, input="something else", max_output_tokens=3) as stream:
        assert [event.type async for event in stream][-1] == "response.incomplete"


# ── turns ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def outputs(response: Any) -> list[Any]:
    calls = [item for item in response.output if item.type == "function_call"]
    return [
        {"type": "function_call_output", "call_id": call.call_id, "output": json.loads(call.arguments)["at"]}
        for call in calls
    ]


@every_way
async def test_tools_work_by_previous_response_id(served: Served, model: str) -> None:
    first = await served.openai.responses.create(model=model, input="look up", tools=[TOOL])
    assert [item.type for item in first.output][-3:] == ["message", "function_call", "function_call"]
    second = await served.openai.responses.create(
        model=model, input=outputs(first), tools=[TOOL], previous_response_id=first.id
    )
    assert second.output_text == "saw sea"
    assert second.previous_response_id == first.id
    third = await served.openai.responses.create(
        model=model, input="hello again", previous_response_id=second.id, store=False
    )
    assert third.output_text == "hello yourself"
    with pytest.raises(openai.NotFoundError) as refused:
        await served.openai.responses.create(model=model, input="x", previous_response_id=third.id)
    assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")
    with pytest.raises(openai.NotFoundError):
        await served.openai.responses.retrieve(third.id)


@every_way
async def test_tools_work_by_resending_the_output(served: Served, model: str) -> None:
    said: list[Any] = [{"role": "user", "content": "look up"}]
    first = await served.openai.responses.create(model=model, input=said, tools=[TOOL], store=False)
    said += [*first.output, *outputs(first)]
    second = await served.openai.responses.create(model=model, input=said, tools=[TOOL], store=False)
    assert second.output_text == "saw sea"


@every_way
async def test_referenced_items_are_found(served: Served, model: str) -> None:
    first = await served.openai.responses.create(model=model, input="look up", tools=[TOOL])
    said: list[Any] = [{"role": "user", "content": "look up"}]
    said += [{"type": "item_reference", "id": item.id} for item in first.output if item.type != "reasoning"]
    second = await served.openai.responses.create(model=model, input=[*said, *outputs(first)], tools=[TOOL])
    assert second.output_text == "saw sea"
    with pytest.raises(openai.NotFoundError, match="send the item itself"):
        await served.openai.responses.create(model=model, input=[{"type": "item_reference", "id": "msg_1"}])


async def test_conversation_moves_between_targets(served: Served) -> None:
    first = await served.openai.responses.create(model=NATIVE, input="look up", tools=[TOOL])
    raw = await served.openai.responses.with_raw_response.create(
        model=CHAT, input=outputs(first), tools=[TOOL], previous_response_id=first.id
    )
    second = raw.parse()
    assert second.output_text == "saw sea"
    assert raw.headers["x-overnight-dropped"] == "input[1] (reasoning)"
    third = await served.openai.responses.create(model=NATIVE, input="hello", previous_response_id=second.id)
    assert third.output_text == "hello yourself"


async def count(store: Store, table: str) -> int:
    [[rows]] = await store.read(_count(table), {})
    return rows


def _count(table: str) -> Any:
    from overnight.store.statements import Statement

    sql = f"SELECT count(*) FROM {table}"
    return Statement("count", {"sqlite": sql, "postgres": sql})


async def test_storage_grows_linearly_with_new_items(served: Served, store: Store) -> None:
    """Each turn costs a node for the question and one for the answer before it."""
    previous: str | None = None
    grown: list[tuple[int, int]] = []
    for turn in range(6):
        answer = await served.openai.responses.create(
            model=CHAT,
            instructions="be brief",
            input=f"remember {turn}",
            previous_response_id=previous or openai.omit,
            extra_headers={"x-job-id": "long"},
        )
        assert answer.output_text == f"answer {turn + 1}"
        previous = answer.id
        grown.append((await count(store, "node"), await count(store, "message")))
    assert grown == [(2 + 2 * turn, 2 + 2 * turn) for turn in range(6)]
    first, last = [event for event in await served.events("long") if event.facts.event == "model_called"][::5]
    before = await served.ledger.content("default", first.facts.input_ref)
    after = await served.ledger.content("default", last.facts.input_ref)
    assert after[:2] == before
    assert len(after) == 12


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────────────────


@every_way
async def test_response_is_read_listed_and_deleted(served: Served, model: str) -> None:
    first = await served.openai.responses.create(model=model, input="remember", instructions="be brief")
    second = await served.openai.responses.create(model=model, input="more", previous_response_id=first.id)
    again = await served.openai.responses.retrieve(second.id)
    assert again.model_dump() == second.model_dump()
    events = [event async for event in await served.openai.responses.retrieve(second.id, stream=True)]
    later = [event async for event in await served.openai.responses.retrieve(second.id, stream=True, starting_after=2)]
    assert events[-1].type == "response.completed"
    assert [event.sequence_number for event in later] == list(range(3, len(events)))

    page = await served.openai.responses.input_items.list(second.id, order="asc")
    assert [item.type for item in page.data] == ["message", "message", "message"]
    assert [item.role for item in page.data] == ["user", "assistant", "user"]  # type: ignore[union-attr]
    assert page.data[1].id == first.output[0].id
    assert not page.has_more
    found = [item.id async for item in served.openai.responses.input_items.list(second.id, limit=1)]
    assert found == [item.id for item in reversed(page.data)]

    await served.openai.responses.delete(second.id)
    for asked in (
        served.openai.responses.retrieve(second.id),
        served.openai.responses.delete(second.id),
        served.openai.responses.create(model=model, input="x", previous_response_id=second.id),
    ):
        with pytest.raises(openai.NotFoundError):
            await asked
    assert (await served.openai.responses.retrieve(first.id)).id == first.id


@every_way
async def test_response_of_another_tenant_is_not_found(served: Served, model: str) -> None:
    mine = await served.openai.responses.create(model=model, input="hello", extra_headers={"x-tenant-id": "a"})
    theirs: Any = {"extra_headers": {"x-tenant-id": "b"}}
    unknown: Any = {"previous_response_id": "resp_" + "0" * 32}
    with pytest.raises(openai.NotFoundError) as hidden:
        await served.openai.responses.create(model=model, input="x", previous_response_id=mine.id, **theirs)
    with pytest.raises(openai.NotFoundError) as missing:
        await served.openai.responses.create(model=model, input="x", **unknown, **theirs)
    assert str(hidden.value).replace(mine.id, "ID") == str(missing.value).replace("resp_" + "0" * 32, "ID")
    reference: Any = [{"type": "item_reference", "id": mine.output[0].id}]
    for asked in (
        served.openai.responses.retrieve(mine.id, **theirs),
        served.openai.responses.delete(mine.id, **theirs),
        served.openai.responses.create(model=model, input=reference, **theirs),
    ):
        with pytest.raises(openai.NotFoundError):
            await asked
    with pytest.raises(openai.NotFoundError):
        await served.openai.responses.input_items.list(mine.id, **theirs)
    again = await served.openai.responses.retrieve(mine.id, extra_headers={"x-tenant-id": "a"})
    assert again.output_text == "hello yourself"


async def test_rejected_continuation_is_free_and_unrecorded(served: Served, provider: SpawnedProvider) -> None:
    answer = await sent(served, "x", body={"previous_response_id": "resp_1"}, headers={"x-job-id": "none"})
    assert answer.status_code == 404
    assert answer.headers["x-should-retry"] == "false"
    assert provider.stats()["paid_calls"] == 0
    assert await served.ledger.jobs() == []


# ── a second attempt ─────────────────────────────────────────────────────────────────────────────────────────────────


@every_way
async def test_second_attempt_replays_recorded_turns(served: Served, provider: SpawnedProvider, model: str) -> None:
    async def turns(attempt: int, stream: bool) -> list[Any]:
        headers = {"x-job-id": "r", "x-job-attempt": str(attempt)}
        made: list[Any] = []
        for text in ("look up", None):
            more: dict[str, Any] = {"previous_response_id": made[-1].id} if made else {}
            said: Any = text or outputs(made[-1])
            asked: Any = {"model": model, "input": said, "tools": [TOOL], "extra_headers": headers, **more}
            if stream:
                async with served.openai.responses.stream(**asked) as events:
                    made.append(await events.get_final_response())
            else:
                made.append(await served.openai.responses.create(**asked))
        return made

    first = await turns(1, stream=False)
    paid = provider.stats()["paid_calls"]
    again = await turns(2, stream=True)
    assert [response.id for response in again] == [response.id for response in first]
    assert [response.output_text for response in again] == [response.output_text for response in first]
    assert [item.model_dump() for item in first[0].output if item.type == "function_call"] == [
        item.model_dump(exclude={"parsed_arguments"}) for item in again[0].output if item.type == "function_call"
    ]
    assert again[0].usage.cost_usd == 0
    assert provider.stats()["paid_calls"] == paid == 2
    assert (await served.story("r"))[-2:] == ["model_replayed", "model_replayed"]


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_required_unsupported_tool_is_rejected_free(served: Served, provider: SpawnedProvider) -> None:
    body = {"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}
    answer = await sent(served, "x", body=body, headers={"x-job-id": "t"})
    assert answer.status_code == 400
    assert "cannot call web_search" in answer.json()["error"]["message"]
    assert provider.stats()["paid_calls"] == 0
    assert (await served.story("t"))[-2:] == ["model_called", "model_failed"]
    assert (await served.events("t"))[-1].facts.cost_microusd == 0
    native = await sent(served, "hello", body={**body, "model": NATIVE})
    assert native.status_code == 200


async def test_dropped_fields_are_named(served: Served) -> None:
    body = {"tools": [{"type": "web_search"}], "truncation": "auto", "reasoning": {"summary": "auto"}}
    answer = await sent(served, "hello", body=body, headers={"x-job-id": "l"})
    assert answer.headers["x-overnight-dropped"] == "tools[0] (web_search), reasoning.summary, truncation"
    assert (await served.events("l"))[-1].facts.detail["dropped"] == [
        "tools[0] (web_search)",
        "reasoning.summary",
        "truncation",
    ]


@every_way
async def test_a_providers_error_has_the_shape_of_the_api(
    served: Served, provider: SpawnedProvider, model: str
) -> None:
    provider.set_rules("rules: [{fault: {status: 401}}]")
    with pytest.raises(openai.APIStatusError) as failed:
        await served.openai.responses.create(model=model, input="hello")
    assert failed.value.status_code == 502
    assert failed.value.body["type"] == "server_error"  # type: ignore[index]
    provider.set_rules("rules: [{fault: {status: 400, message: no such thing}}]")
    with pytest.raises(openai.BadRequestError, match="no such thing"):
        await served.openai.responses.create(model=model, input="hello")


@every_way
async def test_broken_stream_ends_with_response_failed(served: Served, provider: SpawnedProvider, model: str) -> None:
    provider.set_rules(
        "rules: [{answer: {text: one two three four five}, fault: {cut_after_chunks: 6, chunk_delay_ms: 10}}]"
    )
    asked = served.openai.responses.create(model=model, input="hello", stream=True, extra_headers={"x-job-id": "b"})
    said = [event async for event in await asked]
    assert "response.output_text.delta" in [event.type for event in said]
    assert "response.completed" not in [event.type for event in said]
    assert [event.sequence_number for event in said] == list(range(len(said)))
    assert said[-1].type == "response.failed"
    assert said[-1].response.id == said[0].response.id  # type: ignore[union-attr]
    assert said[-1].response.error.code == "body_cut"  # type: ignore[union-attr]
    assert "cut" in said[-1].response.error.message  # type: ignore[union-attr]
    failed = (await served.until("b", "model_failed"))[-1]
    assert failed.facts.error.error_class == "cut"


async def test_disconnected_client_finds_its_answer(served: Served, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{answer: {text: one two three four}, fault: {chunk_delay_ms: 20}}]")
    stream = await served.openai.responses.create(
        model=CHAT, input="hello", stream=True, extra_headers={"x-job-id": "gone"}
    )
    async for event in stream:
        began = event
        break
    await stream.close()
    await served.until("gone", "model_succeeded")
    assert (await served.openai.responses.retrieve(began.response.id)).output_text == "one two three four"  # type: ignore[union-attr]


async def test_unsupported_method_is_405(served: Served) -> None:
    answer = await served.http.put("/v1/responses/resp_1")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, DELETE")
    assert (await served.http.get("/v1/responses/resp_1/input_items?limit=x")).status_code == 400
    assert (await served.http.get("/v1/responses/resp_1/other")).status_code == 404


async def test_degraded_answer_can_be_continued(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{match: {times: 1}, fault: {status: 401}}, {answer: back again}]")
    route = "routes:\n  calm: {model: deepseek-chat, degraded: {answer: We are at capacity.}}\n"
    async with serving(store, provider, f"default_model: {CHAT}\n{route}") as served:
        first = await served.openai.responses.create(model="calm", input="hello")
        assert first.output_text == "We are at capacity."
        second = await served.openai.responses.create(model="calm", input="now?", previous_response_id=first.id)
        assert second.output_text == "back again"
        said = await served.openai.responses.input_items.list(second.id, order="asc")
        assert [item.role for item in said.data] == ["user", "assistant", "user"]  # type: ignore[union-attr]


@every_way
async def test_timeline_shows_the_routing_decision(served: Served, model: str) -> None:
    headers = {"x-job-id": "told"}
    first = await served.openai.responses.create(model=model, input="look up", tools=[TOOL], extra_headers=headers)
    more: Any = {"previous_response_id": first.id, "input": outputs(first), "tools": [TOOL]}
    await served.openai.responses.create(model=model, extra_headers=headers, **more)
    await served.openai.responses.create(model=model, input="x", max_output_tokens=3, extra_headers=headers)
    await served.openai.embeddings.create(model="text-embedding-3-small", input=["a", "b"], extra_headers=headers)
    chapter = await load_job_tree(served.ledger, await served.ledger.job("told"), with_content=True)
    story = msgspec.json.encode(build_timeline(chapter, served.store.clock(), with_content=True).lines).decode()
    for said in (
        "requested 2 tools: look, look",
        "answered in text",
        "truncated at the output limit",
        "embedded 2 texts",
    ):
        assert said in story, said
    assert "saw sea" in story
    assert "embedding\\" not in story
