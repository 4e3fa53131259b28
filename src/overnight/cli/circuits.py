"""Circuits: which targets failed lately, which are not asked for now, and a way to let calls through at once."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .reading import Json, read

if TYPE_CHECKING:
    from overnight.gateway import Circuit
    from overnight.ledger import Ledger

program = typer.Typer(help="Targets that failed lately, and those that are not asked for now.")
TargetName = Annotated[str, typer.Argument(metavar="TARGET", help="As listed: PROVIDER/MODEL.")]
STYLES = {"closed": "", "open": "red", "half_open": "yellow"}


@program.callback(invoke_without_command=True)
def circuits(context: typer.Context, json: Json = False) -> None:
    """List the circuits of targets that failed lately; a target that is not listed has a closed one without failures.

    \b
    Examples:
      overnight circuits
      overnight circuits --json | jq '.[] | select(.state == "open").target'
      overnight circuits close openai/gpt-5.4
    """
    if context.invoked_subcommand is not None:
        return

    async def work(ledger: "Ledger", _: Any) -> None:
        from overnight.gateway import list_circuits, public_circuit

        found, now = await list_circuits(ledger.store), ledger.store.clock()
        if json:
            from .printing import print_json

            print_json([public_circuit(circuit, now) for circuit in found])
        else:
            _show(found, now)

    read(work)


def _show(found: "list[Circuit]", now: int) -> None:
    from overnight.domain import iso_utc

    from .printing import console, print_rows

    if not found:
        console().print("All circuits are closed, and no target failed lately.")
        return
    heads = ["target", "state", "failures", "open until", "openings", "why"]
    print_rows(heads, [_row(circuit, now, iso_utc) for circuit in found], frozenset({"failures", "openings"}))


def _row(circuit: "Circuit", now: int, iso_utc: Any) -> list[tuple[str, str]]:
    state = circuit.state(now)
    until = iso_utc(circuit.open_until) if circuit.opened_at is not None else ""
    return [
        (circuit.target, ""),
        (state.replace("_", "-"), STYLES[state]),
        (str(circuit.failures), ""),
        (until, ""),
        (str(circuit.openings or ""), ""),
        (circuit.why, "dim"),
    ]


@program.command("close")
def close(target: TargetName) -> None:
    """Let all calls through again at once, as if the target had answered. Gateways hear of it within a second.

    \b
    Examples:
      overnight circuits close openai/gpt-5.4
    """

    async def work(ledger: "Ledger", _: Any) -> None:
        from overnight.domain import BadInput
        from overnight.gateway import CloseCircuit, list_circuits

        from .printing import console

        found = [circuit for circuit in await list_circuits(ledger.store) if circuit.target == target]
        if not found:
            raise BadInput(f"{target}: no such circuit; `overnight circuits` lists those there are")
        was = found[0].state(ledger.store.clock()).replace("_", "-")
        await ledger.store.commit(CloseCircuit((found[0].account, found[0].model)))
        console().print(f"{target} was {was}; it is closed now.")

    read(work)
