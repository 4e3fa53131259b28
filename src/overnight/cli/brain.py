"""The brain folder: write a starter, check it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .jobs import Json
from .output import say

Folder = Annotated[
    Path | None, typer.Argument(help="The brain folder (default: OVERNIGHT_BRAIN, else ./brain).", show_default=False)
]


def _chosen(folder: Path | None) -> Path:
    if folder is not None:
        return folder
    from overnight.settings import Settings

    chosen = Settings.from_environment().brain
    return chosen.relative_to(Path.cwd()) if chosen.is_relative_to(Path.cwd()) else chosen


def init(folder: Folder = None) -> None:
    """Write a starter brain: a commented routing.yaml, a prompt, a README. Writes nothing over what is there.

    \b
    Examples:
      overnight init
      overnight init ops/brain
    """
    from overnight.brain import write_starter
    from overnight.domain import BadInput

    chosen = _chosen(folder)
    try:
        written = write_starter(chosen)
    except OSError as error:
        told = (
            error
            if isinstance(error, FileExistsError) and error.errno is None
            else f"{chosen}: cannot be written: {error.strerror}"
        )
        raise BadInput(str(told)) from None
    for path in written:
        say(f"wrote {path}")
    say("Next: read routing.yaml, then `overnight check` and `overnight up`")


def check(folder: Folder = None, json: Json = False) -> None:
    """Check the brain folder: every problem at once, as file:line:column. Exit code 1 when there are errors.

    \b
    Examples:
      overnight check
      overnight check ops/brain --json | jq '.problems[].file'
    """
    from overnight.brain import Problem, check_brain
    from overnight.gateway import PriceBook

    chosen = _chosen(folder)
    problems = check_brain(chosen, PriceBook)
    errors = sum(problem.severity == "error" for problem in problems)
    if json:
        import msgspec

        from .output import print_json

        public: list[dict[str, Any]] = [msgspec.to_builtins(problem) for problem in problems]
        print_json({"folder": str(chosen), "errors": errors, "warnings": len(problems) - errors, "problems": public})
        raise typer.Exit(1 if errors else 0)
    from .output import console

    def show(problem: Problem) -> None:
        from rich.text import Text

        style = "red" if problem.severity == "error" else "yellow"
        place = f"{problem.file}:{problem.line}:{problem.column}: "
        hint = (f"\n    {problem.hint}", "dim") if problem.hint else ""
        line = Text.assemble((place, "bold"), (f"{problem.severity}: ", style), problem.message, hint)
        console().print(line, soft_wrap=True)

    for problem in problems:
        show(problem)
    warnings = f", {_counted(len(problems) - errors, 'warning')}" if len(problems) > errors else ""
    verdict = f"{_counted(errors, 'error')}{warnings}" if problems else "nothing wrong"
    console().print(f"{chosen}: {verdict}", soft_wrap=True)
    raise typer.Exit(1 if errors else 0)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
