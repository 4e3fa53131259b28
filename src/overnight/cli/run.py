"""`overnight run`, `resume` and `cancel`."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Annotated, Any

import msgspec
import typer

from overnight.app import App, open_app, run_loop
from overnight.domain import FINISHED, Conflict, Recorded, check_identifier
from overnight.jobs import Operations
from overnight.ledger import JobRow
from overnight.process_environment import load_settings_brain, open_ledger, take_secrets
from overnight.settings import Settings
from overnight.story import actor_text, clean, public_job, tree_costs

from .actor import operator
from .event_view import QUIET, event_line
from .job_code import load_code
from .job_view import show_end
from .lookup import find_job, for_tenant, tenant_of
from .options import By, JobName, Json, Tenant, Tz
from .output import console, print_json, say
from .time_zone import use_zone
from .usage import WrongUsage

PARKED = 3
QUEUED_S, LOST_S = 0.5, 2.5
"""A running worker takes a queued job at once, and a job with an expired lease within two seconds."""
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Only queue the job; a worker (`overnight up`) runs it.")]


def run(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="module:function or path/to/file.py:function.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Arguments; a value is JSON, else a string.", show_default=False),
    ] = None,
    input_: Annotated[
        str | None,
        typer.Option(
            "--input",
            "-i",
            metavar="JSON",
            help="All arguments as a JSON object, or as a list of positional arguments.",
        ),
    ] = None,
    tenant: Tenant = None,
    external_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Your id of the job; a second run with this id returns the first job."),
    ] = None,
    detach: Detach = False,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """Run a job in the foreground and show its events. Exit code 3 if it waits for a person.

    \b
    Examples:
      overnight run triage:nightly
      overnight run jobs/triage.py:nightly folder=inbox limit=20
      overnight run triage:nightly --input '{"limit": 20}' --external-id nightly-2026-01-31
    """

    args, kwargs = _arguments(arguments or [], input_)
    if external_id is not None:
        check_identifier(external_id, "--external-id")
    use_zone(tz, json=json)
    secrets = _secrets()
    load_code(target)

    async def work(app: App, progress: _Progress) -> JobRow:
        tenant_id = tenant_of(tenant, app.settings)
        job = await app.operations.run(target, args, kwargs, external_id=external_id, tenant_id=tenant_id)
        if not detach:
            progress.begin(job)
        return job if detach else await app.operations.work_until_rest(job.job_id, progress.event)

    _run_app(work, secrets, json=json, detached=detach)


def _arguments(pairs: list[str], text: str | None) -> tuple[tuple[Any, ...], dict[str, Any]]:

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if text is not None:
        try:
            given: Any = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise WrongUsage(f"--input is not JSON: {error}. Expected an object such as '{{\"limit\": 20}}'") from None
        if isinstance(given, dict):
            kwargs = given  # pyright: ignore[reportUnknownVariableType]
        elif isinstance(given, list):
            args = tuple(given)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        else:
            raise WrongUsage(
                f"--input: expected an object of named arguments or a list of positional arguments, not {text[:40]}"
            )
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.isidentifier():
            raise WrongUsage(f"{pair[:60]!r} is not KEY=VALUE; give arguments as limit=20 or with --input '{{…}}'")
        if name in kwargs:
            raise WrongUsage(f"{name} is given twice")
        try:
            kwargs[name] = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            kwargs[name] = value
    return args, kwargs


def resume(
    job: JobName, tenant: Tenant = None, by: By = None, detach: Detach = False, tz: Tz = None, json: Json = False
) -> None:
    """Resume a job that was interrupted, parked or failed. Recorded calls and effects are not repeated.

    A running worker takes the job; without one, it runs in this process.

    \b
    Examples:
      overnight resume last
      overnight resume job_01a1b2c3 --detach
    """
    use_zone(tz, json=json)

    async def work(app: App, progress: _Progress) -> JobRow:

        found = await find_job(app.ledger, job, tenant_of(tenant, app.settings))
        if found.state in {"succeeded", "cancelled"}:
            raise Conflict(
                f"{found.job_id} is in state {found.state} and cannot be resumed. See `overnight explain {found.job_id}`"
            )
        if found.state in {"parked", "failed"} or found.runtime == "foreign":
            await app.operations.resume(found.job_id, operator(by))
        found = await app.ledger.job(found.job_id)
        if detach:
            return found
        progress.begin(found, after=found.last_seq)
        if found.state == "running" and found.lease_owner:
            progress.held_by(found.lease_owner)  # taken over here once that worker is known to be dead
        elif await app.operations.workers_alive() and (at_rest := await _follow_worker(app, found, progress)):
            return at_rest
        if found.state not in FINISHED:
            load_code(found.code_ref or "")  # it runs in this process, so its code must be found here
        return await app.operations.work_until_rest(found.job_id, progress.event)

    _run_app(work, _secrets(), json=json, detached=detach)


async def _follow_worker(app: App, job: JobRow, progress: "_Progress") -> JobRow | None:
    """Follow a job that another worker runs until it finishes or parks; None if no worker takes it."""

    loop = asyncio.get_running_loop()
    idle_since = loop.time()
    while True:
        now = await app.ledger.job(job.job_id)
        for event in await app.ledger.events(job.job_id, progress.after):
            progress.event(event)
        if now.state in FINISHED or now.state == "parked":
            return now
        if now.state == "running" and (now.lease_expires_at or 0) > app.store.clock():
            idle_since = loop.time()
        elif loop.time() - idle_since > (QUEUED_S if now.state == "queued" else LOST_S):
            return None
        await asyncio.sleep(0.05)


def cancel(job: JobName, tenant: Tenant = None, by: By = None, json: Json = False) -> None:
    """Cancel a job and its child jobs. Calls in flight are recorded first. Requires no brain folder.

    \b
    Example:
      overnight cancel job_01a1b2c3
    """

    settings = Settings.from_environment()
    ledger = open_ledger(settings)

    async def work() -> tuple[str, str]:
        found = await find_job(ledger, job, tenant_of(tenant, settings))
        return found.job_id, await Operations(ledger.store).cancel(found.job_id, operator(by))

    with ledger.store:
        job_id, state = asyncio.run(work())
    if json:
        print_json({"job_id": job_id, "state": state})
    elif state == "cancelled":
        say(f"{job_id} is cancelled")
    else:
        follow = for_tenant(f"overnight events {job_id} --follow", tenant_of(tenant, settings), settings)
        say(f"{job_id}: cancellation requested; its worker stops it at the next boundary. Follow it with: {follow}")


class _Progress:
    """Shows the progress of a job on standard error: its id at once, then its events."""

    def __init__(self, json: bool) -> None:
        self.json, self.job_id, self.after, self.tenant_id = json, "", 0, ""

    def begin(self, job: JobRow, after: int = 0) -> None:
        self.job_id, self.after, self.tenant_id = job.job_id, after, job.tenant_id
        if not self.json:
            console(stderr=True).print(f"{clean(job.name, 100)}  {job.job_id}", style="bold")

    def held_by(self, owner: str) -> None:
        if not self.json:
            text = f"{actor_text(owner)} holds the lease; this process takes over once that worker is known to be dead"
            console(stderr=True).print(text, style="dim", soft_wrap=True)

    def event(self, event: Recorded) -> None:
        if event.seq <= self.after:
            return
        self.after = event.seq
        if not self.json and event.facts.event not in QUIET:
            console(stderr=True).print(event_line(event), soft_wrap=True)


def _secrets() -> dict[str, str]:
    """Secrets, removed from the environment before job code is imported."""

    return take_secrets(load_settings_brain(Settings.from_environment()))


def _run_app(work: Any, secrets: dict[str, str], *, json: bool, detached: bool) -> None:
    """Run `work(app, progress)`, show the job it returns, and exit with the code for its state."""

    progress, settings = _Progress(json), Settings.from_environment()

    async def main() -> tuple[JobRow, tuple[int, int, int]]:
        async with open_app(settings, secrets=secrets) as app:
            coroutine: Coroutine[Any, Any, JobRow] = work(app, progress)
            job = await coroutine
            return job, (await tree_costs(app.ledger, [job.job_id])).get(job.job_id, (0, 0, 0))

    try:
        job, cost = run_loop(main)
    except KeyboardInterrupt:
        if progress.job_id:
            again = for_tenant(f"overnight resume {progress.job_id}", progress.tenant_id, settings)
            say(f"\nInterrupted. No recorded work is lost. Resume with: {again}", err=True)
        raise typer.Exit(130) from None
    raise typer.Exit(_show_end(job, cost, settings, json=json, detached=detached))


def _show_end(job: JobRow, cost: tuple[int, int, int], settings: Settings, *, json: bool, detached: bool) -> int:
    """Print the state of the job; the exit code."""

    code = {"failed": 1, "cancelled": 1, "parked": PARKED}.get(job.state, 0)
    now = time.time_ns() // 1000
    if json:
        result = msgspec.json.decode(job.result) if job.result else None
        print_json(public_job(job, *cost, now) | {"result": result})
        return 0 if detached else code
    if detached:
        say(job.job_id)
        follow = for_tenant(f"overnight events {job.job_id} --follow", job.tenant_id, settings)
        say(f"{job.state}; follow it with: {follow}", err=True)
        return 0

    show_end(job, *cost, now, for_tenant(f"overnight explain {job.job_id}", job.tenant_id, settings))
    return code
