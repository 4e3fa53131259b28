"""Commands that act: run, resume, cancel, up, demo."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .jobs import JobName, Json
from .lookup import (
    Tenant,
    find_job,
    for_tenant,
    tenant_of,
)
from .output import say
from .reviews import By, operator
from .time_zone import Tz, use_zone

if TYPE_CHECKING:
    from overnight.app import App
    from overnight.domain import Recorded
    from overnight.ledger import JobRow
    from overnight.settings import Settings

PARKED = 3
QUEUED_S, LOST_S = 0.5, 2.5
"""A living worker takes a queued job at once, and one whose lease ran out within a second or two."""
Detach = Annotated[
    bool, typer.Option("--detach", "-d", help="Only put it in line; a worker (`overnight up`) takes it.")
]


def run(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="module:function or path/to/file.py:function.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Arguments; a value is JSON, else text.", show_default=False),
    ] = None,
    input_: Annotated[
        str | None,
        typer.Option("--input", "-i", metavar="JSON", help="All arguments as a JSON object, or as a list by position."),
    ] = None,
    tenant: Tenant = None,
    external_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Your own id: asked for twice, the job runs once.")
    ] = None,
    detach: Detach = False,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """Run a job in the foreground; its events are shown as they come. Exit code 3 when it parks for a person.

    \b
    Examples:
      overnight run triage:nightly
      overnight run jobs/triage.py:nightly folder=inbox limit=20
      overnight run triage:nightly --input '{"limit": 20}' --external-id nightly-2026-01-31
    """
    from overnight.domain import check_identifier

    from .job_code import load_code

    args, kwargs = _arguments(arguments or [], input_)
    if external_id is not None:
        check_identifier(external_id, "--external-id")
    use_zone(tz, json=json)
    secrets = _secrets()
    load_code(target)

    async def work(app: "App", seen: "_Seen") -> "JobRow":
        whose = tenant_of(tenant, app.settings)
        job = await app.operations.run(target, args, kwargs, external_id=external_id, tenant_id=whose)
        if not detach:
            seen.begin(job)
        return job if detach else await app.operations.work_until_rest(job.job_id, seen.event)

    _act(work, secrets, json=json, detached=detach)


def _arguments(pairs: list[str], text: str | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    import msgspec

    from .lookup import WrongUsage

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if text is not None:
        try:
            given: Any = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise WrongUsage(f"--input is not JSON: {error}. Give an object such as '{{\"limit\": 20}}'") from None
        if isinstance(given, dict):
            kwargs = given  # pyright: ignore[reportUnknownVariableType]
        elif isinstance(given, list):
            args = tuple(given)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        else:
            raise WrongUsage(f"--input: give an object of arguments by name, or a list by position, not {text[:40]}")
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.isidentifier():
            raise WrongUsage(f"{pair[:60]!r} is not KEY=VALUE; arguments are given as limit=20 or with --input '{{…}}'")
        if name in kwargs:
            raise WrongUsage(f"{name} is given twice; once is enough")
        try:
            kwargs[name] = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            kwargs[name] = value
    return args, kwargs


def resume(
    job: JobName, tenant: Tenant = None, by: By = None, detach: Detach = False, tz: Tz = None, json: Json = False
) -> None:
    """Go on with a job that was interrupted, parked or failed: what is recorded is not paid or done again.

    A running worker takes it; where there is none it is worked in this process.

    \b
    Examples:
      overnight resume last
      overnight resume job_01a1b2c3 --detach
    """
    use_zone(tz, json=json)

    async def work(app: "App", seen: "_Seen") -> "JobRow":
        from overnight.domain import FINISHED, Conflict

        from .job_code import load_code

        found = await find_job(app.ledger, job, tenant_of(tenant, app.settings))
        if found.state in {"succeeded", "cancelled"}:
            raise Conflict(
                f"{found.job_id} has {found.state} already: there is nothing to resume. `overnight explain` tells it"
            )
        if found.state in {"parked", "failed"} or found.runtime == "foreign":
            await app.operations.resume(found.job_id, operator(by))
        found = await app.ledger.job(found.job_id)
        if detach:
            return found
        seen.begin(found, after=found.last_seq)
        if found.state == "running" and found.lease_owner:
            seen.held_by(found.lease_owner)  # worked here it is taken over as soon as that worker is known to be dead
        elif await app.operations.workers_alive() and (at_rest := await _taken(app, found, seen)):
            return at_rest
        if found.state not in FINISHED:
            load_code(found.code_ref or "")  # it is worked here, so it must be found here
        return await app.operations.work_until_rest(found.job_id, seen.event)

    _act(work, _secrets(), json=json, detached=detach)


async def _taken(app: "App", job: "JobRow", seen: "_Seen") -> "JobRow | None":
    """Follow a job that another worker has, until it rests; None when no worker takes it."""
    from overnight.domain import FINISHED

    loop = asyncio.get_running_loop()
    idle_since = loop.time()
    while True:
        now = await app.ledger.job(job.job_id)
        for event in await app.ledger.events(job.job_id, seen.after):
            seen.event(event)
        if now.state in FINISHED or now.state == "parked":
            return now
        if now.state == "running" and (now.lease_expires_at or 0) > app.store.clock():
            idle_since = loop.time()
        elif loop.time() - idle_since > (QUEUED_S if now.state == "queued" else LOST_S):
            return None
        await asyncio.sleep(0.05)


def cancel(job: JobName, tenant: Tenant = None, by: By = None, json: Json = False) -> None:
    """Stop a job and its child jobs. What is under way is recorded before it stops. Needs no brain folder.

    \b
    Example:
      overnight cancel job_01a1b2c3
    """
    from overnight.app import open_ledger
    from overnight.jobs import Operations
    from overnight.settings import Settings

    settings = Settings.from_environment()
    ledger = open_ledger(settings)

    async def work() -> tuple[str, str]:
        found = await find_job(ledger, job, tenant_of(tenant, settings))
        return found.job_id, await Operations(ledger.store).cancel(found.job_id, operator(by))

    with ledger.store:
        job_id, state = asyncio.run(work())
    if json:
        from .output import print_json

        print_json({"job_id": job_id, "state": state})
    elif state == "cancelled":
        say(f"{job_id} is cancelled")
    else:
        follow = for_tenant(f"overnight events {job_id} --follow", tenant_of(tenant, settings), settings)
        say(f"{job_id} is asked to stop; its worker stops it at its next boundary. {follow}")


class _Seen:
    """What a foreground command has seen of its job, and shows: the id at once, then events, on standard error."""

    def __init__(self, json: bool) -> None:
        self.json, self.job_id, self.after, self.tenant_id = json, "", 0, ""

    def begin(self, job: "JobRow", after: int = 0) -> None:
        self.job_id, self.after, self.tenant_id = job.job_id, after, job.tenant_id
        if not self.json:
            from overnight.story import clean

            from .output import console

            console(stderr=True).print(f"{clean(job.name, 100)}  {job.job_id}", style="bold")

    def held_by(self, owner: str) -> None:
        if not self.json:
            from overnight.story import who

            from .output import console

            words = f"{who(owner)} has it; it is taken over here as soon as that one is known to be dead"
            console(stderr=True).print(words, style="dim", soft_wrap=True)

    def event(self, event: "Recorded") -> None:
        if event.seq <= self.after:
            return
        self.after = event.seq
        if not self.json:
            from .event_view import QUIET, event_line
            from .output import console

            if event.facts.event not in QUIET:
                console(stderr=True).print(event_line(event), soft_wrap=True)


def _secrets() -> dict[str, str]:
    """Taken out of the environment before code of jobs is imported."""
    from overnight.app import load_settings_brain, take_secrets
    from overnight.settings import Settings

    return take_secrets(load_settings_brain(Settings.from_environment()))


def _act(work: Any, secrets: dict[str, str], *, json: bool, detached: bool) -> None:
    """Run `work(app, seen)`, show the job it returns, and exit with what became of it."""
    from overnight.app import open_app, run_loop
    from overnight.settings import Settings
    from overnight.story import tree_costs

    seen, settings = _Seen(json), Settings.from_environment()

    async def main() -> "tuple[JobRow, tuple[int, int, int]]":
        async with open_app(settings, secrets=secrets) as app:
            coroutine: Coroutine[Any, Any, JobRow] = work(app, seen)
            job = await coroutine
            return job, (await tree_costs(app.ledger, [job.job_id])).get(job.job_id, (0, 0, 0))

    try:
        job, cost = run_loop(main)
    except KeyboardInterrupt:
        if seen.job_id:
            again = for_tenant(f"overnight resume {seen.job_id}", seen.tenant_id, settings)
            say(f"\nInterrupted. Nothing is lost; go on with: {again}", err=True)
        raise typer.Exit(130) from None
    raise typer.Exit(_show_end(job, cost, settings, json=json, detached=detached))


def _show_end(job: "JobRow", cost: tuple[int, int, int], settings: "Settings", *, json: bool, detached: bool) -> int:
    """Print how the job stands; the exit code."""
    import time

    import msgspec

    from overnight.story import public_job

    code = {"failed": 1, "cancelled": 1, "parked": PARKED}.get(job.state, 0)
    now = time.time_ns() // 1000
    if json:
        from .output import print_json

        result = msgspec.json.decode(job.result) if job.result else None
        print_json(public_job(job, *cost, now) | {"result": result})
        return 0 if detached else code
    if detached:
        say(job.job_id)
        follow = for_tenant(f"overnight events {job.job_id} --follow", job.tenant_id, settings)
        say(f"{job.state}; follow it with: {follow}", err=True)
        return 0
    from .job_view import show_end

    show_end(job, *cost, now, for_tenant(f"overnight explain {job.job_id}", job.tenant_id, settings))
    return code


def up(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The gateway's and the API's port.")] = 8700,
    jobs: Annotated[
        list[str] | None,
        typer.Option(
            "--jobs", help="A module or file of jobs that the worker imports; may be repeated.", metavar="MODULE"
        ),
    ] = None,
) -> None:
    """Run gateway, API and worker on this machine until Ctrl-C. Needs no service and no key.

    \b
    Examples:
      overnight up
      overnight up --port 9000 --jobs nightly.jobs
    """
    from overnight.roles import up as run_up
    from overnight.settings import Settings

    from .job_code import check_modules

    check_modules(jobs or [])
    raise typer.Exit(run_up(Settings.from_environment(), host, port, jobs or []))


def demo(
    maildir: Annotated[
        Path | None,
        typer.Option(help="A Maildir of your own; it is copied, never changed.", metavar="DIR", show_default=False),
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Ask real models; needs OPENAI_API_KEY.")] = False,
    seed: Annotated[
        int | None, typer.Option(help="Where the second crash strikes (default: anywhere).", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """A night in a small shop's mailbox, its worker killed twice; counts that nothing was sent twice. Needs no key.

    \b
    Examples:
      overnight demo
      overnight demo --seed 7 --json
      overnight demo --maildir ~/Maildir --live
    """
    from overnight.demo import MaildirError
    from overnight.demo.play import play
    from overnight.domain import BadInput

    try:
        code = play(maildir, live, json, seed)
    except MaildirError as error:
        raise BadInput(str(error)) from None
    raise typer.Exit(code)
