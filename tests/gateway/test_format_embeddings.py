"""Embeddings by the official client: metered, recorded and replayed."""

import base64
import json
from array import array
from typing import Any

import openai
import pytest

from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import Served, routed, serving

MODEL = "text-embedding-3-small"


async def test_vectors_are_metered_and_recorded(served: Served, provider: SpawnedProvider) -> None:
    raw = await served.openai.embeddings.with_raw_response.create(
        model=MODEL, input=["one text", "another"], dimensions=8, extra_headers={"x-job-id": "e"}
    )
    answer = raw.parse()
    assert [len(each.embedding) for each in answer.data] == [8, 8]
    assert raw.headers["x-overnight-model"] == MODEL
    assert provider.stats()["paid_calls_by_model"] == {MODEL: 1}
    _, called, succeeded = await served.events("e")
    assert called.facts.detail["format"] == "embeddings"
    assert (called.facts.event, succeeded.facts.event) == ("model_called", "model_succeeded")
    chain = await served.ledger.content("default", called.facts.input_ref)
    assert [json.loads(link) for link in chain] == [["one text", "another"]]
    assert (succeeded.facts.input_tokens, succeeded.facts.output_tokens) == (answer.usage.prompt_tokens, 0)
    assert json.loads(succeeded.content) == json.loads(raw.text)


async def test_encodings_and_token_inputs_are_supported(served: Served) -> None:
    as_list = await served.openai.embeddings.create(model=MODEL, input="hello", encoding_format="float")
    as_text: Any = await served.openai.embeddings.create(model=MODEL, input="hello", encoding_format="base64")
    assert list(array("f", base64.b64decode(as_text.data[0].embedding))) == as_list.data[0].embedding
    assert len((await served.openai.embeddings.create(model=MODEL, input=[[1, 2], [3]])).data) == 2


async def test_only_the_input_is_priced(store: Store, provider: SpawnedProvider) -> None:
    priced = routed(
        f"providers: {{own: {{base_url: '{provider.base_url}', models: ['emb*'], apis: [embeddings]}}}}\n"
        "prices: {emb: {input_usd_per_mtok: 1000, output_usd_per_mtok: 9999}}\n"
    )
    async with serving(store, provider, priced) as served:
        raw = await served.openai.embeddings.with_raw_response.create(
            model="emb", input="hello there", extra_headers={"x-job-id": "p"}
        )
        used = raw.parse().usage.prompt_tokens
        assert float(raw.headers["x-overnight-cost-usd"]) == used / 1000
        with pytest.raises(openai.APIStatusError, match="accepts embeddings, not chat"):
            await served.openai.chat.completions.create(model="emb", messages=[{"role": "user", "content": "x"}])


async def test_a_budget_stops_embeddings_too(store: Store, provider: SpawnedProvider) -> None:
    priced = routed(
        f"providers: {{own: {{base_url: '{provider.base_url}', models: ['emb*'], apis: [embeddings]}}}}\n"
        "prices: {emb: {input_usd_per_mtok: 1000, output_usd_per_mtok: 0}}\n"
        "budgets: {max_cost_per_job_usd: 0.1}\n"
    )
    async with serving(store, provider, priced) as served:
        headers = {"x-job-id": "b"}

        async def ask_on() -> None:
            for _ in range(50):
                await served.openai.embeddings.create(model="emb", input="hello there", extra_headers=headers)

        with pytest.raises(openai.APIStatusError) as stopped:
            await ask_on()
        assert stopped.value.status_code == 402
        spent = sum(
            (event.facts.cost_microusd or 0) + (event.facts.bound_microusd or 0) for event in await served.events("b")
        )
        assert 0 < spent <= 100_000


async def test_second_attempt_replays_the_vectors(served: Served, provider: SpawnedProvider) -> None:
    async def ask(attempt: int) -> Any:
        headers = {"x-job-id": "r", "x-job-attempt": str(attempt)}
        return await served.openai.embeddings.with_raw_response.create(
            model=MODEL, input="hello", extra_headers=headers
        )

    first, again = await ask(1), await ask(2)
    assert again.headers["x-overnight-replayed"] == "true"
    assert again.text == first.text
    assert provider.stats()["paid_calls"] == 1


async def test_hanging_provider_times_out_at_embeddings_deadline(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{fault: {stall: true}}]")
    async with serving(store, provider, routed("deadlines: {embeddings_ms: 300}\n")) as served:
        with pytest.raises(openai.APIStatusError) as late:
            await served.openai.embeddings.create(model=MODEL, input="hello", extra_headers={"x-job-id": "d"})
        assert late.value.status_code == 504
        failed = (await served.events("d"))[-1]
        assert failed.facts.error.error_class == "timeout"
        assert failed.facts.bound_microusd > 0  # it may have been billed


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "stream": True}, "stream"),
    ],
)
async def test_invalid_body_is_rejected_by_field(
    served: Served, provider: SpawnedProvider, sent: dict[str, Any], param: str
) -> None:
    answer = await served.http.post("/v1/embeddings", json={"model": MODEL, **sent})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert provider.stats()["paid_calls"] == 0


async def test_model_without_embeddings_is_rejected(served: Served) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await served.openai.embeddings.create(model="claude-haiku-4-5", input="x")
    assert refused.value.status_code == 503
    assert "accepts messages, not embeddings" in str(refused.value)
