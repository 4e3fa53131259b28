"""Options and arguments that several commands share."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON with stable public names.")]
Content = Annotated[bool, typer.Option("--content", help="Include shortened prompts, answers, arguments and results.")]
JobName = Annotated[
    str, typer.Argument(metavar="JOB", help="A job id or its prefix, an external id, or `last`.", show_default=False)
]
Tenant = Annotated[
    str | None,
    typer.Option(
        "--tenant",
        metavar="TENANT",
        help="The tenant (default: OVERNIGHT_TENANT, else default).",
        show_default=False,
    ),
]
AllTenants = Annotated[bool, typer.Option("--all-tenants", help="Include every tenant.")]
Tz = Annotated[
    str | None,
    typer.Option(
        "--tz", metavar="ZONE", help="Time zone for display, such as Europe/Berlin (default: the local zone)."
    ),
]
By = Annotated[str | None, typer.Option(help="The actor to record (default: the user of this system).", metavar="NAME")]
Why = Annotated[str, typer.Option(help="The reason, which the timeline shows.", metavar="TEXT")]
