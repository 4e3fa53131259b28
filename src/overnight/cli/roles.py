"""`overnight gateway`, `api` and `worker`, the roles of a fleet, and `up`, which starts all on one machine."""

from typing import Annotated

import typer

from overnight import roles
from overnight.app import run_loop
from overnight.domain import new_id
from overnight.settings import Settings

from .job_code import check_modules

Offline = Annotated[
    str | None, typer.Option("--offline-base-url", hidden=True, help="The base URL of a running scripted provider.")
]


def gateway(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 selects a free port and prints it.")] = 8700,
    owner: Annotated[str | None, typer.Option(hidden=True)] = None,
    api_socket: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="The socket of an `overnight api` process, which serves everything except model calls."
        ),
    ] = None,
    offline_base_url: Offline = None,
) -> None:
    """Serve the gateway in this process, and the API if no --api-socket is given.

    \b
    Example:
      DATABASE_URL=postgresql://db/ops overnight gateway --port 8700
    """

    settings = Settings.from_environment()

    async def serve() -> None:
        await roles.serve_gateway(
            settings,
            host,
            port,
            offline_base_url=offline_base_url,
            until=roles.stopped(),
            owner=owner,
            api_socket=api_socket,
        )

    run_loop(serve)


def api(
    socket: Annotated[str, typer.Option(metavar="PATH", help="The unix socket to listen on.")],
    gateway_host: Annotated[str, typer.Option(help="The address that the gateway listens on.")] = "127.0.0.1",
) -> None:
    """Serve the API behind a gateway, so that long reports do not delay model calls.

    \b
    Example:
      overnight api --socket /run/overnight/api.sock
      overnight gateway --api-socket /run/overnight/api.sock
    """

    settings = Settings.from_environment()

    async def serve() -> None:
        await roles.serve_api(settings, gateway_host, socket, until=roles.stopped())

    run_loop(serve)


def worker(
    jobs: Annotated[
        list[str] | None,
        typer.Option("--jobs", help="A module or file of jobs to import; may be repeated.", metavar="MODULE"),
    ] = None,
    worker_id: Annotated[str | None, typer.Option("--worker-id", hidden=True)] = None,
    lease_s: Annotated[float, typer.Option("--lease-s", min=0.5, hidden=True)] = 15.0,
    offline_base_url: Offline = None,
) -> None:
    """Run jobs in this process.

    \b
    Example:
      DATABASE_URL=postgresql://db/ops overnight worker --jobs nightly.jobs
    """

    check_modules(jobs or [])
    settings, name = Settings.from_environment(), worker_id or new_id("worker")

    async def serve() -> None:
        until = roles.stopped()
        await roles.serve_worker(
            settings, name, jobs or [], offline_base_url=offline_base_url, until=until, lease_s=lease_s
        )

    run_loop(serve)


def up(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port of the gateway and the API.")] = 8700,
    jobs: Annotated[
        list[str] | None,
        typer.Option(
            "--jobs", help="A module or file of jobs that the worker imports; may be repeated.", metavar="MODULE"
        ),
    ] = None,
) -> None:
    """Run the gateway, the API and a worker on this machine until Ctrl-C. Requires no other service and no key.

    \b
    Examples:
      overnight up
      overnight up --port 9000 --jobs nightly.jobs
    """

    check_modules(jobs or [])
    raise typer.Exit(roles.up(Settings.from_environment(), host, port, jobs or []))
