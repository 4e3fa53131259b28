"""The roles of a fleet, one process each. `overnight up` starts both on one machine."""

from typing import Annotated

import typer

Offline = Annotated[
    str | None, typer.Option("--offline-base-url", hidden=True, help="Where a scripted provider listens already.")
]


def gateway(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one and prints it.")] = 8700,
    owner: Annotated[str | None, typer.Option(hidden=True)] = None,
    offline_base_url: Offline = None,
) -> None:
    """Serve the gateway and the API in this process.

    \b
    Example:
      DATABASE_URL=postgresql://… overnight gateway --port 8700
    """
    from overnight.app import run_loop
    from overnight.roles import serve_gateway, stopped
    from overnight.settings import Settings

    settings = Settings.from_environment()

    async def serve() -> None:
        await serve_gateway(settings, host, port, offline_base_url=offline_base_url, until=stopped(), owner=owner)

    run_loop(serve)


def worker(
    jobs: Annotated[
        list[str] | None, typer.Option("--jobs", help="A module or file of jobs to import first.", metavar="MODULE")
    ] = None,
    worker_id: Annotated[str | None, typer.Option("--worker-id", hidden=True)] = None,
    lease_s: Annotated[float, typer.Option("--lease-s", min=0.5, hidden=True)] = 15.0,
    offline_base_url: Offline = None,
) -> None:
    """Work jobs in this process.

    \b
    Example:
      DATABASE_URL=postgresql://… overnight worker --jobs nightly.jobs
    """
    from overnight.app import run_loop
    from overnight.domain import new_id
    from overnight.roles import serve_worker, stopped
    from overnight.settings import Settings

    from .job_code import check_modules

    check_modules(jobs or [])
    settings, name = Settings.from_environment(), worker_id or new_id("worker")

    async def serve() -> None:
        until = stopped()
        await serve_worker(settings, name, jobs or [], offline_base_url=offline_base_url, until=until, lease_s=lease_s)

    run_loop(serve)
