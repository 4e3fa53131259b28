"""`overnight brain` and `overnight reload`: stored versions of the brain folder."""

import asyncio
import difflib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from overnight.brain import check_brain, read_files
from overnight.domain import BadInput, iso_utc
from overnight.gateway import PriceBook
from overnight.ledger import (
    KeepBrain,
    Ledger,
    find_brain_version,
    list_brain_versions,
    list_changed_files,
    read_brain_files,
)
from overnight.process_environment import load_settings_brain, open_ledger
from overnight.settings import Settings
from overnight.story import count_text, moment_text

from .actor import operator
from .brain import show_problems
from .ledger_reader import read
from .options import By, Json, Tz
from .output import console, print_json, print_rows, say, styled
from .time_zone import use_zone

SHORT = 12
STYLES = {"+": "green", "-": "red", "@": "cyan"}
program = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="""Compare and list versions of the brain folder.

    \b
    Examples:
      overnight brain history
      overnight brain diff 3f2a9c
    """,
)
VersionOrFolder = Annotated[
    str,
    typer.Argument(
        help="A brain version or its first digits, or a folder. A folder takes precedence.", show_default=False
    ),
]


@program.command()
def diff(
    before: VersionOrFolder,
    after: Annotated[
        str,
        typer.Argument(help="The version or folder to compare with (default: the brain folder).", show_default=False),
    ] = "",
    json: Json = False,
) -> None:
    """Compare two versions of the brain, file by file.

    \b
    Examples:
      overnight brain diff 3f2a9c
      overnight brain diff 3f2a9c 77b0e1 --json | jq '.files[].path'
      overnight brain diff brain ops/brain
    """
    settings = Settings.from_environment()
    (name, old), (other, new) = (_files(name, settings) for name in (before, after or str(settings.brain)))
    changes = list(_changes(old, new))
    if json:
        print_json({"before": name, "after": other, "files": changes})
        return
    for change in changes:
        for line in change["diff"].splitlines():
            console().print(styled((_printable(line), STYLES.get(line[:1], ""))), soft_wrap=True)
    if not changes:
        say("The versions are equal")


def _files(name: str, settings: Settings) -> tuple[str, dict[str, bytes]]:
    """The name and the files of a folder, or of a stored version."""
    if Path(name).is_dir():
        return name, read_files(Path(name))
    ledger = open_ledger(settings)
    with ledger.store:
        return asyncio.run(_stored(ledger, name))


async def _stored(ledger: Ledger, prefix: str) -> tuple[str, dict[str, bytes]]:
    version = await find_brain_version(ledger.store, prefix)
    return version, await read_brain_files(ledger.store, version)


def _changes(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
    for path in sorted({*old, *new}):
        before, after = old.get(path), new.get(path)
        if before != after:
            kind = "added" if before is None else "removed" if after is None else "changed"
            yield {"path": path, "change": kind, "diff": _unified(path, before, after)}


def _unified(path: str, before: bytes | None, after: bytes | None) -> str:
    names = ("/dev/null" if before is None else f"a/{path}", "/dev/null" if after is None else f"b/{path}")
    try:
        old, new = ((body or b"").decode().splitlines() for body in (before, after))
    except UnicodeDecodeError:
        return f"--- {names[0]}\n+++ {names[1]}\nThe files are not text and differ\n"
    return "\n".join(difflib.unified_diff(old, new, *names, lineterm="")) + "\n"


def _printable(line: str) -> str:
    return "".join(each if each.isprintable() or each == "\t" else "�" for each in line)


@program.command()
def history(
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, max=1000, help="The maximum number of versions.")
    ] = 20,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """List the brain versions of this ledger, latest first, with their jobs and changed files.

    \b
    Examples:
      overnight brain history
      overnight brain history --json | jq '.[0].changed'
    """
    use_zone(tz, json=json)

    async def work(ledger: Ledger, _: Settings) -> None:
        found = await list_brain_versions(ledger.store, limit + 1)
        changed = [
            await list_changed_files(ledger.store, older.version, newer.version)
            for newer, older in itertools.pairwise(found)
        ]
        changed += [[] for _ in found[len(changed) :]]
        pairs = list(zip(found, changed, strict=True))[:limit]
        if json:
            print_json([
                {
                    "version": each.version,
                    "stored_at": iso_utc(each.stored_at),
                    "activated_at": iso_utc(each.activated_at),
                    "jobs": each.jobs,
                    "files": each.files,
                    "changed": paths,
                }
                for each, paths in pairs
            ])  # fmt: skip
            return
        rows: list[list[tuple[str, str]]] = []
        for each, paths in pairs:
            row = [(each.version[:SHORT], ""), (moment_text(each.stored_at), ""), (moment_text(each.activated_at), "")]
            row += [(str(each.jobs), ""), (str(each.files), ""), (_printable(", ".join(paths)), "dim")]
            rows.append(row)
        if rows:
            print_rows(
                ["version", "first seen", "last activated", "jobs", "files", "changed"],
                rows,
                frozenset({"jobs", "files"}),
            )
        else:
            say("No brain versions. A gateway, a worker or `overnight run` stores the version that it starts with")

    read(work)


def reload(by: By = None, json: Json = False) -> None:
    """Make running gateways and workers load the current brain folder.

    This affects all processes of this ledger. The folder is checked first; if it has errors, nothing changes. Running jobs
    keep the version that they started with.

    \b
    Example:
      overnight reload
    """
    settings, actor = Settings.from_environment(), operator(by)
    problems = check_brain(settings.brain, PriceBook)
    if any(problem.severity == "error" for problem in problems):
        show_problems(settings.brain, problems, json=json)
        raise BadInput(f"{settings.brain} has errors, so nothing was reloaded")
    brain = load_settings_brain(settings)
    ledger = open_ledger(settings)

    async def work() -> tuple[str, list[str]]:
        active = await find_brain_version(ledger.store, "") if await list_brain_versions(ledger.store, 1) else ""
        await ledger.store.commit(KeepBrain(brain.version, brain.files, reload_by=actor))
        return active, await list_changed_files(ledger.store, active, brain.version) if active else []

    with ledger.store:
        before, changed = asyncio.run(work())
    if json:
        print_json({"version": brain.version, "before": before or None, "changed": changed})
    else:
        what = f"; changed: {_printable(', '.join(changed))}" if changed else ""
        say(f"Brain {brain.version[:SHORT]} ({count_text(len(brain.files), 'file')}){what}")
        say("Gateways and workers of this ledger load it within seconds; running jobs keep their version")
