"""`overnight demo`."""

from pathlib import Path
from typing import Annotated

import typer

from overnight.demo import MaildirError
from overnight.demo.play import play
from overnight.domain import BadInput

from .options import Json


def demo(
    maildir: Annotated[
        Path | None,
        typer.Option(help="Your Maildir; the demo works on a copy.", metavar="DIR", show_default=False),
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Use real models; requires OPENAI_API_KEY.")] = False,
    seed: Annotated[
        int | None, typer.Option(help="Seed for the point of the second crash (default: random).", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Run the demo: a mailbox is processed while its worker is killed twice.

    The demo verifies that no mail is sent twice. It requires no key.

    \b
    Examples:
      overnight demo
      overnight demo --seed 7 --json
      overnight demo --maildir ~/Maildir --live
    """

    try:
        code = play(maildir, live, json, seed)
    except MaildirError as error:
        raise BadInput(str(error)) from None
    raise typer.Exit(code)
