"""The program `overnight` and the table of its commands."""

import sys
from typing import Annotated

import typer

from overnight import __version__

from .lazy_group import Entry, LazyGroup

SETUP, HISTORY, ACTIONS, FLEET = "Setup", "History", "Actions", "Fleet roles"
COMMANDS = {
    "up": Entry(SETUP, "roles:up", "Run the gateway, the API and a worker on this machine until Ctrl-C."),
    "demo": Entry(SETUP, "demo:demo", "Run the demo: a mailbox is processed while its worker is killed twice."),
    "init": Entry(SETUP, "brain:init", "Write a starter brain folder: routing.yaml, a prompt and a README."),
    "check": Entry(SETUP, "brain:check", "Check the brain folder and report every problem with its position."),
    "brain": Entry(SETUP, "brain_versions:program", "Compare and list versions of the brain folder."),
    "reload": Entry(SETUP, "brain_versions:reload", "Make running gateways and workers load the current brain folder."),
    "keys": Entry(SETUP, "keys:program", "Manage API keys of the gateway and provider keys of tenants."),
    "notifications": Entry(SETUP, "notifications:program", "Tell people about reviews by webhook, mail or Slack."),
    "route": Entry(SETUP, "routing:program", "Explain routing decisions, and estimate costs under other rules."),
    "tools": Entry(SETUP, "tools:program", "List the contracts of tools, and explain which rule decides a call."),
    "jobs": Entry(HISTORY, "jobs:jobs", "List jobs, newest first."),
    "explain": Entry(HISTORY, "jobs:explain", "Show the timeline of a job: what it did, why, and what to do next."),
    "receipt": Entry(
        HISTORY, "receipt:receipt", "Show the receipt of a job: each effect, its state, and how Overnight knows it."
    ),
    "events": Entry(HISTORY, "jobs:events", "Show the recorded events of a job."),
    "audit": Entry(HISTORY, "audit:program", "List changes of keys, budgets, circuits and the brain."),
    "cache": Entry(HISTORY, "cache:cache", "Show cache hits and savings of each agent."),
    "circuits": Entry(HISTORY, "circuits:program", "List the circuit breakers of targets that failed recently."),
    "run": Entry(ACTIONS, "run:run", "Run a job in the foreground and show its events."),
    "resume": Entry(ACTIONS, "run:resume", "Resume a job that was interrupted, parked or failed."),
    "cancel": Entry(ACTIONS, "run:cancel", "Cancel a job and its child jobs."),
    "reviews": Entry(ACTIONS, "reviews:program", "List, show, decide and renew reviews."),
    "budget": Entry(ACTIONS, "budget:program", "Show limits and budgets, add to a budget, and correct costs."),
    "gateway": Entry(
        FLEET, "roles:gateway", "Serve the gateway in this process, and the API if no --api-socket is given."
    ),
    "api": Entry(FLEET, "roles:api", "Serve the API behind a gateway, so that long reports do not delay model calls."),
    "worker": Entry(FLEET, "roles:worker", "Run jobs in this process."),
}


class Root(LazyGroup):
    entries = COMMANDS


program = typer.Typer(
    name="overnight",
    cls=Root,
    help="The operations layer under AI agents: it records, meters and limits model calls and tool calls.",
    epilog="Start with `overnight demo`. Settings come from the environment: OVERNIGHT_HOME, DATABASE_URL, OVERNIGHT_BRAIN,"
    " OVERNIGHT_TENANT.",
    no_args_is_help=True,
    # A traceback with local variables could show prompts and keys.
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"overnight {__version__}\n")
        raise typer.Exit


@program.callback()
def _options(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass
