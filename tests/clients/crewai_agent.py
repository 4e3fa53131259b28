"""CrewAI: chat completions."""

import os
import sys

os.environ |= {"CREWAI_DISABLE_TELEMETRY": "true", "OTEL_SDK_DISABLED": "true", "CREWAI_TRACING_ENABLED": "false"}

from crewai import LLM, Agent, Crew, Task
from crewai.events import LLMStreamChunkEvent, crewai_event_bus
from crewai.tools import tool

from client_report import HEADERS, report, weather_of

pieces: list[str] = []


@crewai_event_bus.on(LLMStreamChunkEvent)
def piece(_source: object, event: LLMStreamChunkEvent) -> None:
    pieces.append(event.chunk)


@tool("weather")
def weather(city: str) -> str:
    """The weather in a city."""
    return weather_of(city)


llm = LLM(
    model="openai/gpt-5.4-mini",
    base_url=os.environ["GATEWAY"] + "/v1",
    api_key="unused",
    stream=sys.argv[2] == "streamed",
    extra_headers=HEADERS,
)
agent = Agent(role="weather", goal="tell the weather", backstory="You use the tool.", tools=[weather], llm=llm)
task = Task(description="How is the weather in Berlin?", expected_output="one sentence", agent=agent)
answer = str(Crew(agents=[agent], tasks=[task], verbose=False).kickoff())
report(answer, len(pieces))
