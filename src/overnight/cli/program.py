"""The program: its commands and what they are called. Each command's work is imported when it is run."""

from typing import Annotated

import typer

from . import (
    brain as folders,
)
from . import (
    budget as budgeting,
)
from . import (
    cache as caching,
)
from . import (
    circuits,
    keys,
    roles,
    routing,
)
from . import (
    jobs as reading,
)
from . import (
    reviews as reviewing,
)
from . import (
    run as acting,
)
from .output import say

program = typer.Typer(
    name="overnight",
    help="The operations layer under AI agents: one job_id explains what happened.",
    epilog="Start with `overnight demo`. Settings come from the environment: OVERNIGHT_HOME, DATABASE_URL, OVERNIGHT_BRAIN,"
    " OVERNIGHT_TENANT.",
    no_args_is_help=True,
    # A traceback with local variables could show prompts and keys.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from overnight import __version__

        say(f"overnight {__version__}")
        raise typer.Exit


@program.callback()
def _options(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


READ, ACT, SET_UP, FLEET = "What happened", "Do something", "Set up", "Roles of a fleet"

program.command("up", rich_help_panel=SET_UP)(acting.up)
program.command("demo", rich_help_panel=SET_UP)(acting.demo)
program.command("init", rich_help_panel=SET_UP)(folders.init)
program.command("check", rich_help_panel=SET_UP)(folders.check)
program.add_typer(keys.program, name="keys", rich_help_panel=SET_UP)
program.add_typer(routing.program, name="route", rich_help_panel=SET_UP)
program.command("jobs", rich_help_panel=READ)(reading.jobs)
program.command("explain", rich_help_panel=READ)(reading.explain)
program.command("events", rich_help_panel=READ)(reading.events)
program.command("cache", rich_help_panel=READ)(caching.cache)
program.command("run", rich_help_panel=ACT)(acting.run)
program.command("resume", rich_help_panel=ACT)(acting.resume)
program.command("cancel", rich_help_panel=ACT)(acting.cancel)
program.add_typer(circuits.program, name="circuits", rich_help_panel=READ)
program.add_typer(reviewing.program, name="reviews", rich_help_panel=ACT)
program.add_typer(budgeting.program, name="budget", rich_help_panel=ACT)
program.command("gateway", rich_help_panel=FLEET)(roles.gateway)
program.command("worker", rich_help_panel=FLEET)(roles.worker)
