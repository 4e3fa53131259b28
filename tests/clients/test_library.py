"""Providers behind a library: a gateway with the optional extra calls two of them."""

import asyncio
import json
import os
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from overnight.testing import spawn_scripted_provider

from .environments import python

RULES = """
rules:
  - match: {user_contains: refuse}
    fault: {status: 400, code: invalid_request_error, message: no such thing}
  - match: {user_contains: tool, tool_result: false}
    answer: {tool_calls: [{name: look, arguments: {where: here}}]}
  - answer: {text: 'it was asked: {last_user}', usage: {prompt_tokens: 40, completion_tokens: 7}}
"""
TOOL: Any = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"where": {"type": "string"}}}},
}
MODELS = ["lib/openai/gpt-5.4-mini", "libanth/anthropic/claude-opus-4-6"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as home, spawn_scripted_provider(RULES) as provider:
        brain = Path(home) / "brain"
        brain.mkdir()
        of_model = "{input_usd_per_mtok: 1.00, output_usd_per_mtok: 4.00}"
        (brain / "routing.yaml").write_text(
            f"""
default_model: lib/openai/gpt-5.4-mini
providers:
  library: {{kind: library, base_url: "{provider.base_url}", models: ["lib/*"], model_prefix: lib/, api_key_env: LIB_KEY}}
  anthropic-library: {{kind: library, base_url: "{provider.base_url.removesuffix("/v1")}", models: ["libanth/*"],
    model_prefix: libanth/, api_key_env: LIB_KEY}}
prices: {{{", ".join(f'"{model}": {of_model}' for model in MODELS)}}}
"""
        )
        env = {key: value for key, value in os.environ.items() if not key.endswith(("_API_KEY", "_BASE_URL"))}
        env |= {"OVERNIGHT_HOME": home, "OVERNIGHT_BRAIN": str(brain), "LIB_KEY": "sk-test-0123456789"}
        command = [python("providers_library"), "-m", "overnight", "gateway", "--port", "0"]
        process = subprocess.Popen(command, env=env, cwd=home, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
        finally:
            process.terminate()
            process.wait(30)


def events_of(url: str, job_id: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{url}/api/v1/jobs/{job_id}/events") as answer:
        return json.loads(answer.read())["events"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", MODELS)
def test_library_call_is_metered(url: str, model: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=60)
    raw = client.chat.completions.with_raw_response.create(model=model, messages=[{"role": "user", "content": "hello"}])
    assert raw.parse().choices[0].message.content == "it was asked: hello"
    (done,) = [each for each in events_of(url, raw.headers["x-job-id"]) if each["event"] == "model_succeeded"]
    assert (done["input_tokens"], done["output_tokens"]) == (40, 7)
    assert done["cost_usd_est"] == pytest.approx(40e-6 + 28e-6)

    tools = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "a tool"}], tools=[TOOL])
    (call,) = tools.choices[0].message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"where": "here"})


@pytest.mark.timeout(300)
@pytest.mark.parametrize("model", MODELS)
def test_library_streams_and_errors_have_client_format(url: str, model: str) -> None:
    async def main() -> tuple[str, Any]:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=60)
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "hello"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        text, usage = "", None
        async for piece in stream:
            text += (piece.choices[0].delta.content or "") if piece.choices else ""
            usage = piece.usage or usage
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=model, messages=[{"role": "user", "content": "refuse"}])
        assert "sk-test" not in str(refused.value)
        return text, usage

    text, usage = asyncio.run(main())
    assert text == "it was asked: hello"
    assert usage.model_extra["cost_usd"] > 0
