"""The scripted provider over HTTP, with the official client, in its own process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from http.client import HTTPConnection
from pathlib import Path

import httpx2
import openai
import psutil
import pytest

from overnight.testing import (
    ScriptedProviderError,
    SpawnedProvider,
    spawn_scripted_provider,
    start_scripted_provider,
)

WEATHER_TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def rules(provider: SpawnedProvider, text: str, **how: bool) -> None:
    provider.set_rules("rules:\n" + textwrap.indent(textwrap.dedent(text), "  "), **how)


def client(provider: SpawnedProvider, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=provider.base_url, api_key="none", max_retries=retries, timeout=20)


def ask(provider: SpawnedProvider, text: str = "hello", model: str = "m", **more):
    messages = more.pop("messages", [{"role": "user", "content": text}])
    return client(provider).chat.completions.create(model=model, messages=messages, **more)


def said(provider: SpawnedProvider, text: str = "hello", **more) -> str:
    return ask(provider, text, **more).choices[0].message.content


def raw(provider: SpawnedProvider, body: bytes, path: str = "/v1/chat/completions", method: str = "POST"):
    connection = HTTPConnection(provider.host, provider.port, timeout=20)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def wait_until(check) -> None:
    for _ in range(2_000):
        if check():
            return
        time.sleep(0.005)
    raise AssertionError("did not come true")


# ── answers ──────────────────────────────────────────────────────────────────


def test_default_answer_echoes_and_is_labelled(provider):
    answer = ask(provider, "hello there")
    assert answer.choices[0].message.content == "(scripted) offline answer to: hello there"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.usage.prompt_tokens == 3
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_same_request_has_same_answer_and_new_id(provider):
    first, second = ask(provider), ask(provider)
    assert first.id != second.id
    assert first.model_dump(exclude={"id"}) == second.model_dump(exclude={"id"})
    provider.reset()
    assert ask(provider).id == first.id


def test_stream_equals_plain_answer_with_requested_usage(provider):
    rules(provider, "- {answer: 'one two  three\\nfour '}")
    plain = ask(provider)
    events = list(ask(provider, stream=True, stream_options={"include_usage": True}))
    assert "".join(e.choices[0].delta.content or "" for e in events if e.choices) == plain.choices[0].message.content
    assert [e.choices[0].finish_reason for e in events if e.choices][-1] == "stop"
    assert events[-1].choices == []
    assert events[-1].usage == plain.usage
    assert all(e.usage is None for e in events[:-1])
    without = list(ask(provider, stream=True))
    assert all(e.choices and e.usage is None for e in without)


def test_tool_calls_work_plain_and_streamed(provider):
    rules(
        provider,
        """
        - match: {user_regex: 'weather in (?P<city>\\w+) and (\\w+)', tools_offered: [get_weather]}
          answer:
            text: Looking.
            tool_calls:
              - {name: get_weather, arguments: {city: '{match[city]}', days: 3, tags: ['{match[2]}', '{other}']}}
              - {name: get_weather, arguments: {}}
        """,
    )
    question = "weather in Oslo and Rome"
    assert said(provider, question).startswith("(scripted)"), "the tool was not offered"
    plain = ask(provider, question, tools=[WEATHER_TOOL]).choices[0]
    assert plain.finish_reason == "tool_calls"
    assert plain.message.content == "Looking."
    first, second = plain.message.tool_calls
    assert first.function.name == "get_weather"
    assert json.loads(first.function.arguments) == {"city": "Oslo", "days": 3, "tags": ["Rome", "{other}"]}
    assert first.id != second.id

    pieces: dict[int, list[str]] = {}
    names: dict[int, str] = {}
    finish = None
    for event in ask(provider, question, tools=[WEATHER_TOOL], stream=True):
        finish = event.choices[0].finish_reason or finish
        for call in event.choices[0].delta.tool_calls or ():
            if call.id:
                names[call.index] = call.function.name
            if call.function.arguments:
                pieces.setdefault(call.index, []).append(call.function.arguments)
    assert finish == "tool_calls"
    assert names == {0: "get_weather", 1: "get_weather"}
    assert len(pieces[0]) > 2
    assert len(pieces[1]) == 2, "even {} comes in two pieces"
    assert "".join(pieces[0]) == first.function.arguments


def test_text_arguments_are_sent_unchanged(provider):
    rules(provider, "- {answer: {tool_calls: [{name: f, arguments: '{\"a\": '}]}}")
    assert ask(provider).choices[0].message.tool_calls[0].function.arguments == '{"a": '


def test_usage_finish_reason_and_long_text_can_be_set(provider):
    rules(
        provider,
        """
        - match: {user_contains: usage}
          answer: {text: x, finish_reason: content_filter, usage: {prompt_tokens: 900, cached_tokens: 800}}
        - answer: {text: lorem ipsum, repeat_words: 5}
        """,
    )
    answer = ask(provider, "usage")
    assert answer.choices[0].finish_reason == "content_filter"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (900, 1, 901)
    assert answer.usage.prompt_tokens_details.cached_tokens == 800
    assert said(provider) == "lorem ipsum lorem ipsum lorem"


def test_the_output_cap_cuts_the_text(provider):
    rules(provider, "- {answer: {repeat_words: 1000}}")
    answer = ask(provider, max_completion_tokens=10)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 10
    assert len(answer.choices[0].message.content) == 40


def test_a_very_long_stream_arrives_whole_at_a_slow_reader(provider):
    rules(provider, "- {answer: {text: word, repeat_words: 20000}}")
    connection = HTTPConnection(provider.host, provider.port, timeout=20)
    body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}'
    connection.request("POST", "/v1/chat/completions", body)
    time.sleep(0.1)
    assert provider.stats()["in_flight"] == 1, "held back while nobody reads, and serving others meanwhile"
    stream = connection.getresponse().read()
    connection.close()
    assert stream.count(b'"content":"word') == 20_000
    assert stream.endswith(b"data: [DONE]\n\n")
    assert provider.stats()["in_flight"] == 0


async def test_async_client_with_many_calls_at_once(provider):
    rules(provider, "- {match: {user_regex: 'n(\\d+)'}, answer: 'got {match[1]}'}")
    async with openai.AsyncOpenAI(base_url=provider.base_url, api_key="none") as many:

        async def one(number: int) -> str | None:
            messages = [{"role": "user", "content": f"n{number}"}]
            if number % 2:
                return (await many.chat.completions.create(model="m", messages=messages)).choices[0].message.content
            stream = await many.chat.completions.create(model="m", messages=messages, stream=True)
            return "".join([event.choices[0].delta.content or "" async for event in stream])

        assert await asyncio.gather(*map(one, range(40))) == [f"got {number}" for number in range(40)]
    assert provider.stats()["paid_calls"] == 40


def test_models_are_listed_and_found(provider):
    provider.set_rules("models: [a/one]\nrules: [{match: {model: two}, answer: x}, {match: {model: 'g*'}, answer: x}]")
    assert [model.id for model in client(provider).models.list()] == ["a/one", "two"]
    assert client(provider).models.retrieve("two").owned_by == "scripted"
    with pytest.raises(openai.NotFoundError):
        client(provider).models.retrieve("three")


# ── which rule ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("match", "fits", "fits_not"),
    [
        ("{model: m}", {}, {"model": "m2"}),
        ("{model: 'gpt-*'}", {"model": "gpt-5"}, {"model": "xgpt-5"}),
        ("{user_contains: ell}", {}, {"text": "Hallo"}),
        ("{user_regex: '^h.*o$'}", {}, {"text": "hello!"}),
        (
            "{system_contains: terse}",
            {"messages": [{"role": "developer", "content": "be terse"}, {"role": "user", "content": "x"}]},
            {"messages": [{"role": "system", "content": "be long"}, {"role": "user", "content": "terse"}]},
        ),
        (
            "{tool_result: true}",
            {"messages": [{"role": "user", "content": "x"}, {"role": "tool", "content": "42", "tool_call_id": "c"}]},
            {"messages": [{"role": "tool", "content": "42", "tool_call_id": "c"}, {"role": "user", "content": "x"}]},
        ),
        ("{tools_offered: [get_weather]}", {"tools": [WEATHER_TOOL]}, {}),
        ("{headers: {X-Test: a}}", {"extra_headers": {"x-test": "a"}}, {"extra_headers": {"x-test": "b"}}),
        ("{user_contains: b, model: m}", {"text": "b"}, {"text": "b", "model": "n"}),
    ],
)
def test_rule_matches_its_conditions_only(provider, match, fits, fits_not):
    rules(provider, f"- {{match: {match}, answer: fitted}}")
    assert said(provider, **fits) == "fitted"
    assert said(provider, **fits_not).startswith("(scripted)")


def test_text_parts_count_as_text_and_the_tool_result_can_be_quoted(provider):
    rules(provider, "- {match: {tool_result: true}, answer: '{model} saw {tool_result} for {last_user}'}")
    parts = [{"type": "text", "text": "two"}, {"type": "text", "text": "parts"}]
    messages = [{"role": "user", "content": parts}, {"role": "tool", "content": "42", "tool_call_id": "c"}]
    assert said(provider, messages=messages) == "m saw 42 for two\nparts"


def test_first_unused_rule_wins(provider):
    rules(
        provider,
        """
        - {match: {times: 2}, answer: 'a{count}'}
        - {match: {after: 1}, answer: late}
        - {answer: rest}
        """,
    )
    assert [said(provider) for _ in range(5)] == ["a1", "a2", "rest", "late", "late"]
    provider.reset()
    assert said(provider) == "a1", "reset puts rules back to their start"


def test_between_requests_counts_matching_requests(provider):
    rules(provider, "- {match: {model: bad, between_requests: [2, 3]}, answer: hit}\n- {answer: '-'}")
    heard = [said(provider, model=model) for model in ("bad", "good", "bad", "good", "bad", "bad")]
    assert heard == ["-", "-", "hit", "-", "hit", "-"]


def test_a_model_fails_for_a_while(provider):
    rules(provider, "- {match: {fail_for_ms: 300}, fault: {status: 503}}")
    with pytest.raises(openai.InternalServerError):
        ask(provider)

    def well_again() -> bool:
        try:
            return said(provider).startswith("(scripted)")
        except openai.InternalServerError:
            return False

    wait_until(well_again)


def test_prepended_rules_come_first(provider):
    rules(provider, "- {match: {times: 1}, answer: old once}\n- {answer: old}")
    assert said(provider) == "old once"
    rules(provider, "- {match: {times: 1}, answer: new}", prepend=True)
    assert [said(provider), said(provider)] == ["new", "old"]
    assert [rule["taken"] for rule in provider.stats()["rules"]] == [1, 1, 1]


# ── faults, and what they cost ───────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "error", "kind", "code"),
    [
        (401, openai.AuthenticationError, "invalid_request_error", "invalid_api_key"),
        (404, openai.NotFoundError, "invalid_request_error", "model_not_found"),
        (429, openai.RateLimitError, "requests", "rate_limit_exceeded"),
        (500, openai.InternalServerError, "server_error", None),
        (529, openai.InternalServerError, "server_error", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_injected_errors_have_the_wire_shape_and_cost_nothing(provider, status, error, kind, code, stream):
    rules(provider, f"- {{fault: {{status: {status}, message: no luck, retry_after_ms: 1500}}}}")
    with pytest.raises(error) as caught:
        ask(provider, stream=stream)
    assert caught.value.status_code == status
    assert caught.value.body == {"message": "no luck", "type": kind, "param": None, "code": code}
    assert caught.value.response.headers["retry-after"] == "2"
    assert caught.value.response.headers["retry-after-ms"] == "1500"
    stats = provider.stats()
    assert (stats["paid_calls"], stats["requests"], stats["errors_by_status"]) == (0, 1, {str(status): 1})
    assert provider.calls() == []


def test_quota_error_has_its_code(provider):
    rules(provider, "- {fault: {status: 429, code: insufficient_quota}}")
    with pytest.raises(openai.RateLimitError) as caught:
        ask(provider)
    assert (caught.value.type, caught.value.code) == ("insufficient_quota", "insufficient_quota")


def test_official_client_succeeds_by_its_own_retries(provider):
    rules(provider, "- {match: {times: 2}, fault: {status: 429, retry_after_ms: 1}}")
    answer = client(provider, retries=2).chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert answer.choices
    assert provider.stats()["requests"] == 3
    assert provider.stats()["paid_calls"] == 1


@pytest.mark.parametrize("reset", ["false", "true"])
def test_cut_stream_breaks_and_is_paid(provider, reset):
    rules(provider, f"- {{answer: one two three four, fault: {{cut_after_chunks: 3, reset: {reset}}}}}")
    seen = []
    events = ask(provider, stream=True)
    with pytest.raises((openai.APIConnectionError, httpx2.TransportError)):
        seen.extend(event.choices[0].delta.content for event in events)
    assert seen == ["", "one ", "two "]
    stats = provider.stats()
    assert (stats["paid_calls"], stats["in_flight"]) == (1, 0)


@pytest.mark.parametrize("chunks", [0, 1])
def test_a_cut_plain_answer_is_paid_too(provider, chunks):
    rules(provider, f"- {{fault: {{cut_after_chunks: {chunks}}}}}")
    with pytest.raises(openai.APIConnectionError):
        ask(provider)
    assert provider.stats()["paid_calls"] == 1


def test_a_reset_before_any_answer_is_a_tcp_reset_and_free(provider):
    rules(provider, "- {fault: {reset: true}}")
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
    with socket.create_connection((provider.host, provider.port), timeout=20) as sock:
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert provider.stats()["paid_calls"] == 0


@pytest.mark.parametrize("fault", ["stall: true", "delay_ms: 600000"])
@pytest.mark.parametrize("stream", [False, True])
def test_client_leaving_a_silent_provider_pays(provider, fault, stream):
    rules(provider, f"- {{fault: {{{fault}}}}}")
    body = json.dumps({"model": "m", "stream": stream, "messages": [{"role": "user", "content": "x"}]}).encode()
    with socket.create_connection((provider.host, provider.port), timeout=20) as sock:
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        wait_until(lambda: provider.stats()["in_flight"] == 1)
        assert provider.stats()["paid_calls"] == 1
    wait_until(lambda: provider.stats()["in_flight"] == 0)
    assert provider.stats()["paid_calls"] == 1


def test_client_leaving_a_stream_pays(provider):
    rules(provider, "- {answer: {repeat_words: 1000}, fault: {chunk_delay_ms: 20}}")
    stream = ask(provider, stream=True)
    next(iter(stream))
    stream.close()
    wait_until(lambda: provider.stats()["in_flight"] == 0)
    assert provider.stats()["paid_calls"] == 1


def test_broken_json_is_broken_in_both_forms(provider):
    rules(provider, "- {answer: one two, fault: {broken_json: true}}")
    connection = HTTPConnection(provider.host, provider.port, timeout=20)
    connection.request("POST", "/v1/chat/completions", b'{"model":"m","messages":[{"role":"user","content":"x"}]}')
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)
    with pytest.raises(json.JSONDecodeError):
        list(ask(provider, stream=True))


def test_slow_stream_waits_between_chunks(provider):
    rules(provider, "- {answer: a b c, fault: {chunk_delay_ms: 30}}")
    stream = ask(provider, stream=True)
    next(iter(stream))
    assert provider.stats()["in_flight"] == 1, "the first piece came while the rest was still to come"
    assert "".join(event.choices[0].delta.content or "" for event in stream) == "a b c"


# ── counting ─────────────────────────────────────────────────────────────────


def test_repeated_payment_differs_from_two_calls(provider):
    for model, text in (("m", "same"), ("m", "same"), ("n", "same"), ("m", "other")):
        ask(provider, text, model=model)
    paid = [(call["model"], call["last_user"], call["paid"]) for call in provider.calls()]
    assert paid == [("m", "same", 2), ("n", "same", 1), ("m", "other", 1)]
    assert provider.stats()["paid_calls_by_model"] == {"m": 3, "n": 1}


def test_fingerprints_depend_on_content_only(provider):
    raw(provider, b'{"model":"m","messages":[{"role":"user","content":"x"}]}')
    raw(provider, b'{ "temperature": 1, "messages":[{"content": "\\u0078", "role":"user"}], "model":"m"}')
    raw(provider, b'{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":"x"}]}')
    assert [call["paid"] for call in provider.calls()] == [2, 1]


def test_invalid_requests_are_rejected_free(provider):
    not_utf8 = b'{"model":"m","messages":[{"content":"\xff"}]}'
    deep = b'{"model":"m","messages":[{"content":%s}]}' % (b"[" * 100_000 + b"]" * 100_000)
    for body in (
        not_utf8,
        deep,
        b"[]",
        b'{"model":"m"}',
        b'{"model":"m","messages":[]}',
        b'{"model":1,"messages":[{}]}',
    ):
        status, answer = raw(provider, body)
        assert status == 400
        assert answer["error"]["type"] == "invalid_request_error"
    assert provider.stats()["errors_by_status"] == {"400": 6}
    assert provider.stats()["paid_calls"] == 0
    assert raw(provider, b"", "/v1/nothing")[0] == 404
    assert raw(provider, b"", method="GET")[0] == 405


def test_paid_calls_survive_a_kill(tmp_path: Path):
    counts = tmp_path / "paid.jsonl"
    with spawn_scripted_provider(
        "rules: [{match: {user_contains: stall}, fault: {stall: true}}]", count_file=counts
    ) as p:
        first = ask(p, "kept")
        with pytest.raises(openai.APITimeoutError):
            client(p).chat.completions.create(model="m", messages=[{"role": "user", "content": "stall"}], timeout=0.3)
        p.kill()
    assert [json.loads(line)["last_user"] for line in counts.read_text().splitlines()] == ["kept", "stall"]
    with spawn_scripted_provider(count_file=counts) as p:
        assert p.stats()["paid_calls"] == 2
        assert ask(p, "kept").id != first.id
        assert [call["paid"] for call in p.calls()] == [2, 1]
        p.reset()
        assert counts.read_text() == ""


# ── HTTP ─────────────────────────────────────────────────────────────────────


def test_pipelined_requests_are_answered_in_order_on_one_connection(provider):
    rules(provider, "- {match: {user_contains: slow}, answer: slow, fault: {delay_ms: 50}}\n- {answer: '{last_user}'}")
    words = ["slow", *(f"w{number}" for number in range(50))]
    with socket.create_connection((provider.host, provider.port), timeout=20) as sock:
        for word in words:
            body = b'{"model":"m","messages":[{"role":"user","content":"%s"}]}' % word.encode()
            last = b"connection: close\r\n" if word == words[-1] else b""
            sock.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n%scontent-length: %d\r\n\r\n%s"
                % (last, len(body), body)
            )
        heard = b"".join(iter(lambda: sock.recv(65_536), b""))
    contents = [part.split(b'"', 1)[0].decode() for part in heard.split(b'"content":"')[1:]]
    assert contents == words


def test_pipelined_request_does_not_wake_a_stalled_one(provider):
    rules(provider, "- {fault: {stall: true}}")
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    with socket.create_connection((provider.host, provider.port), timeout=20) as sock:
        sock.sendall(request)
        wait_until(lambda: provider.stats()["in_flight"] == 1)
        sock.sendall(request)
        for _ in range(5):
            assert provider.stats()["requests"] == 1
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"what is this\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx-long: " + b"x" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", b"431"),
    ],
)
def test_oversized_requests_are_rejected(provider, sent, status):
    with socket.create_connection((provider.host, provider.port), timeout=20) as sock:
        sock.sendall(sent)
        assert sock.recv(65_536).split(b" ")[1] == status
    assert provider.stats()["requests"] == 0


# ── rules files ──────────────────────────────────────────────────────────────


def test_all_problems_of_a_rules_file_are_reported(provider, tmp_path: Path):
    rules(provider, "- {answer: kept}")
    file = tmp_path / "bad.yaml"
    file.write_text(
        textwrap.dedent(
            """\
            rulez: []
            rules:
              - match:
                  user_contain: x
                  user_regex: '('
                  times: 0
                answer: fine
              - match: {between_requests: [3, 2]}
                fault: {status: 200}
              - match: {model: m}
              - fault: {status: 429, stall: true}
              - fault:
                  retry_after_ms: 5
              - answer:
                  text: '{match[2]}'
                  tool_calls: [{nam: x}]
                  usage: {prompt_tokens: 1, cached_tokens: 2}
              - match: {times: 1, times: 2}
                answer: 5
            """
        )
    )
    with pytest.raises(ScriptedProviderError) as caught:
        provider.set_rules(file)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{file}:") for line in lines)
    told = [line.removeprefix(f"{file}:") for line in lines]
    expected = [
        (1, "unknown key `rulez`; did you mean `rules`?"),
        (4, "unknown key `user_contain`; did you mean `user_contains`?"),
        (5, "`user_regex` is not a regular expression"),
        (6, "`times` must be a whole number from 1"),
        (8, "`between_requests` must be [first, last]"),
        (9, "`status` must be a whole number from 400 to 599, not 200"),
        (10, "has no effect; give it `answer` or `fault`"),
        (11, "`stall` cannot be combined with it"),
        (13, "`retry_after_ms` belongs to an error answer; add `status`"),
        (15, "`{match[2]}` refers to a missing group"),
        (16, "unknown key `nam`; did you mean `name`?"),
        (16, "has no `name`"),
        (17, "`cached_tokens` is a part of `prompt_tokens`"),
        (18, "`times` appears twice"),
        (19, "must be a mapping with some of: tool_calls, usage, text"),
    ]
    for line, words in expected:
        assert any(one.startswith(f"{line}: ") and words in one for one in told), (line, words, told)
    assert len(told) == len(expected), told
    assert said(provider) == "kept", "refused rules leave the old ones in place"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rules: [", "rules:1: is not YAML"),
        ("a: &a [*a]", "levels"),
        ("- x", "rules:1: must be a mapping with some of: rules, models"),
        ("rules: {}", "rules: must be a list"),
        ("rules: [{answer: hi\nmodels: x", "rules:2: is not YAML"),
        ("a: &a [x, x, x, x, x, x, x, x, x, x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
         "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
         "e: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]", "more than 50000 values"),
    ],
)  # fmt: skip
def test_invalid_rules_file_is_rejected(provider, text, told):
    with pytest.raises(ScriptedProviderError) as caught:
        provider.set_rules(text)
    assert told in str(caught.value)


# ── the process ──────────────────────────────────────────────────────────────


async def test_async_handle_starts_queries_and_stops(tmp_path: Path):
    file = tmp_path / "rules.yaml"
    file.write_text("rules: [{answer: from file}]")
    async with start_scripted_provider(file) as provider:
        async with openai.AsyncOpenAI(base_url=provider.base_url, api_key="none") as one:
            answer = await one.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        assert answer.choices[0].message.content == "from file"
        assert (await provider.stats())["paid_calls"] == 1
        assert len(await provider.calls()) == 1
        await provider.set_rules("rules: []")
        await provider.reset()
        assert (await provider.stats())["paid_calls"] == 0
    assert provider.process.returncode == 0


def test_invalid_rules_fail_the_start_without_a_process(tmp_path: Path):
    before = {child.pid for child in psutil.Process().children()}
    with (
        pytest.raises(ScriptedProviderError, match=r"rules:1: .*did you mean `rules`"),
        spawn_scripted_provider("rule: []"),
    ):
        pass
    assert {child.pid for child in psutil.Process().children()} == before


async def test_cancelled_start_leaves_no_process():
    before = {child.pid for child in psutil.Process().children()}

    async def start() -> None:
        async with start_scripted_provider():
            await asyncio.sleep(60)

    task = asyncio.create_task(start())
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert {child.pid for child in psutil.Process().children()} == before


def test_the_provider_dies_with_a_killed_parent():
    code = (
        "import time\nfrom overnight.testing import spawn_scripted_provider\n"
        "with spawn_scripted_provider() as p:\n    print(p.process.pid, flush=True)\n    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_the_command_serves_a_rules_file_and_ends_on_sigterm(tmp_path: Path):
    file = tmp_path / "rules.yaml"
    file.write_text("rules: [{answer: by command}]")
    command = [sys.executable, "-m", "overnight.testing.scripted_provider", "--port", "0", "--rules"]
    # stdin is closed from the start: without --until-stdin-closes that must not matter.
    process = subprocess.Popen([*command, str(file)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    ready = json.loads(process.stdout.readline())
    assert ready["event"] == "ready"
    one = openai.OpenAI(base_url=ready["base_url"], api_key="none")
    answer = one.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert answer.choices[0].message.content == "by command"
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(20) == 0
    process.stdout.close()

    file.write_text("rules: [{answr: x}]")
    failed = subprocess.run([*command, str(file)], capture_output=True, text=True, timeout=20, check=False)
    assert failed.returncode == 2
    assert f"{file}:1: rule 1: unknown key `answr`; did you mean `answer`?" in failed.stderr


def test_importing_testing_loads_no_client_or_yaml():
    code = "import sys, overnight.testing; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"openai", "httptools", "uvloop", "ruamel", "pydantic", "http"} & set(
        json.loads(loaded.replace("'", '"'))
    )
