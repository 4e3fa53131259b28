"""Claude Agent SDK with its bundled command-line program: Anthropic messages, streamed, a tool over MCP in this process."""

import asyncio
import os

from claude_agent_sdk import AssistantMessage, ClaudeAgentOptions, TextBlock, create_sdk_mcp_server, query, tool

from client_report import HEADERS, report, weather_of


@tool("weather", "The weather in a city.", {"city": str})
async def weather(args: dict[str, str]) -> dict[str, object]:
    return {"content": [{"type": "text", "text": weather_of(args["city"])}]}


async def main() -> None:
    options = ClaudeAgentOptions(
        model="claude-opus-4.6",
        system_prompt="Use the tool.",
        mcp_servers={"home": create_sdk_mcp_server("home", tools=[weather])},
        allowed_tools=["mcp__home__weather"],
        max_turns=4,
        setting_sources=[],
        env={
            "ANTHROPIC_BASE_URL": os.environ["GATEWAY"],
            "ANTHROPIC_API_KEY": "unused",
            "ANTHROPIC_CUSTOM_HEADERS": "\n".join(f"{name}: {value}" for name, value in HEADERS.items()),
            "ENABLE_TOOL_SEARCH": "false",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_TELEMETRY": "1",
            "HOME": os.environ["FRESH_HOME"],
            "IS_SANDBOX": "1",
        },
    )
    text = ""
    async for message in query(prompt="How is the weather in Berlin?", options=options):
        if isinstance(message, AssistantMessage):
            text += "".join(block.text for block in message.content if isinstance(block, TextBlock))
    report(text, 1)


asyncio.run(main())
