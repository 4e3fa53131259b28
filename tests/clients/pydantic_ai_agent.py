"""Pydantic AI: chat completions, Responses and Anthropic messages, plain and streamed."""

import asyncio
import os
import sys

from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from client_report import HEADERS, report, weather_of


def model(form: str) -> object:
    url = os.environ["GATEWAY"]
    if form == "messages":
        client = AsyncAnthropic(base_url=url, api_key="unused")
        return AnthropicModel("claude-opus-4.6", provider=AnthropicProvider(anthropic_client=client))
    provider = OpenAIProvider(openai_client=AsyncOpenAI(base_url=url + "/v1", api_key="unused"))
    kind = OpenAIResponsesModel if form == "responses" else OpenAIChatModel
    return kind("gpt-5.4-mini", provider=provider)


async def main(form: str, streamed: bool) -> None:
    agent = Agent(model(form), instructions="Use the tool.")

    @agent.tool_plain
    def weather(city: str) -> str:
        """The weather in a city."""
        return weather_of(city)

    settings = {"extra_headers": HEADERS}
    if not streamed:
        report((await agent.run("How is the weather in Berlin?", model_settings=settings)).output, 0)
        return
    pieces = 0
    async with agent.run_stream("How is the weather in Berlin?", model_settings=settings) as result:
        text = ""
        async for part in result.stream_text(delta=True):
            text += part
            pieces += 1
    report(text, pieces)


asyncio.run(main(sys.argv[1], sys.argv[2] == "streamed"))
