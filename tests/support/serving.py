"""A served gateway for tests: in this process, or as processes of the command line."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import openai

from overnight.api import Server, application
from overnight.brain import Brain
from overnight.domain import Attribution, NotFound
from overnight.gateway import Gateway, PriceBook
from overnight.ledger import Ledger
from overnight.store import Store
from overnight.testing import SpawnedProvider

ROUTING = """
default_model: gpt-5.4-mini
routes:
  heartbeat_check: gpt-5.4-mini
  deep_thought: claude-opus-4.6
fallbacks: [{from: claude-opus-4.6, to: gpt-5.4}]
retries: {max_attempts: 2, backoff_ms: 1}
"""
APPLICATION_OPTIONS = ("hosts", "auth", "public_url", "outgoing", "tool_policy", "access_log")


def routed(more: str = "") -> str:
    """The usual routing with more sections."""
    return ROUTING + more


def deadlines(queue_ms: int, total_ms: int | None = None) -> str:
    """The section that bounds how long a call waits for our own limits, and how long its provider may take."""
    total_ms = queue_ms if total_ms is None else total_ms
    return f"deadlines: {{queue_ms: {queue_ms}, total_ms: {total_ms}}}"


@cache
def brain_of(routing: str) -> Brain:
    """The folder with this routing.yaml; it is read once."""
    return Brain.from_files({"routing.yaml": routing.encode()})


class Served:
    """A running gateway and what tests ask of it."""

    def __init__(self, url: str, store: Store, gateway: Gateway, provider: SpawnedProvider) -> None:
        self.url, self.store, self.gateway, self.provider = url, store, gateway, provider
        self.ledger = Ledger(store)
        self.http = httpx2.AsyncClient(base_url=url, timeout=30)
        self.openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)

    async def ask(
        self, text: str = "hello", model: str = "auto", headers: dict[str, str] | None = None, **more: Any
    ) -> Any:
        """One plain call by raw HTTP; the response."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
        return await self.http.post("/v1/chat/completions", json=body, headers=headers)

    async def story(self, job: str, tenant: str = "default") -> list[str]:
        """The names of the job's events."""
        return [event.facts.event for event in await self.events(job, tenant)]

    async def events(self, job: str, tenant: str = "default") -> list[Any]:
        return await self.ledger.events((await self.ledger.job(job, tenant)).job_id)

    async def until(self, job: str, event: str, count: int = 1) -> list[Any]:
        """The job's events once `event` is among them."""
        async with asyncio.timeout(20):
            while True:
                with suppress(NotFound):  # the job is created by its first call
                    found = await self.events(job)
                    if sum(each.facts.event == event for each in found) >= count:
                        return found
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(
    store: Store, provider: SpawnedProvider, routing: str = ROUTING, **options: Any
) -> AsyncIterator[Served]:
    """A gateway in this event loop, in front of the scripted provider."""
    brain = brain_of(routing)
    outside = {name: options.pop(name) for name in APPLICATION_OPTIONS if name in options}
    environment = options.get("environment", {})
    offline = None if environment else provider.base_url  # with keys, the real path is under test
    options = {"offline_base_url": offline, "environment": environment, **options}
    gateway = Gateway(store, brain.routing, PriceBook(brain.routing.prices), brain_version=brain.version, **options)
    await gateway.start()
    server = Server(application(gateway, Ledger(store), **outside))
    _, port = await server.start("127.0.0.1", 0)
    served = Served(f"http://127.0.0.1:{port}", store, gateway, provider)
    try:
        yield served
    finally:
        await served.http.aclose()
        await served.openai.close()
        await server.stop(0)
        await gateway.close()


class GatewayProcess:
    """`overnight gateway` as a process."""

    def __init__(self, process: subprocess.Popen[str], ready: dict[str, Any]) -> None:
        self.process = process
        self.owner: str = ready["owner"]
        self.url = f"http://127.0.0.1:{ready['port']}"


@contextmanager
def gateway_process(
    store_url: str, provider: SpawnedProvider, folder: Path, routing: str = ROUTING, crash_at: str = ""
) -> Iterator[GatewayProcess]:
    brain = folder / "brain"
    brain.mkdir(parents=True, exist_ok=True)
    (brain / "routing.yaml").write_text(routing)
    env = {key: value for key, value in os.environ.items() if not key.endswith("_API_KEY")}
    env |= {"OVERNIGHT_HOME": str(folder), "OVERNIGHT_BRAIN": str(brain), "DATABASE_URL": store_url}
    env |= {"OVERNIGHT_CRASH_AT": crash_at}
    command = [sys.executable, "-m", "overnight", "gateway", "--port", "0", "--offline-base-url", provider.base_url]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, cwd=folder)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the gateway process did not start"
        yield GatewayProcess(process, json.loads(line))
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def who(**fields: Any) -> Attribution:
    return Attribution(**fields)


def in_line(served: Served) -> int:
    """How many calls wait."""
    return served.gateway.queue.waiting
