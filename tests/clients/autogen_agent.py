"""AutoGen: chat completions, plain and streamed; headers are set on the client."""

import asyncio
import os
import sys

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.messages import ModelClientStreamingChunkEvent
from autogen_ext.models.openai import OpenAIChatCompletionClient

from client_report import HEADERS, report, weather_of


async def weather(city: str) -> str:
    """The weather in a city."""
    return weather_of(city)


async def main(streamed: bool) -> None:
    client = OpenAIChatCompletionClient(
        model="gpt-5.4-mini",
        base_url=os.environ["GATEWAY"] + "/v1",
        api_key="unused",
        default_headers=HEADERS,
        model_info={
            "vision": False,
            "function_calling": True,
            "json_output": True,
            "structured_output": True,
            "family": "unknown",
        },
    )
    agent = AssistantAgent("weather", client, tools=[weather], reflect_on_tool_use=True, model_client_stream=streamed)
    pieces, text = 0, ""
    async for message in agent.run_stream(task="How is the weather in Berlin?"):
        pieces += isinstance(message, ModelClientStreamingChunkEvent)
        text = getattr(getattr(message, "messages", [None])[-1], "content", text) or text
    await client.close()
    report(str(text), pieces)


asyncio.run(main(sys.argv[2] == "streamed"))
