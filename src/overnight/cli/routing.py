"""`overnight route`: explain routing decisions, and replay recorded calls under other rules."""

import asyncio
import random
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from overnight.brain import RouteDecision, Routing, UnknownModel, load_routing
from overnight.domain import Attribution, BadInput, CallFacts
from overnight.domain.formats import ROUTED_FORMATS
from overnight.gateway import (
    CODECS,
    PriceBook,
    RoutingSimulation,
    UnknownPrice,
    parse_tags,
    recorded_calls,
    routing_facts,
    with_metadata,
)
from overnight.ledger import JobRow, Ledger
from overnight.process_environment import load_settings_brain
from overnight.settings import Settings

from .ledger_reader import PAGE, read
from .lookup import find_job, tenant_of, tenants_of
from .options import AllTenants, Json, Tenant
from .output import print_json
from .routing_view import public_rerouting, show_decision, show_simulation
from .since import since_us_of
from .usage import WrongUsage

program = typer.Typer(
    no_args_is_help=True,
    help="""Explain routing decisions, and estimate costs under other rules.

    \b
    Examples:
      overnight route explain --task draft
      overnight route replay --routing cheaper.yaml --since 7d
    """,
    rich_markup_mode=None,
)
RoutingFile = Annotated[
    Path | None,
    typer.Option("--routing", metavar="FILE", help="A routing.yaml (default: that of the brain).", show_default=False),
]


def _chosen(file: Path | None) -> Routing:

    return load_routing(file) if file is not None else load_settings_brain(Settings.from_environment()).routing


@program.command()
def explain(
    model: Annotated[str, typer.Option(metavar="MODEL", help="The requested model.")] = "",
    task: Annotated[str, typer.Option(metavar="TASK", help="x-task.")] = "",
    agent: Annotated[str, typer.Option(metavar="AGENT", help="x-agent-name.")] = "",
    workflow: Annotated[str, typer.Option(metavar="NAME", help="x-workflow.")] = "",
    tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="One of x-tags; may be repeated.")] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A request header; may be repeated.")
    ] = None,
    session: Annotated[str, typer.Option(metavar="SESSION", help="x-session-id.")] = "",
    job: Annotated[str, typer.Option(metavar="JOB", help="x-job-id.")] = "",
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help=f"One of {', '.join(ROUTED_FORMATS)}.")
    ] = "chat",
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="The prompt, whose complexity selects the tier of a tiered route.")
    ] = "",
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", metavar="BODY.json", help="A request body, for its model, metadata and prompt."),
    ] = None,
    routing: RoutingFile = None,
    json: Json = False,
) -> None:
    """Show which rule matches a request, why other rules do not, and its targets. Calls no provider and writes nothing.

    Exit code 1 if the request would be rejected. Circuit breakers are not considered.

    \b
    Examples:
      overnight route explain --task draft
      overnight route explain --model auto --agent support-7 --tag eu --header x-plan=gold
      overnight route explain -f body.json --session s-1 --json | jq .targets
    """

    chosen = _chosen(routing)
    attribution = Attribution(
        job_id=job or None,
        agent_id=agent or None,
        session_id=session or None,
        task_id=task or None,
        workflow=workflow or None,
        tags=parse_tags(",".join(tag or ()), "--tag"),
        headers=_headers(header or ()),
    )
    facts = _facts(attribution, form, model, prompt, file)
    try:
        decision = chosen.decide(facts)
    except UnknownModel as error:
        raise BadInput(str(error)) from None
    _show(chosen, decision, json)
    raise typer.Exit(0 if decision.targets else 1)


def _show(routing: Routing, decision: RouteDecision, json: bool) -> None:

    targets = _targets(routing, PriceBook(routing.prices), decision)
    if json:
        public: dict[str, Any] = msgspec.to_builtins(decision) | {"targets": targets}
        public["rejected"] = [{"name": name, "why": why} for name, why in decision.rejected]
        print_json(public)
    else:
        show_decision(decision, targets)


def _headers(given: tuple[str, ...] | list[str]) -> dict[str, str]:

    found: dict[str, str] = {}
    for each in given:
        name, sign, value = each.partition("=")
        if not sign or not name.strip():
            raise WrongUsage(f"--header {each[:80]}: expected NAME=VALUE, such as x-plan=gold")
        found[name.strip().lower()] = value.strip()
    return found


def _facts(attribution: Attribution, form: str, model: str, prompt: str, file: Path | None) -> CallFacts:
    """The facts that the gateway would derive from the request; options override the body."""

    if form not in CODECS:
        raise WrongUsage(f"--format {form[:40]}: expected one of {', '.join(CODECS)}")
    if file is None:
        stated = msgspec.json.encode(
            {"model": model or "auto", "messages": [{"role": "user", "content": prompt or " "}]}
        )
        facts = routing_facts(attribution, CODECS["chat"].read(stated))
        return msgspec.structs.replace(facts, model=model or None, format=form)
    try:
        request = CODECS[form].read(file.read_bytes())
    except OSError as error:
        raise BadInput(f"{file}: cannot read: {error.strerror}") from None
    facts = routing_facts(with_metadata(attribution, request.metadata), request)
    changed: dict[str, Any] = {"model": model} if model else {}
    return msgspec.structs.replace(facts, **changed | ({"text": lambda: prompt} if prompt else {}))


def _targets(routing: Routing, book: Any, decision: RouteDecision) -> list[dict[str, Any]]:
    """The targets with their providers, prices and data residency."""

    targets: list[dict[str, Any]] = []
    for model in decision.targets:
        provider = routing.provider_for(model)
        target: dict[str, Any] = {"model": model, "provider": provider.name if provider else None, "price": None}
        if provider is not None:
            target |= {
                "apis": provider.apis,
                "residency": sorted(provider.residency),
                "api_key_env": provider.api_key_env,
            }
        try:
            rates = book.price(model, provider.name if provider else None).usd_per_mtok
            names = ("input_usd_per_mtok", "cached_input_usd_per_mtok", "output_usd_per_mtok")
            target["price"] = dict(zip(names, rates, strict=True))
        except UnknownPrice as error:
            target["without_price"] = f"not called: {error}"
        targets.append(target)
    return targets


@program.command()
def replay(
    routing: Annotated[Path, typer.Option("--routing", metavar="FILE", help="The routing.yaml to compare with.")],
    since: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="Only calls since 7d or 12h ago, or since 2026-01-31 or 2026-01-31T02:00 (UTC)."
        ),
    ] = "",
    job: Annotated[str, typer.Option(metavar="JOB", help="Only this job and its child jobs.")] = "",
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    json: Json = False,
) -> None:
    """Route recorded calls again with another routing.yaml, and compare targets and costs.

    A call that keeps its model keeps its cost, unless the file sets another price. A call that changes its model is
    priced with the tokens that it used. Calls no provider and writes nothing.

    \b
    Examples:
      overnight route replay --routing cheaper.yaml
      overnight route replay --routing cheaper.yaml --since 7d
      overnight route replay --routing cheaper.yaml --job last --json | jq .difference_usd
    """

    other, present = load_routing(routing), _chosen(None)

    async def work(ledger: Ledger, settings: Settings) -> None:
        begin = since_us_of(since, ledger.store.clock())
        tenant_id = tenants_of(tenant, all_tenants, settings)
        named = await find_job(ledger, job, tenant_of(tenant, settings)) if job else None
        simulation = RoutingSimulation(
            ledger,
            other,
            PriceBook(other.prices),
            # The seed makes random choices among weighted targets reproducible.
            partial(other.decide, chance=random.Random(0).random),  # noqa: S311
            present=present,
            present_prices=PriceBook(present.prices),
        )
        async for row in _jobs(ledger, named, tenant_id, begin):
            for call in recorded_calls(row, await ledger.events(row.job_id)):
                if call.at >= begin:
                    await simulation.take(call)
        public = public_rerouting(simulation, str(routing), sorted(other.header_names - present.header_names))
        if json:
            print_json(public)
        else:
            show_simulation(public)

    read(work)


async def _jobs(ledger: Ledger, named: JobRow | None, tenant_id: str, since_us: int) -> AsyncIterator[JobRow]:
    """The named job and its child jobs; else the tenant's jobs that were active since then."""
    if named is not None:
        waiting = [named]
        while waiting:
            job = waiting.pop()
            waiting += await ledger.children(job.job_id)
            yield job
        return
    before = ""
    while page := await ledger.jobs(tenant_id=tenant_id, before=before, most=PAGE):
        for job in page:
            if (job.active_at or job.created_at) >= since_us:
                yield job
        before = page[-1].job_id
        await asyncio.sleep(0)
