"""LiteLLM as a library: chat completions and Anthropic messages, plain and streamed; the loop over tool calls is ours."""

import json
import os
import sys
from typing import Any

import litellm

from client_report import HEADERS, report, weather_of

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": PARAMETERS}}


def main(form: str, streamed: bool) -> None:
    base, model = os.environ["GATEWAY"], "anthropic/claude-opus-4.6"
    if form == "chat":
        base, model = base + "/v1", "openai/gpt-5.4-mini"
    messages: list[Any] = [{"role": "user", "content": "How is the weather in Berlin?"}]
    pieces = 0
    while True:
        answer: Any = litellm.completion(
            model=model,
            api_base=base,
            api_key="unused",
            messages=messages,
            tools=[TOOL],
            stream=streamed,
            extra_headers=HEADERS,
        )
        if streamed:
            chunks = list(answer)
            pieces += len(chunks)
            answer = litellm.stream_chunk_builder(chunks, messages=messages)
        message = answer.choices[0].message
        if not message.tool_calls:
            break
        messages.append(message.model_dump())
        for call in message.tool_calls:
            content = weather_of(json.loads(call.function.arguments)["city"])
            messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
    report(message.content, pieces)


main(sys.argv[1], sys.argv[2] == "streamed")
