"""Errors in how a command was called: exit code 2."""

import typer

from overnight.domain import BadInput

MAX_NOTE = 2000


class WrongUsage(BadInput):
    """The command line is invalid: exit code 2."""


def check_note(option: str, text: str) -> str:
    """Return the text of --why or --note. Raises WrongUsage where it is longer than 2,000 characters."""
    if len(text) > MAX_NOTE:
        raise WrongUsage(f"{option}: {len(text):,} characters; the maximum is {MAX_NOTE:,}")
    return text


def reject_early_options(context: typer.Context) -> None:
    """Raises WrongUsage for an option before the subcommand, where it would be lost: `budget --tenant a top-up`."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            command = f"{context.command_path} {context.invoked_subcommand}"
            raise WrongUsage(f"{parameter.opts[0]} must come after the subcommand: `{command} {parameter.opts[0]}`")
