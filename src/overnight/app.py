"""Wiring: creates and connects the packages of one process."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from overnight.domain import FINISHED, BadInput, Recorded, new_id
from overnight.process_environment import has_provider_key, load_settings_brain, masters_of, outgoing_policy, secrets_of
from overnight.settings import Settings

if TYPE_CHECKING:
    from overnight.api import RestProcess
    from overnight.brain import Brain
    from overnight.budgets import Policy
    from overnight.gateway import Gateway
    from overnight.jobs import Worker
    from overnight.keys import Keyring
    from overnight.ledger import JobRow, ReloadRequest
    from overnight.reviews import ReviewRow
    from overnight.store import Store
    from overnight.tools import ToolPolicy

T = TypeVar("T")
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8700


class Operating:
    """Operations of the command line on jobs, in one process."""

    def __init__(self, app: "App") -> None:
        from overnight.jobs import Operations

        self._app = app
        self._jobs = Operations(app.store)

    async def run(
        self,
        reference: str,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        external_id: str | None = None,
        tenant_id: str | None = None,
    ) -> "JobRow":
        """Queue a run of `module:function` or `file.py:function` and return its row. Run it with `work_until_rest`."""
        from overnight.jobs import load_job

        await self._app.keep_brain()
        return await self._jobs.create(
            load_job(reference),
            args,
            kwargs,
            external_id=external_id,
            tenant_id=tenant_id or self._app.settings.tenant_id,
            actor=os.environ.get("USER"),
            brain_version=self._app.brain.version,
        )

    async def resume(self, job_id: str, actor: str) -> str:
        return await self._jobs.resume(job_id, actor)

    async def cancel(self, job_id: str, actor: str) -> str:
        return await self._jobs.cancel(job_id, actor)

    async def decide_review(
        self,
        review_id: str,
        answer: str,
        by: str,
        note: str | None = None,
        *,
        provider_id: str | None = None,
        result: bytes | None = None,
    ) -> "ReviewRow":
        """Decide a review as the operator. `provider_id` and `result` (JSON) are for `done`."""
        from overnight.reviews import Decision

        decision = Decision(answer, by, note, provider_id=provider_id, result=result)
        return await self._jobs.decide(review_id, decision)

    async def workers_alive(self) -> int:
        return await self._jobs.workers_alive()

    async def work_until_rest(self, job_id: str, on_event: Callable[[Recorded], None] | None = None) -> "JobRow":
        """Run a worker in this process until the job finishes, or waits for a person."""
        after = 0
        root = (await self._app.ledger.job(job_id)).root_job_id
        async with self._app.working(root=root):
            while True:
                job = await self._app.ledger.job(job_id)
                for event in await self._app.ledger.events(job_id, after):
                    after = event.seq
                    if on_event is not None:
                        on_event(event)
                if await self._at_rest(job):
                    return job
                await asyncio.sleep(0.02)

    async def _at_rest(self, job: "JobRow") -> bool:
        """Whether the job is finished or waits for a person; a parent rests only when its child does."""
        if job.state in FINISHED:
            return True
        # A daily or monthly budget resets by itself, but a foreground command does not wait for that.
        timed = job.wake_at is not None and any(wait["for"] != "budget" for wait in job.waits)
        if job.state != "parked" or timed:
            return False
        for wait in job.waits:
            if wait["for"] == "child":
                child = await self._app.ledger.job(wait["child_job_id"])
                if child.state in FINISHED or not await self._at_rest(child):
                    return False
        return True


class App:
    """The services of one process. The gateway and the worker start on first use."""

    def __init__(
        self,
        settings: Settings,
        store: "Store",
        brain: "Brain",
        offline_base_url: str | None,
        owner: str | None,
        secrets: Mapping[str, str],
    ) -> None:
        from overnight.ledger import Ledger

        self.settings, self.store, self.brain = settings, store, brain
        self.ledger = Ledger(store)
        self.operations = Operating(self)
        self._offline_base_url, self._owner = offline_base_url or settings.offline_base_url, owner
        self._secrets = secrets
        self._stack = contextlib.AsyncExitStack()
        self._gateway: Gateway | None = None
        self._registers = True  # a worker registers for the whole process

    async def gateway(self) -> "Gateway":
        """The gateway of this process. Without a provider key it calls the scripted provider, which is labelled as such."""
        if self._gateway is None:
            from overnight.gateway import Gateway, PriceBook

            seen, offline = await self._latest_reload(), self._offline_base_url
            if offline is None and not has_provider_key(self.brain, self._secrets):
                offline = await self._start_offline_provider()
            self._gateway = Gateway(
                self.store,
                self.brain.routing,
                PriceBook(self.brain.routing.prices),
                environment=self._secrets,
                offline_base_url=offline,
                offline_was_asked_for=self.settings.offline_base_url is not None,
                owner=self._owner,
                brain_version=self.brain.version,
                prompts_version=self.brain.prompts_version,
                registers=self._registers,
                keys=self._keyring(),
            )
            self._gateway.effects.tools = self.tool_rules
            await self.keep_brain()
            await self._gateway.start()
            self._stack.push_async_callback(self._gateway.close)
            self._follow_reloads(self._reload_gateway, seen)
        return self._gateway

    async def rest(self) -> "RestProcess":
        """The services of `/api/v1` in a process that makes no model calls."""
        from overnight.api import RestProcess

        seen = await self._latest_reload()
        rest = RestProcess(self.ledger, self._keyring(), self.brain)
        await self.keep_brain()
        self._stack.push_async_callback(rest.close)
        self._follow_reloads(rest.reload, seen)
        return rest

    def _keyring(self) -> "Keyring":
        from overnight.keys import Keyring

        return Keyring(self.store, masters_of(self.settings, self._secrets))

    def _follow_reloads(self, change: "Callable[[Brain], Awaitable[None]]", seen: "ReloadRequest | None") -> None:
        """Change to each brain version that a reload asks for, from `seen` on."""
        from overnight.gateway import BrainReloads

        async def changed(brain: "Brain") -> None:
            await change(brain)
            self.brain = brain
            await self.keep_brain()

        self._stack.push_async_callback(BrainReloads(self.store, self.brain.version, changed, seen).stop)

    def tool_rules(self) -> "ToolPolicy | None":
        """The rules about tool calls of the present brain; None without any, which costs nothing."""
        return _rules_of(self.brain)

    async def keep_brain(self) -> None:
        """Store the files of this brain, before the first job that names its version. Raises StoreUnavailable."""
        from overnight.ledger import KeepBrain

        await self.store.commit(KeepBrain(self.brain.version, self.brain.files))

    async def _latest_reload(self) -> "ReloadRequest | None":
        """The latest reload request. It may have been made since the folder was read, which is then read once more."""
        from overnight.ledger import read_reload

        if (seen := await read_reload(self.store)) is not None and seen.version != self.brain.version:
            self.brain = load_settings_brain(self.settings)
            self._secrets = {**secrets_of(self.brain), **self._secrets}
        return seen

    async def _reload_gateway(self, brain: "Brain") -> None:
        """Its providers may name keys that the process did not have at its start."""
        self._secrets = {**secrets_of(brain), **self._secrets}
        await (await self.gateway()).reload(brain, self._secrets)

    async def _start_offline_provider(self) -> str:
        from overnight.testing import start_scripted_provider

        return (await self._stack.enter_async_context(start_scripted_provider())).base_url

    @asynccontextmanager
    async def working(
        self, worker_id: str | None = None, root: str = "", lease_s: float = 15.0
    ) -> "AsyncGenerator[Worker]":
        """Run a worker in this process during the block; with `root`, only for that job and its descendants."""
        from overnight.gateway import JobCalls
        from overnight.jobs import Worker

        worker_id = worker_id or new_id("worker")
        self._owner, self._registers = self._owner or worker_id, False
        gateway = await self.gateway()
        options: dict[str, Any] = {"worker_id": worker_id, "root": root, "lease_s": lease_s, "policy": gateway.policy}
        options["tool_rules"] = self.tool_rules
        worker = Worker(self.store, JobCalls(gateway), **options)
        await worker.start()
        try:
            yield worker
        finally:
            await worker.stop()

    @asynccontextmanager
    async def listening(self, owner: str) -> "AsyncGenerator[None]":
        """Serve the sinks of the feed, such as notifications, during the block. `owner` is the name of this process."""
        from overnight.ledger import serve_sink
        from overnight.notifications import MessageSender, serve_notifications
        from overnight.telemetry import JsonLinesSink, LogFiles

        settings, folder = self.settings, self.settings.event_log
        serving: list[asyncio.Task[None]] = []
        if folder is not None:
            by_tenant, most = settings.event_log_by == "tenant", settings.event_log_mb * 1_000_000
            sink = JsonLinesSink(LogFiles(folder, by_tenant, most, settings.event_log_files))
            serving.append(await serve_sink(self.store, sink, owner))
        sender = MessageSender(masters_of(settings, self._secrets), outgoing_policy(settings))
        serving.append(asyncio.create_task(serve_notifications(self.store, sender, owner, settings.public_url)))
        try:
            yield
        finally:
            for each in serving:
                each.cancel()
            await asyncio.wait(serving)

    async def close(self) -> None:
        await self._stack.aclose()
        self.store.close()


@asynccontextmanager
async def open_app(
    settings: Settings,
    *,
    offline_base_url: str | None = None,
    owner: str | None = None,
    secrets: Mapping[str, str] | None = None,
) -> "AsyncGenerator[App]":
    """The services of one process. `offline_base_url`: the URL of a running scripted provider; `owner`: the name of this
    process in reservations; `secrets`: those that were removed from the environment before."""
    from overnight.store import open_store

    brain = load_settings_brain(settings)
    found = secrets_of(brain) if secrets is None else secrets
    app = App(settings, open_store(settings.database_url), brain, offline_base_url, owner, found)
    try:
        yield app
    finally:
        await app.close()


def run_loop(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """asyncio.run(main()), on uvloop if installed. The coroutine is created last, so that an interrupt leaves none behind."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main())
    return uvloop.run(main())


def _why_not(job: "JobRow") -> str:
    """The reason why a job has no result, and the next command."""
    why = f"waits for {', '.join(str(wait.get('why') or wait['for']) for wait in job.waits)}" if job.waits else ""
    if job.error:
        error = msgspec.json.decode(job.error)
        why = f"{error.get('class')}: {error.get('message')}"
    return f"{job.job_id} is {job.state}{f' ({why})' if why else ''}: see `overnight explain {job.job_id}`"


def run(function: Any, *args: Any, settings: Settings | None = None, **kwargs: Any) -> Any:
    """Run a @job function in this process and return its result.

    Raises JobFailed if it fails, is cancelled, or waits for a person (the message names the next command).
    """
    from overnight.jobs import JobFailed, Operations

    async def main() -> Any:
        async with open_app(settings or Settings.from_environment()) as app:
            await app.keep_brain()
            tenant_id, version = app.settings.tenant_id, app.brain.version
            job = await Operations(app.store).create(function, args, kwargs, tenant_id=tenant_id, brain_version=version)
            job = await app.operations.work_until_rest(job.job_id)
            if job.state != "succeeded":
                raise JobFailed(_why_not(job), job.state)
            return msgspec.json.decode(job.result or b"null")

    return run_loop(main)


def _rules_of(brain: "Brain") -> "ToolPolicy | None":
    """The rules about tool calls; None without contracts and rules, which costs nothing."""
    from overnight.tools import policy_of

    tools = brain.tools
    return None if tools.is_empty else policy_of(tools)


def _policy(brain: "Brain") -> "Policy":
    """The budgets of the brain; none without a folder."""
    from overnight.budgets import Policy

    routing = brain.routing
    return Policy(routing.budgets, routing.rate_limits)


@contextlib.contextmanager
def attach(
    external_id: str,
    *,
    name: str | None = None,
    tenant_id: str | None = None,
    base_url: str | None = None,
    settings: Settings | None = None,
    assert_effects: Sequence[Mapping[str, str]] = (),
) -> Any:
    """Run the block as an attempt of the external job `external_id`: see `jobs/external_job.py`. Yields the attached job.

    With OVERNIGHT_BASE_URL, effects go through that gateway, and the program needs no access to the database.

    - `base_url`: the URL for model calls; default: OPENAI_BASE_URL, else that of OVERNIGHT_BASE_URL or `overnight up`. The API
      key is OVERNIGHT_API_KEY, else OPENAI_API_KEY.
    - `assert_effects`: as for `overnight.job`, about the last text of a model; with the database only.
    """
    from overnight.domain.claim_rules import claim_rules
    from overnight.jobs import ExternalJob, RemoteJob, check_identifiers, gateway_root, remote_attempt
    from overnight.store import open_store

    key = os.environ.get("OVERNIGHT_API_KEY") or os.environ.get("OPENAI_API_KEY")
    gateway = os.environ.get("OVERNIGHT_BASE_URL")
    if gateway and settings is None:
        if assert_effects:
            raise BadInput("assert_effects needs the database; unset OVERNIGHT_BASE_URL, or assert in brain/agents/")
        check_identifiers(external_id, tenant_id or "default")
        remote = RemoteJob(gateway_root(gateway, "OVERNIGHT_BASE_URL"), external_id, tenant_id, key)
        with remote_attempt(remote):
            yield remote
        return
    chosen = settings or Settings.from_environment()
    external_id, tenant = check_identifiers(external_id, tenant_id or chosen.tenant_id)
    url = base_url or os.environ.get("OPENAI_BASE_URL") or f"http://{DEFAULT_HOST}:{DEFAULT_PORT}/v1"
    claims = claim_rules([dict(each) for each in assert_effects], "assert_effects")
    brain = load_settings_brain(chosen)
    with (
        open_store(chosen.database_url) as store,
        ExternalJob(
            store,
            external_id,
            tenant,
            name or external_id,
            url,
            key,
            _policy(brain),
            tool_rules=lambda: _rules_of(brain),
            claims=claims,
        ) as attached,
    ):
        yield attached
