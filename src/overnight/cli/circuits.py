"""`overnight circuits`: circuit breakers of targets."""

from typing import Annotated

import typer

from overnight.domain import BadInput
from overnight.gateway import Circuit, CloseCircuit, list_circuits, public_circuit
from overnight.ledger import Ledger
from overnight.settings import Settings
from overnight.story import moment_text

from .actor import operator
from .ledger_reader import read
from .lookup import tenants_of
from .options import AllTenants, By, Json, Tenant, Tz
from .output import console, print_json, print_rows
from .time_zone import use_zone
from .usage import reject_early_options

program = typer.Typer(rich_markup_mode=None)
TargetName = Annotated[str, typer.Argument(metavar="TARGET", help="The target as listed: PROVIDER/MODEL.")]
STYLES = {"closed": "", "open": "red", "half_open": "yellow"}


@program.callback(invoke_without_command=True)
def circuits(
    context: typer.Context,
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """List the circuit breakers of targets that failed recently. All other targets have a closed circuit.

    Each caller (an API key of a tenant) has its own circuit, which only its failures open and only its tenant sees.
    Failures of several callers open the shared circuit.

    \b
    Examples:
      overnight circuits
      overnight circuits --json | jq '.[] | select(.state == "open").target'
      overnight circuits close openai/gpt-5.4
    """
    if context.invoked_subcommand is not None:
        return reject_early_options(context)
    use_zone(tz, json=json)

    async def work(ledger: Ledger, settings: Settings) -> None:

        found, now = await _visible(ledger, tenants_of(tenant, all_tenants, settings)), ledger.store.clock()
        if json:
            print_json([public_circuit(circuit, now) for circuit in found])
        else:
            _show(found, now)

    return read(work)


async def _visible(ledger: Ledger, tenant_id: str) -> list[Circuit]:
    """The shared circuits and those of the tenant's keys; for "", all."""

    found = await list_circuits(ledger.store)
    return [each for each in found if not tenant_id or each.tenant_id in {None, tenant_id}]


def _show(found: list[Circuit], now: int) -> None:

    if not found:
        console().print("All circuits are closed; no target failed recently.")
        return
    # A shared circuit that is closed says less than the caller's circuit of the same target.
    own = {circuit.target for circuit in found if circuit.caller is not None}
    found = [each for each in found if each.caller or each.opened_at is not None or each.target not in own]
    heads = ["target", "callers", "state", "failures", "open until", "times opened", "reason"]
    print_rows(heads, [_row(circuit, now) for circuit in found], frozenset({"failures", "times opened"}))


def _callers(circuit: Circuit) -> str:
    """The callers whose calls the circuit rejects."""
    tenant_id, key_id = circuit.caller or ("", "")
    return "all" if circuit.caller is None else f"{tenant_id}, {key_id}" if key_id else tenant_id


def _reason(why: str) -> str:
    """The failure `class: code` that opened the circuit, once if the two are equal."""
    error_class, _, code = why.partition(": ")
    return error_class if error_class == code else why


def _row(circuit: Circuit, now: int) -> list[tuple[str, str]]:

    state = circuit.state(now)
    until = moment_text(circuit.open_until) if circuit.opened_at is not None else ""
    return [
        (circuit.target, ""),
        (_callers(circuit), ""),
        (state.replace("_", "-"), STYLES[state]),
        (str(circuit.failures), ""),
        (until, ""),
        (str(circuit.openings or ""), ""),
        (_reason(circuit.why), "dim"),
    ]


@program.command("close")
def close(target: TargetName, tenant: Tenant = None, all_tenants: AllTenants = False, by: By = None) -> None:
    """Close the circuits of a target, so that calls reach it again. Gateways apply this within a second.

    \b
    Examples:
      overnight circuits close openai/gpt-5.4
    """
    actor = operator(by)

    async def work(ledger: Ledger, settings: Settings) -> None:

        visible = await _visible(ledger, tenants_of(tenant, all_tenants, settings))
        found = [circuit for circuit in visible if circuit.target == target]
        if not found:
            raise BadInput(f"{target}: circuit not found; `overnight circuits` lists the circuits")
        now = ledger.store.clock()
        states = [circuit.state(now).replace("_", "-") for circuit in found]
        was = next((state for state in states if state != "closed"), "closed")
        for circuit in found:  # the shared one and those of callers
            await ledger.store.commit(CloseCircuit((circuit.account, circuit.model), actor))
        console().print(f"{target}: circuit closed (was {was})", soft_wrap=True)

    read(work)
