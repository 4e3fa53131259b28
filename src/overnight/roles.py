"""The processes of a fleet: gateway, api, worker, and `up`, which runs all under one supervisor."""

import asyncio
import contextlib
import errno
import gc
import importlib
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from overnight.app import open_app
from overnight.brain import Brain
from overnight.domain import BadInput
from overnight.files import is_open_to_others
from overnight.process_environment import (
    MASTER_KEY,
    has_provider_key,
    load_settings_brain,
    outgoing_policy,
    take_secrets,
)
from overnight.settings import Settings
from overnight.supervisor import Child, ProcessTree, set_up_log, stdin_closed

if TYPE_CHECKING:
    from overnight.api import Application, ConnectionLimits, Server

log = logging.getLogger(__name__)
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def _announce(facts: dict[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode({"event": "ready", **facts}).decode() + "\n")
    sys.stdout.flush()


async def serve_gateway(
    settings: Settings,
    host: str,
    port: int,
    *,
    offline_base_url: str | None,
    until: Awaitable[Any],
    owner: str | None = None,
    api_socket: str | None = None,
) -> None:
    """Serve the gateway on a port until `until` completes. Prints one JSON line when it listens.

    Args:
        api_socket: the unix socket of the `api` process that serves all but model calls; without one, this process does.
    """
    from overnight.api import LOOPBACK as LOOPBACK_NAMES
    from overnight.api import AccessLog, application
    from overnight.tools import policy_of

    set_up_log("gateway")
    _allow_files()
    _check_auth(settings, host)
    secrets = take_secrets(load_settings_brain(settings))
    _warn_open(settings)
    async with open_app(settings, offline_base_url=offline_base_url, owner=owner, secrets=secrets) as app:
        gateway = await app.gateway()
        # Reservations under this name were left by an earlier process of the same name.
        await gateway.settle_owner(gateway.owner)
        limits = _limits(settings)
        served = application(
            gateway,
            app.ledger,
            hosts=(*LOOPBACK_NAMES, *settings.hosts) if host in LOOPBACK else None,
            auth=settings.auth,
            requests_per_key=limits.per_key,
            public_url=settings.public_url,
            outgoing=outgoing_policy(settings),
            tool_policy=lambda: policy_of(app.brain.tools),
            access_log=AccessLog.of(settings.access_log),  # also for the requests that the api process serves
            api_socket=api_socket,
        )
        server = _server(settings, served, limits)
        try:
            bound_host, bound_port = await server.start(host, port)
        except (OSError, UnicodeError) as error:
            raise _cannot_listen(host, port, error) from None
        _warn_unlimited(settings, app.brain)
        _settle_memory()
        _announce({"role": "gateway", "owner": gateway.owner, "host": bound_host, "port": bound_port})
        try:
            await until
        finally:
            await server.stop()


async def serve_api(settings: Settings, host: str, path: str, *, until: Awaitable[Any]) -> None:
    """Serve the API on the unix socket `path` until `until` completes. Prints one JSON line when it listens.

    Args:
        host: the address of the gateway in front of it, whose rules for keys and host names hold.
    """
    from overnight.api import LOOPBACK as LOOPBACK_NAMES
    from overnight.api import rest_application

    set_up_log("api")
    _allow_files()
    _check_auth(settings, host)
    secrets = take_secrets(load_settings_brain(settings))
    async with open_app(settings, secrets=secrets) as app:
        rest = await app.rest()
        limits = _limits(settings)
        served = rest_application(
            rest.services(settings.public_url, outgoing_policy(settings)),
            hosts=(*LOOPBACK_NAMES, *settings.hosts) if host in LOOPBACK else None,
            auth=settings.auth,
            requests_per_key=limits.per_key,
        )
        server = _server(settings, served, limits)
        try:
            await server.start_unix(path)
        except OSError as error:
            raise BadInput(f"--socket {path}: {error.strerror or error}") from None
        _settle_memory()
        _announce({"role": "api", "socket": path})
        try:
            await until
        finally:
            await server.stop()


def _limits(settings: Settings) -> "ConnectionLimits":
    from overnight.api import ConnectionLimits

    return ConnectionLimits(
        settings.max_connections, settings.max_connections_per_address, settings.max_connections_per_key
    )


def _server(settings: Settings, served: "Application", limits: "ConnectionLimits") -> "Server":
    from overnight.api import Server, TrustedProxies

    proxies, root_path = TrustedProxies(settings.trusted_proxies), urlsplit(settings.public_url).path
    return Server(served, limits=limits, proxies=proxies, root_path=root_path, lifespan=True)


def _warn_unlimited(settings: Settings, brain: Brain) -> None:
    """Warn that no limit applies; under `up`, its own output says so."""
    if not brain.limits_spending and not os.environ.get("OVERNIGHT_CHILD"):
        why = (
            f"{settings.brain}/routing.yaml defines none"
            if brain.has_routing
            else f"folder {settings.brain} does not exist"
        )
        log.warning("no budgets and no limits: %s", why)


def _warn_open(settings: Settings) -> None:
    """Warn about files that other users can access; under `up`, its own log says so."""
    if os.environ.get("OVERNIGHT_CHILD"):
        return
    ledger = settings.ledger_file
    for place in {settings.home, *([ledger.parent, ledger] if ledger is not None else [])}:
        if is_open_to_others(place):
            what, mode = ("enter this folder", "700") if place.is_dir() else ("read this file", "600")
            log.warning("%s: other users can %s; run chmod %s %s", place, what, mode, place)


def _settle_memory() -> None:
    """Exclude loaded objects from garbage collection and collect less often: calls create few cycles, and with the defaults
    collection takes 8 % of the gateway's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def _allow_files() -> None:
    """Raise the limit of open files to its maximum: every stream needs two, and the usual limit is 1,024."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def serve_worker(
    settings: Settings,
    worker_id: str,
    modules: Sequence[str],
    *,
    offline_base_url: str | None,
    until: Awaitable[Any],
    lease_s: float = 15.0,
) -> None:
    """Run a worker until `until` completes. `modules` are imported first, so that their errors show at once."""
    from overnight.jobs import add_folder

    set_up_log("worker")
    _allow_files()
    secrets = take_secrets(load_settings_brain(settings))
    _warn_open(settings)
    if modules:
        add_folder(os.getcwd())
    for module in modules:
        try:
            importlib.import_module(module.partition(":")[0]) if not module.endswith(".py") else None
        except Exception as error:
            raise BadInput(f"--jobs {module}: cannot import: {type(error).__name__}: {error}") from error
    opened = open_app(settings, offline_base_url=offline_base_url, owner=worker_id, secrets=secrets)
    async with opened as app, app.working(worker_id, lease_s=lease_s), app.listening(worker_id):
        _announce({"role": "worker", "owner": worker_id})
        await until


async def stopped() -> None:
    """Return at SIGINT or SIGTERM, or when the parent process has ended."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked.set)
    waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(asked.wait())]
    if os.environ.get("OVERNIGHT_CHILD"):
        waits.append(asyncio.ensure_future(stdin_closed()))
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)


def child_command(role: str, *options: str) -> list[str]:
    """The command for a role in a child process. -P: the working folder is not on its import path."""
    return [sys.executable, "-P", "-m", "overnight", role, *options]


def child_environment(settings: Settings) -> dict[str, str]:
    """The environment of a child: the settings, and the mark that it must end with its parent."""
    return settings.environment() | {"OVERNIGHT_CHILD": "1"}


async def _up(settings: Settings, host: str, port: int, jobs: Sequence[str], say: Any) -> int:
    """Supervise until stopped."""
    from overnight.jobs import Operations
    from overnight.store import open_store
    from overnight.testing import start_scripted_provider

    _check_auth(settings, host)
    _check_free(host, port)
    brain = load_settings_brain(settings)
    secrets = take_secrets(brain)
    environment = child_environment(settings) | secrets
    async with contextlib.AsyncExitStack() as stack:
        store = stack.enter_context(open_store(settings.database_url))
        _warn_open(settings)
        offline: list[str] = []
        if settings.offline_base_url:
            offline = ["--offline-base-url", settings.offline_base_url]
        elif not has_provider_key(brain, secrets):
            provider = await stack.enter_async_context(start_scripted_provider())
            offline = ["--offline-base-url", provider.base_url]
        tree = ProcessTree(log.warning)
        stack.push_async_callback(tree.stop)

        async def worker_died(_: int) -> None:
            await Operations(store).expire_dead_workers()

        socket_path = str(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="overnight-"))) / "api.sock")
        api = child_command("api", "--gateway-host", host, "--socket", socket_path)
        # It makes no calls: of the secrets it gets the key that seals providers' keys of tenants, and none of a provider.
        sealing = {name: value for name, value in secrets.items() if name == MASTER_KEY}
        await tree.start(Child("api", api, environment=child_environment(settings) | sealing))
        gateway = child_command("gateway", "--host", host, "--port", str(port), "--api-socket", socket_path, *offline)
        await tree.start(Child("gateway", gateway, environment=environment))
        if not (await _listens(host, port, tree) and await _listens_on(socket_path, tree)):
            raise BadInput(f"{host}:{port}: the gateway could not start; see the log lines above")
        options = [option for module in jobs for option in ("--jobs", module)]
        worker = child_command("worker", *options, *offline)
        await tree.start(Child("worker", worker, worker_died, environment=environment))
        _welcome(settings, host, port, offline, brain, say)
        await stopped()
        log.info("stopping")
    return 0


def _check_auth(settings: Settings, host: str) -> None:
    """Raises BadInput for an empty host, or for a host other than loopback without authentication."""
    if not host.strip():
        raise BadInput("--host is empty: use 127.0.0.1 for this machine only, or 0.0.0.0 for all networks")
    if settings.auth == "off" and host not in LOOPBACK:
        raise BadInput(f"OVERNIGHT_AUTH=off is only allowed on loopback, and other machines can reach {host}; unset it")


def _check_free(host: str, port: int) -> None:
    """Raises BadInput if another process already listens there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, UnicodeError) as error:
            raise _cannot_listen(host, port, error) from None


def _cannot_listen(host: str, port: int, error: OSError | UnicodeError) -> BadInput:
    why = (error.strerror if isinstance(error, OSError) else None) or "not a valid host name"
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        why = "the port is in use, perhaps by another `overnight up`; stop it, or"
    return BadInput(
        f"{host[:100]}:{port}: {why}{'' if why.endswith('or') else ';'} choose another with --host and --port"
    )


async def _listens(host: str, port: int, tree: ProcessTree) -> bool:
    for _ in range(600):
        if tree.pid("gateway") is None:
            return False
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return True
        await asyncio.sleep(0.02)
    return False


async def _listens_on(path: str, tree: ProcessTree) -> bool:
    for _ in range(600):
        if tree.pid("api") is None:
            return False
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_unix_connection(path)
            writer.close()
            return True
        await asyncio.sleep(0.02)
    return False


def _welcome(settings: Settings, host: str, port: int, offline: list[str], brain: Brain, say: Any) -> None:
    place = settings.ledger_file or "PostgreSQL"
    say(f"Overnight is up.   ledger {place}   brain {brain.version[:12]}")
    if not brain.has_routing:
        say(f"  no budgets and no limits: folder {settings.brain} does not exist; `overnight init` creates it")
    elif not brain.limits_spending:
        say(f"  no budgets and no limits: {settings.brain}/routing.yaml defines none")
    say(f"  export OPENAI_BASE_URL=http://{host}:{port}/v1")
    if offline:
        say("  export OPENAI_API_KEY=none    # no provider key is set: responses come from a scripted offline provider")
    say(f"  API http://{host}:{port}/api/v1/jobs    jobs: `overnight jobs`    stop: Ctrl-C")
    if settings.auth == "required" or host not in LOOPBACK:
        say(
            "  calls require a key: create one with `overnight keys create NAME`. Use TLS for access from other machines"
        )


def _say(line: str) -> None:
    print(line, flush=True)


def up(settings: Settings, host: str, port: int, jobs: Sequence[str], say: Any = _say) -> int:
    """Run everything in one process tree until Ctrl-C; the exit code."""
    if not 1 <= port <= 65535:
        raise BadInput(f"--port {port}: expected a number from 1 to 65535")
    missing = [module for module in jobs if module.endswith(".py") and not Path(module).is_file()]
    if missing:
        raise BadInput(f"--jobs {missing[0]}: file not found")
    set_up_log("up")
    # Plain asyncio starts processes without running Python in the forked child, where locks of other threads remain held.
    return asyncio.run(_up(settings, host, port, jobs, say))
