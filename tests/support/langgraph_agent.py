"""A LangGraph agent as a user would write it: real LangGraph, its model behind the gateway, its tool an effect.

    python langgraph_agent.py RECORD [--stream]

RECORD is the outside world: the effect appends a line to it, and the status check looks into it. With VENDOR in the environment,
the effect is done at that vendor instead.
"""

import asyncio
import os
import sys
from pathlib import Path

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import create_react_agent

import overnight
from vendor_client import VendorClient

record = Path(sys.argv[1])


@overnight.effect
def deliver(to: str, text: str, idempotency_key: str) -> str:
    if vendor := os.environ.get("VENDOR"):
        provider_id = VendorClient(vendor).do("truthful", to, text, idempotency_key)
        return overnight.Done(provider_id, f"delivered to {to}")  # type: ignore[return-value]
    with record.open("a") as world:
        world.write(f"{idempotency_key} {to}\n")
    return f"delivered to {to}"


@deliver.status_check
def find(to: str, text: str, idempotency_key: str) -> object:
    if vendor := os.environ.get("VENDOR"):
        _, provider_id = VendorClient(vendor).status("truthful", idempotency_key)
        return overnight.Done(provider_id, f"delivered to {to}") if provider_id else overnight.NOT_DONE
    done = record.exists() and idempotency_key in record.read_text()
    return overnight.Done(None, f"delivered to {to}") if done else overnight.NOT_DONE


@tool
async def send_report(to: str, text: str) -> str:
    """Send a report to somebody."""
    return await deliver(to, text)


async def main() -> None:
    with overnight.attach("nightly-reports", name="reports") as job:
        model = ChatOpenAI(
            model="gpt-5.4-mini",
            base_url=job.base_url,
            api_key="none",
            default_headers=job.headers,
            streaming="--stream" in sys.argv,
            max_retries=0,
        )
        agent = create_react_agent(model, [send_report])
        answer = await agent.ainvoke({"messages": [("user", "send the reports to ann, bob and cy")]})
        print(f"attempt {job.attempt}: {answer['messages'][-1].content}")


asyncio.run(main())
