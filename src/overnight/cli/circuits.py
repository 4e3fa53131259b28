"""Circuits: which targets failed lately, which are not asked for now, and a way to let calls through at once."""

from typing import TYPE_CHECKING, Annotated

import typer

from .jobs import Json, read
from .lookup import (
    AllTenants,
    Tenant,
    refuse_early_options,
    tenants_of,
)
from .time_zone import Tz, use_zone

if TYPE_CHECKING:
    from overnight.gateway import Circuit
    from overnight.ledger import Ledger
    from overnight.settings import Settings

program = typer.Typer()
TargetName = Annotated[str, typer.Argument(metavar="TARGET", help="As listed: PROVIDER/MODEL.")]
STYLES = {"closed": "", "open": "red", "half_open": "yellow"}


@program.callback(invoke_without_command=True)
def circuits(
    context: typer.Context,
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """List the circuits of targets that failed lately; a target that is not listed has a closed one without failures.

    Each caller (a tenant's key) has a circuit of its own, which its failures alone open and which is listed for its tenant alone.
    Failures of several callers open the one of all.

    \b
    Examples:
      overnight circuits
      overnight circuits --json | jq '.[] | select(.state == "open").target'
      overnight circuits close openai/gpt-5.4
    """
    if context.invoked_subcommand is not None:
        return refuse_early_options(context)
    use_zone(tz, json=json)

    async def work(ledger: "Ledger", settings: "Settings") -> None:
        from overnight.gateway import public_circuit

        found, now = await _visible(ledger, tenants_of(tenant, all_tenants, settings)), ledger.store.clock()
        if json:
            from .output import print_json

            print_json([public_circuit(circuit, now) for circuit in found])
        else:
            _show(found, now)

    return read(work)


async def _visible(ledger: "Ledger", tenant_id: str) -> "list[Circuit]":
    """The shared circuits and those of the tenant's own keys; with no tenant, all."""
    from overnight.gateway import list_circuits

    found = await list_circuits(ledger.store)
    return [each for each in found if not tenant_id or each.tenant_id in {None, tenant_id}]


def _show(found: "list[Circuit]", now: int) -> None:
    from .output import console, print_rows

    if not found:
        console().print("All circuits are closed, and no target failed lately.")
        return
    # What counts for all stands in a caller's own circuit too, which says more as long as the one of all is closed.
    own = {circuit.target for circuit in found if circuit.caller is not None}
    found = [each for each in found if each.caller or each.opened_at is not None or each.target not in own]
    heads = ["target", "for", "state", "failures", "open until", "openings", "why"]
    print_rows(heads, [_row(circuit, now) for circuit in found], frozenset({"failures", "openings"}))


def _whom(circuit: "Circuit") -> str:
    """Whose calls it keeps out."""
    tenant_id, key_id = circuit.caller or ("", "")
    return "all" if circuit.caller is None else f"{tenant_id}, {key_id}" if key_id else tenant_id


def _row(circuit: "Circuit", now: int) -> list[tuple[str, str]]:
    from overnight.story import moment_text

    state = circuit.state(now)
    until = moment_text(circuit.open_until) if circuit.opened_at is not None else ""
    return [
        (circuit.target, ""),
        (_whom(circuit), ""),
        (state.replace("_", "-"), STYLES[state]),
        (str(circuit.failures), ""),
        (until, ""),
        (str(circuit.openings or ""), ""),
        (circuit.why, "dim"),
    ]


@program.command("close")
def close(target: TargetName, tenant: Tenant = None, all_tenants: AllTenants = False) -> None:
    """Let all calls through again at once, as if the target had answered. Gateways hear of it within a second.

    \b
    Examples:
      overnight circuits close openai/gpt-5.4
    """

    async def work(ledger: "Ledger", settings: "Settings") -> None:
        from overnight.domain import BadInput
        from overnight.gateway import CloseCircuit

        from .output import console

        visible = await _visible(ledger, tenants_of(tenant, all_tenants, settings))
        found = [circuit for circuit in visible if circuit.target == target]
        if not found:
            raise BadInput(f"{target}: no such circuit; `overnight circuits` lists those there are")
        now = ledger.store.clock()
        states = [circuit.state(now).replace("_", "-") for circuit in found]
        was = next((state for state in states if state != "closed"), "closed")
        for circuit in found:  # the one of all callers, and callers' own
            await ledger.store.commit(CloseCircuit((circuit.account, circuit.model)))
        console().print(f"{target} was {was}; it is closed now.", soft_wrap=True)

    read(work)
