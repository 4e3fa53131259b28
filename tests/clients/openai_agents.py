"""OpenAI Agents SDK: Responses and chat completions, plain and streamed."""

import asyncio
import os
import sys

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

from client_report import HEADERS, report, weather_of

set_tracing_disabled(True)


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return weather_of(city)


async def main(form: str, streamed: bool) -> None:
    client = AsyncOpenAI(base_url=os.environ["GATEWAY"] + "/v1", api_key="unused")
    kind = OpenAIResponsesModel if form == "responses" else OpenAIChatCompletionsModel
    agent = Agent(
        "weather", instructions="Use the tool.", tools=[weather], model=kind(model="gpt-5.4-mini", openai_client=client)
    )
    config = RunConfig(model_settings=ModelSettings(extra_headers=HEADERS))
    pieces = 0
    if streamed:
        result = Runner.run_streamed(agent, "How is the weather in Berlin?", run_config=config)
        async for event in result.stream_events():
            pieces += event.type == "raw_response_event"
    else:
        result = await Runner.run(agent, "How is the weather in Berlin?", run_config=config)
    report(str(result.final_output), pieces)


asyncio.run(main(sys.argv[1], sys.argv[2] == "streamed"))
