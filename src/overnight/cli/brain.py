"""`overnight init` and `check`: the brain folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from overnight.brain import Problem, check_brain, write_starter
from overnight.domain import BadInput
from overnight.gateway import PriceBook
from overnight.settings import Settings

from .options import Json
from .output import console, print_json, say, styled

Folder = Annotated[
    Path | None, typer.Argument(help="The brain folder (default: OVERNIGHT_BRAIN, else ./brain).", show_default=False)
]


def _chosen(folder: Path | None) -> Path:
    if folder is not None:
        return folder

    chosen = Settings.from_environment().brain
    return chosen.relative_to(Path.cwd()) if chosen.is_relative_to(Path.cwd()) else chosen


def init(folder: Folder = None) -> None:
    """Write a starter brain folder: routing.yaml, a prompt and a README. Existing files are not overwritten.

    \b
    Examples:
      overnight init
      overnight init ops/brain
    """

    chosen = _chosen(folder)
    try:
        written = write_starter(chosen)
    except OSError as error:
        exists = isinstance(error, FileExistsError) and error.errno is None
        raise BadInput(str(error) if exists else f"{chosen}: cannot write: {error.strerror}") from None
    for path in written:
        say(f"wrote {path}")
    say("Next: read routing.yaml, then `overnight check` and `overnight up`")


def check(folder: Folder = None, json: Json = False) -> None:
    """Check the brain folder and report every problem with its position. Exit code 1 if there are errors.

    \b
    Examples:
      overnight check
      overnight check ops/brain --json | jq '.problems[].file'
    """

    chosen = _chosen(folder)
    problems = check_brain(chosen, PriceBook)
    show_problems(chosen, problems, json=json)
    raise typer.Exit(1 if any(problem.severity == "error" for problem in problems) else 0)


def show_problems(folder: Path, problems: Sequence[Problem], *, json: bool) -> None:
    """Print every problem of a brain folder, and their numbers."""
    errors = sum(problem.severity == "error" for problem in problems)
    if json:
        public: list[dict[str, Any]] = [msgspec.to_builtins(problem) for problem in problems]
        print_json({"folder": str(folder), "errors": errors, "warnings": len(problems) - errors, "problems": public})
        return
    for problem in problems:
        style = "red" if problem.severity == "error" else "yellow"
        place = f"{problem.file}:{problem.line}:{problem.column}: "
        hint = (f"\n    {problem.hint}", "dim") if problem.hint else ""
        line = styled((place, "bold"), (f"{problem.severity}: ", style), problem.message, hint)
        console().print(line, soft_wrap=True)
    warnings = f", {_counted(len(problems) - errors, 'warning')}" if len(problems) > errors else ""
    verdict = f"{_counted(errors, 'error')}{warnings}" if problems else "no problems found"
    console().print(f"{folder}: {verdict}", soft_wrap=True)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
