"""A command group that imports the module of a command when the command is looked up."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer import main as typer_main
from typer._click import Command, HelpFormatter
from typer._click.shell_completion import CompletionItem
from typer.core import TyperGroup
from typer.models import CommandInfo

MAX_WIDTH = 110


class Entry(NamedTuple):
    """A command: its section in the help, `module:attribute` below overnight.cli, and the first sentence of its help."""

    section: str
    place: str
    summary: str


class Formatter(HelpFormatter):
    """Plain help with bold headings; rich would take longer to import than the rest of `overnight --help`."""

    def write_heading(self, heading: str) -> None:
        self.write(f"{'':>{self.current_indent}}{typer.style(heading + ':', bold=True)}\n")


class Context(typer.Context):
    formatter_class = Formatter


class LazyCommands(MutableMapping[str, Command]):
    """Commands by name. Iteration and membership import nothing."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries
        self._loaded: dict[str, Command] = {}

    def __getitem__(self, name: str) -> Command:
        if name not in self._loaded:
            self._loaded[name] = _load(name, self._entries[name])
        return self._loaded[name]

    def __setitem__(self, name: str, command: Command) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        raise TypeError("commands cannot be removed")

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _load(name: str, entry: Entry) -> Command:
    module, _, attribute = entry.place.partition(":")
    found: typer.Typer | Callable[..., Any] = getattr(import_module(f"overnight.cli.{module}"), attribute)
    if isinstance(found, typer.Typer):
        command: Command = typer_main.get_group(found)
        command.name = name
    else:
        info = CommandInfo(name, callback=found)
        command = typer_main.get_command_from_info(info, pretty_exceptions_short=False, rich_markup_mode=None)
    _use_context(command)
    return command


def _use_context(command: Command) -> None:
    command.context_class = Context
    for each in getattr(command, "commands", {}).values():
        _use_context(each)


class LazyGroup(TyperGroup):
    """The root group. Subclasses set `entries`; the help of the root is made from them alone."""

    context_class = Context
    entries: Mapping[str, Entry]

    def __init__(self, **attributes: Any) -> None:
        attributes["commands"] = LazyCommands(self.entries)
        super().__init__(**attributes)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        items = [
            CompletionItem(name, help=entry.summary)
            for name, entry in self.entries.items()
            if name.startswith(incomplete)
        ]
        return items + Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: Any, formatter: HelpFormatter) -> None:  # noqa: ARG002
        for section in dict.fromkeys(entry.section for entry in self.entries.values()):
            rows = [(name, entry.summary) for name, entry in self.entries.items() if entry.section == section]
            with formatter.section(section):
                formatter.write_dl(rows, col_max=12)
