"""OpenAI Agents SDK: a tool that does an effect over HTTP. Exit code 75: a person has to decide."""

import asyncio
import os
import sys

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    RunConfig,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

from effects_client import EffectsClient, WaitsForPerson, perform
from vendor_client import VendorClient

set_tracing_disabled(True)
JOB = os.environ["JOB"]


def _raise(_context: object, error: Exception) -> str:
    """The run ends: the model would take an unknown outcome for a failure."""
    raise error


@function_tool(failure_error_function=_raise)
def refund(order: str) -> str:
    """Refund an order."""
    gateway = os.environ["GATEWAY"].removeprefix("http://")
    return f"{order} {perform(EffectsClient([gateway], JOB), VendorClient(os.environ['VENDOR']), 'truthful', order)}"


async def main() -> None:
    client = AsyncOpenAI(base_url=os.environ["GATEWAY"] + "/v1", api_key="unused")
    model = OpenAIChatCompletionsModel(model="gpt-5.4-mini", openai_client=client)
    agent = Agent("refunds", instructions="Use the tool.", tools=[refund], model=model)
    config = RunConfig(model_settings=ModelSettings(extra_headers={"x-job-id": JOB}))
    print((await Runner.run(agent, "Refund order-7.", run_config=config)).final_output)


try:
    asyncio.run(main())
except WaitsForPerson:
    sys.exit(75)
except Exception as error:
    if "WaitsForPerson" not in repr(error) + repr(error.__cause__):
        raise
    sys.exit(75)
