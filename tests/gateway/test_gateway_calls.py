"""Plain calls through the gateway, checked by responses and the ledger, on both stores."""

import asyncio
import json

import openai
import pytest

from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import Served, routed, serving


async def test_official_client_receives_the_recorded_answer(served: Served) -> None:
    raw = await served.openai.chat.completions.with_raw_response.create(
        model="auto",
        messages=[{"role": "user", "content": "hello"}],
        temperature=0.2,
        extra_headers={"x-job-id": "night-1", "x-agent-name": "triage", "x-step": "read", "x-workflow": "mail"},
    )
    answer = raw.parse()
    assert answer.choices[0].message.content == "(scripted) offline answer to: hello"
    job = await served.ledger.job("night-1")
    assert raw.headers["x-job-id"] == job.job_id
    assert raw.headers["x-overnight-model"] == "gpt-5.4-mini"
    assert float(raw.headers["x-overnight-cost-usd"]) > 0
    assert 0 < float(raw.headers["x-overnight-overhead-ms"]) < 30_000
    assert raw.headers["x-request-id"].startswith("req_")
    assert (job.state, job.runtime, job.name, job.brain_version) == (
        "running",
        "foreign",
        "mail",
        served.gateway.brain_version,
    )
    created, called, succeeded = await served.events("night-1")
    assert created.facts.event == "created"
    assert called.facts.call_id == succeeded.facts.call_id == raw.headers["x-overnight-call-id"]
    assert called.facts.decision["targets"] == ["gpt-5.4-mini"]
    assert called.facts.detail["reserved_microusd"] > succeeded.facts.cost_microusd > 0
    assert json.loads(called.content) == {"model": "auto", "temperature": 0.2}
    assert (called.facts.agent_id, called.facts.step, called.facts.workflow) == ("triage", "read", "mail")
    assert json.loads(succeeded.content)["choices"][0]["message"]["content"] == answer.choices[0].message.content
    assert answer.usage is not None
    assert succeeded.facts.output_tokens == answer.usage.completion_tokens
    messages = await served.ledger.content("default", called.facts.input_ref)
    assert [json.loads(message) for message in messages] == [{"role": "user", "content": "hello"}]


async def test_the_synchronous_client_works_too(served: Served) -> None:
    def ask() -> str | None:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused") as client:
            answer = client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "hello"}])
            return answer.choices[0].message.content

    assert await asyncio.to_thread(ask) == "(scripted) offline answer to: hello"


async def test_the_cost_of_a_job_is_the_sum_of_its_calls(served: Served) -> None:
    costs = [
        float((await served.ask(f"question {number}", headers={"x-job-id": "sum"})).headers["x-overnight-cost-usd"])
        for number in range(3)
    ]
    job = await served.ledger.job("sum")
    [(model, calls, _, _, _, microusd, _)] = await served.ledger.usage(job.job_id)
    assert (model, calls) == ("gpt-5.4-mini", 3)
    assert microusd == round(sum(costs) * 1_000_000)


async def test_a_conversation_stores_each_message_once(served: Served) -> None:
    said: list[dict[str, str]] = []
    for turn in range(5):
        said.append({"role": "user", "content": f"turn {turn}"})
        answer = await served.http.post(
            "/v1/chat/completions", json={"model": "auto", "messages": said}, headers={"x-job-id": "talk"}
        )
        said.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]})
    called = [event for event in await served.events("talk") if event.facts.event == "model_called"]
    heads = [await served.ledger.content("default", event.facts.input_ref) for event in called]
    assert [len(head) for head in heads] == [1, 3, 5, 7, 9]
    assert heads[4][:7] == heads[3]


async def test_cache_markers_and_stream_flags_keep_the_fingerprint(served: Served) -> None:
    plain = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    marked = [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}]
    for messages in (plain, marked):
        body = {"model": "auto", "messages": messages}
        assert (await served.http.post("/v1/chat/completions", json=body, headers={"x-job-id": "m"})).status_code == 200
    prints = [event.fingerprint for event in await served.events("m") if event.facts.event == "model_succeeded"]
    assert len(prints) == 2
    assert prints[0] == prints[1] is not None


async def test_call_without_job_joins_its_session_or_a_new_job(served: Served) -> None:
    first = await served.ask(headers={"x-session-id": "chat-7"})
    second = await served.ask(headers={"x-session-id": "chat-7"})
    assert first.headers["x-job-id"] == second.headers["x-job-id"]
    assert (await served.ledger.job(first.headers["x-job-id"])).external_id == "session:chat-7"
    alone = await served.ledger.job((await served.ask()).headers["x-job-id"])
    assert (alone.unattributed, alone.state) == (1, "succeeded")
    assert await served.story(alone.job_id) == ["created", "model_called", "model_succeeded", "completed"]


async def test_metadata_in_the_body_stands_in_for_headers(served: Served) -> None:
    metadata = {"job_id": "from-body", "agent_name": "reader", "step": "two", "mine": "kept"}
    assert (await served.ask(metadata=metadata, headers={"x-step": "one"})).status_code == 200
    called = (await served.events("from-body"))[1].facts
    assert (called.agent_id, called.step) == ("reader", "one")


async def test_non_text_metadata_is_rejected_by_name(served: Served) -> None:
    for name in ("job_id", "agent_name", "session_id", "task", "step", "workflow", "tags"):
        answer = await served.ask(metadata={name: 5})
        assert (answer.status_code, f"metadata.{name}: must be" in answer.text) == (400, True)
    odd = {"job_id": None, "tags": None, "mine": {"task": 5}, "run": [7]}
    assert (await served.ask(metadata=odd)).status_code == 200
    assert (await served.ask(metadata={"step": 5}, headers={"x-step": "one"})).status_code == 200


async def test_known_job_id_is_continued_and_unknown_is_not_found(served: Served) -> None:
    job_id = (await served.ask(headers={"x-job-id": "mine"})).headers["x-job-id"]
    assert (await served.ask(headers={"x-job-id": job_id})).headers["x-job-id"] == job_id
    strange = await served.ask(headers={"x-job-id": "job_" + "0" * 32})
    assert (strange.status_code, strange.json()["error"]["code"]) == (404, "job_not_found")


async def test_a_route_is_named_by_x_task_or_by_the_model(served: Served) -> None:
    by_task = await served.ask(headers={"x-job-id": "r", "x-task": "deep_thought"})
    by_model = await served.ask(model="heartbeat_check", headers={"x-job-id": "r"})
    assert by_task.headers["x-overnight-model"] == "claude-opus-4.6"
    assert by_model.headers["x-overnight-model"] == "gpt-5.4-mini"
    routes = [event.facts.route for event in await served.events("r") if event.facts.event == "model_called"]
    assert routes == ["deep_thought", "heartbeat_check"]


async def test_traceparent_is_continued(served: Served) -> None:
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    await served.ask(headers={"x-job-id": "t", "traceparent": f"00-{trace}-{span}-01"})
    called, answered = (event.facts for event in (await served.events("t"))[1:])
    assert called.trace_id == answered.trace_id == trace
    assert called.span_id == answered.span_id != span
    assert called.detail["parent_span_id"] == span


async def test_the_output_cap_is_sent_upstream_and_recorded(served: Served) -> None:
    answer = await served.ask("long " * 50, max_completion_tokens=3, headers={"x-job-id": "cap"})
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    assert (await served.events("cap"))[1].facts.detail["max_output_tokens"] == 3


# ── failures ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_temporary_failure_is_retried_and_recorded(served: Served) -> None:
    served.provider.set_rules("rules: [{match: {times: 1}, fault: {status: 503}}]")
    answer = await served.ask(headers={"x-job-id": "again"})
    assert answer.status_code == 200
    assert "x-overnight-fallback" not in answer.headers
    events = await served.events("again")
    assert [event.facts.event for event in events] == [
        "created",
        "model_called",
        "model_failed",
        "model_called",
        "model_succeeded",
    ]
    assert (events[2].facts.error.error_class, events[2].facts.cost_microusd) == ("overloaded", 0)
    assert [event.facts.detail["try"] for event in events if event.facts.event == "model_called"] == [1, 2]


async def test_fallback_is_recorded_and_reported(served: Served) -> None:
    served.provider.set_rules("rules: [{match: {model: 'claude*'}, fault: {status: 500}}]")
    answer = await served.ask(model="claude-opus-4.6", headers={"x-job-id": "fall"})
    assert answer.status_code == 200
    assert answer.headers["x-overnight-fallback"] == answer.headers["x-overnight-model"] == "gpt-5.4"
    events = await served.events("fall")
    assert [event.facts.event for event in events].count("model_called") == 3
    [taken] = [event.facts for event in events if event.facts.event == "fallback_taken"]
    assert (taken.decision["from"], taken.decision["to"]) == ("claude-opus-4.6", "gpt-5.4")
    assert "server_error" in taken.decision["why"]


async def test_long_retry_after_leads_to_the_fallback(served: Served) -> None:
    served.provider.set_rules("rules: [{match: {model: 'claude*'}, fault: {status: 429, retry_after_ms: 60000}}]")
    answer = await served.ask(model="claude-opus-4.6", headers={"x-job-id": "limit"})
    assert answer.headers["x-overnight-model"] == "gpt-5.4"
    assert (await served.story("limit")).count("model_failed") == 1


async def test_invalid_request_is_sent_once_and_passed_through(
    served: Served,
) -> None:
    served.provider.set_rules("rules: [{fault: {status: 400, message: 'temperature is out of range'}}]")
    answer = await served.ask(model="claude-opus-4.6", headers={"x-job-id": "bad"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "temperature is out of range"
    assert (await served.story("bad")) == ["created", "model_called", "model_failed"]


async def test_last_failure_is_returned_with_no_retry_header(served: Served) -> None:
    served.provider.set_rules("rules: [{fault: {status: 429}}]")
    answer = await served.ask(headers={"x-job-id": "down"})
    assert (answer.status_code, answer.headers["x-should-retry"]) == (429, "false")
    assert "tried 2 times" in answer.json()["error"]["message"]
    job = await served.ledger.job("down")
    assert job.state == "running"
    unattributed = await served.ask()
    assert (await served.ledger.job(unattributed.headers["x-job-id"])).state == "failed"


@pytest.mark.parametrize("fault", ["stall: true", "cut_after_chunks: 1", "broken_json: true"])
async def test_possibly_billed_attempt_is_booked(store: Store, provider: SpawnedProvider, fault: str) -> None:
    provider.set_rules(f"rules: [{{fault: {{{fault}}}}}]")
    async with serving(store, provider, routed("deadlines: {default_ms: 400}")) as served:
        answer = await served.ask(headers={"x-job-id": "lost"})
        assert answer.status_code in (502, 504)
        failed = [event.facts for event in await served.events("lost") if event.facts.event == "model_failed"]
        assert failed
        assert all(each.bound_microusd > 0 and each.detail["estimated"] for each in failed)
        assert {each.cost_microusd for each in failed} == {0}
        [(_, calls, _, _, _, microusd, bound)] = await served.ledger.usage((await served.ledger.job("lost")).job_id)
        assert calls == len(failed)
        assert (microusd, bound) == (0, sum(each.bound_microusd for each in failed))


async def test_a_hanging_model_leaves_time_for_its_fallback(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{match: {model: 'claude*'}, fault: {stall: true}}]")
    async with serving(store, provider, routed("deadlines: {default_ms: 600}")) as served:
        answer = await served.ask(model="claude-opus-4.6")
        assert (answer.status_code, answer.headers["x-overnight-model"]) == (200, "gpt-5.4")


async def test_provider_without_key_is_skipped_by_name(store: Store, provider: SpawnedProvider) -> None:
    brain = routed(f"providers: {{openai: {{base_url: '{provider.base_url}'}}}}")
    async with serving(
        store, provider, brain, environment={"OPENAI_API_KEY": "k-123"}, offline_base_url=None
    ) as served:
        answer = await served.ask(model="claude-opus-4.6", headers={"x-job-id": "nokey"})
        assert answer.headers["x-overnight-model"] == "gpt-5.4"
        [taken] = [e.facts for e in await served.events("nokey") if e.facts.event == "fallback_taken"]
        assert "ANTHROPIC_API_KEY" in taken.decision["why"]
        alone = await served.ask(model="grok-4.20")
        assert (alone.status_code, "XAI_API_KEY" in alone.json()["error"]["message"]) == (503, True)


async def test_scripted_provider_is_labelled(served: Served) -> None:
    await served.ask(headers={"x-job-id": "offline"})
    assert {event.facts.provider for event in (await served.events("offline"))[1:]} == {"scripted"}


# ── bad input ───────────────────────────────────────────────────────────────────────────────────────────────────────

HELLO = [{"role": "user", "content": "hello"}]
BAD_BODIES: list[tuple[bytes, str | None]] = [
    (b"", None),
    (b"hello", None),
    (b"[]", None),
    (b'{"model": "auto"', None),
    (b'{"model": "auto", "messages": [{"role": "user", "content": "\xff"}]}', None),
    (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b', "messages": [{}]}', None),
    (json.dumps({"model": "auto"}).encode(), "messages"),
    (json.dumps({"model": "auto", "messages": []}).encode(), "messages"),
    (json.dumps({"model": "auto", "messages": "hello"}).encode(), "messages"),
    (json.dumps({"model": "auto", "messages": ["hello"]}).encode(), "messages[0]"),
    (json.dumps({"model": 7, "messages": HELLO}).encode(), "model"),
    (json.dumps({"messages": HELLO, "max_tokens": -1}).encode(), "max_tokens"),
    (json.dumps({"messages": HELLO, "max_tokens": "many"}).encode(), "max_tokens"),
    (json.dumps({"messages": HELLO, "stream": "yes"}).encode(), "stream"),
    (json.dumps({"messages": HELLO, "n": 0}).encode(), "n"),
    (json.dumps({"messages": HELLO, "tools": {}}).encode(), "tools"),
    (json.dumps({"messages": HELLO, "metadata": {"job_attempt": "x"}}).encode(), None),
    (json.dumps({"messages": HELLO, "metadata": {"job_id": 5}}).encode(), None),
    (json.dumps({"messages": HELLO, "metadata": {"task": {"name": "x"}}}).encode(), None),
    (json.dumps({"messages": HELLO, "metadata": {"tags": ["a", "b"]}}).encode(), None),
]


@pytest.mark.parametrize(("body", "param"), BAD_BODIES)
async def test_invalid_body_is_400_with_its_place(served: Served, body: bytes, param: str | None) -> None:
    answer = await served.http.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert len(error["message"]) > 20
    assert served.provider.stats()["requests"] == 0


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-job-id", "a" * 201),
        ("x-job-id", ""),
        ("x-job-id", "semi;colon"),
        ("x-job-attempt", "two"),
        ("x-job-attempt", "0"),
        ("x-job-attempt", "-1"),
        ("x-job-attempt", "99999999"),
        ("x-tenant-id", "<script>"),
        ("x-agent-name", "a\\b"),
        ("x-session-id", "é"),
        ("x-step", "b" * 500),
    ],
)
async def test_invalid_header_is_400_with_its_name(served: Served, header: str, value: str) -> None:
    answer = await served.ask(headers={header: value.encode("utf-8")})  # type: ignore[dict-item]
    assert (answer.status_code, header in answer.json()["error"]["message"]) == (400, True)
    assert served.provider.stats()["requests"] == 0


async def test_unknown_model_is_404_with_nearest_names(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        await served.openai.chat.completions.create(model="gtp-5.4-mini", messages=[{"role": "user", "content": "x"}])
    assert raised.value.code == "model_not_found"
    assert "gpt-5.4-mini" in str(raised.value)


async def test_a_body_over_the_limit_is_a_413(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed("limits: {max_body_bytes: 1000}")) as served:
        answer = await served.ask("x" * 2000)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        assert (await served.ask("x")).status_code == 200


# ── tenants, and a store that fails ─────────────────────────────────────────────────────────────────────────────────


async def test_tenants_are_isolated(served: Served) -> None:
    mine = await served.ask(headers={"x-job-id": "same", "x-tenant-id": "one"})
    theirs = await served.ask(headers={"x-job-id": "same", "x-tenant-id": "two"})
    assert mine.headers["x-job-id"] != theirs.headers["x-job-id"]
    stolen = await served.ask(headers={"x-job-id": mine.headers["x-job-id"], "x-tenant-id": "two"})
    absent = await served.ask(headers={"x-job-id": "job_" + "1" * 32, "x-tenant-id": "two"})
    assert stolen.status_code == absent.status_code == 404
    assert await served.story(mine.headers["x-job-id"], "one") == ["created", "model_called", "model_succeeded"]


async def test_provider_is_not_called_without_a_store(served: Served) -> None:
    await served.ask(headers={"x-job-id": "before"})
    asked = served.provider.stats()["requests"]
    served.store.close()
    answer = await served.ask(headers={"x-job-id": "before"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
    assert served.provider.stats()["requests"] == asked
