"""`overnight tools`: the contracts of tools, and which rule decides a call."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from overnight.brain import load_brain
from overnight.domain import BadInput
from overnight.domain.json_text import decode_json
from overnight.domain.tools import DEFAULT_CLASS, TOOL_CLASSES, Denied, NeedsApproval, ToolCallFacts, ToolDefinitions
from overnight.process_environment import load_settings_brain
from overnight.settings import Settings
from overnight.story import clean, span_text
from overnight.tools import (
    Explanation,
    TemplateMismatch,
    ToolContract,
    Verdict,
    Violation,
    check_arguments,
    policy_of,
    render_key,
)

from .lookup import tenant_of
from .options import Json, Tenant
from .output import console, print_json, print_rows, say, styled
from .usage import WrongUsage

program = typer.Typer(
    no_args_is_help=True,
    help="""List the contracts of tools, and explain which rule decides a call.

    \b
    Examples:
      overnight tools list
      overnight tools explain refund --arguments '{"payment": "pay_7", "usd": 250}'
    """,
    rich_markup_mode=None,
)
Folder = Annotated[
    Path | None,
    typer.Option("--brain", metavar="FOLDER", help="The brain folder (default: OVERNIGHT_BRAIN, else ./brain)."),
]
_STYLES = {"allow": "green", "approve": "yellow", "deny": "red"}
_LABEL = 10


def _definitions(folder: Path | None) -> ToolDefinitions:
    brain = load_brain(folder) if folder is not None else load_settings_brain(Settings.from_environment())
    return brain.tools


@program.command("list")
def list_contracts(brain: Folder = None, json: Json = False) -> None:
    """List every version of every contract, the highest first. Calls without a version use the highest.

    \b
    Examples:
      overnight tools list
      overnight tools list --json | jq '.contracts[].name'
    """
    definitions = _definitions(brain)
    policy = policy_of(definitions)
    if json:
        rules = [{"name": each.name, "do": each.do, "digest": each.digest} for each in policy.rules]
        listed = [_public(each) for each in policy.contracts]
        print_json({"contracts": listed, "rules": rules, "default": definitions.default})
        return
    rows = [
        [
            (each.label, "bold"),
            (each.tool_class, "red" if each.tool_class == "destructive" else ""),
            (each.key or "", ""),
            (each.drift if each.output is not None or each.asserts else "", ""),
            (", ".join(_checks(each)), "dim"),
        ]
        for each in policy.contracts
    ]
    if rows:
        print_rows(["contract", "class", "key", "drift", "checks"], rows, frozenset())
    else:
        say("No contracts. Write one to tools/NAME.yaml in the brain folder")
    say(f"{len(policy.rules)} rules; calls that no rule matches: {definitions.default}")


def _public(contract: ToolContract) -> dict[str, Any]:
    return {
        "name": contract.name,
        "version": contract.version,
        "class": contract.tool_class,
        "key": contract.key,
        "key_scope": contract.key_scope,
        "repeat_safe": contract.repeat_safe,
        "checks": _checks(contract),
        "drift": contract.drift,
        "digest": contract.digest,
    }


def _checks(contract: ToolContract) -> list[str]:
    found = {"input": contract.input is not None, "output": contract.output is not None, "assert": contract.asserts}
    return [name for name, given in found.items() if given]


@program.command()
def explain(
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="The name of the tool.", show_default=False)],
    arguments: Annotated[str, typer.Option(metavar="JSON", help="The arguments of the call, a JSON object.")] = "{}",
    agent: Annotated[str, typer.Option(metavar="AGENT", help="The agent that calls.")] = "",
    workflow: Annotated[str, typer.Option(metavar="NAME", help="The workflow of the job.")] = "",
    tool_class: Annotated[
        str, typer.Option("--class", metavar="CLASS", help="The class of a tool without a contract.")
    ] = DEFAULT_CLASS,
    first_use: Annotated[
        bool, typer.Option("--first-use/--later-use", help="Whether the API key uses the tool for the first time.")
    ] = False,
    version: Annotated[int | None, typer.Option(metavar="N", help="The version of the contract.", min=1)] = None,
    tenant: Tenant = None,
    brain: Folder = None,
    json: Json = False,
) -> None:
    """Show which rule decides a call, why other rules do not match, its key, and whether its arguments fit. Calls nothing.

    Exit code 1 if the call would be refused: denied, or with arguments that do not fit.

    \b
    Examples:
      overnight tools explain refund --arguments '{"payment": "pay_7", "usd": 250}'
      overnight tools explain send_mail --tenant trial-9 --agent support-7 --json | jq .verdict
    """
    if tool_class not in TOOL_CLASSES:
        raise WrongUsage(f"--class {tool_class[:40]}: expected one of {', '.join(TOOL_CLASSES)}")
    facts = ToolCallFacts(
        tool=tool,
        tool_class=tool_class,
        tenant_id=tenant_of(tenant, Settings.from_environment()),
        agent_id=agent or None,
        workflow=workflow or None,
        arguments=_arguments(arguments),
        first_use=first_use,
        version=version,
    )
    policy = policy_of(_definitions(brain))
    contract = policy.contract(tool, version)
    if version is not None and contract is None:
        raise BadInput(f"{tool} has no contract of version {version}; `overnight tools list` shows all")
    found = policy.explain(facts)
    unfit = check_arguments(contract, facts.arguments) if contract is not None else ()
    key = _key(contract, facts.arguments)
    if json:
        print_json(_public_explanation(found, contract, unfit, key))
    else:
        _show(found, contract, unfit, key)
    raise typer.Exit(1 if unfit or isinstance(found.verdict, Denied) else 0)


def _arguments(text: str) -> dict[str, Any]:
    try:
        found = decode_json(text.encode("utf-8", "surrogatepass"))
    except (msgspec.DecodeError, RecursionError) as error:
        raise WrongUsage(f"--arguments: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise WrongUsage('--arguments: expected a JSON object such as {"usd": 250}')
    return found  # pyright: ignore[reportUnknownVariableType]


def _key(contract: ToolContract | None, arguments: Any) -> str | None:
    if contract is None or contract.key is None:
        return None
    try:
        return render_key(contract.key, arguments)
    except TemplateMismatch:
        return None


def _word(verdict: Verdict) -> str:
    return "deny" if isinstance(verdict, Denied) else "approve" if isinstance(verdict, NeedsApproval) else "allow"


def _public_explanation(
    found: Explanation, contract: ToolContract | None, unfit: tuple[Violation, ...], key: str | None
) -> dict[str, Any]:
    verdict = found.verdict
    return {
        "verdict": _word(verdict),
        "decided_by": list(found.decisive),
        "contract": contract.label if contract is not None else None,
        "key": key,
        "arguments_invalid": [{"pointer": each.pointer, "message": each.message} for each in unfit],
        **msgspec.to_builtins(verdict),
        "rules": [
            {"name": each.rule.name, "do": each.rule.do, "skipped": each.skipped, "counted_as_met": list(each.unsure)}
            for each in found.outcomes
        ],
    }


def _show(found: Explanation, contract: ToolContract | None, unfit: tuple[Violation, ...], key: str | None) -> None:
    verdict = found.verdict
    word = _word(verdict)
    _line("verdict", word, _STYLES[word])
    _line("decided by", clean(", ".join(found.decisive) or "the default: no rule matches", 200), "bold")
    if isinstance(verdict, Denied | NeedsApproval):
        _line("why", clean(verdict.why, 300))
    if isinstance(verdict, NeedsApproval):
        who = ", ".join(verdict.by) or "anyone who may decide reviews"
        _line("approval", f"by {clean(who, 200)}, within {span_text(verdict.expires_ms * 1000)}")
    _line("contract", contract.label if contract is not None else "none: arguments are not checked")
    if key is not None:
        _line("key", clean(key, 300))
    for number, each in enumerate(unfit):
        _line("arguments" if number == 0 else "", clean(str(each), 300), "red")
    if contract is not None and contract.input is not None and not unfit:
        _line("arguments", "fit the contract")
    matching = [each for each in found.outcomes if each.skipped is None and each.rule.name not in found.decisive]
    for number, each in enumerate(matching):
        _line("weaker" if number == 0 else "", clean(f"{each.rule.name} ({each.rule.do})", 200), "dim")
    unsure = [(each.rule.name, why) for each in found.outcomes if each.skipped is None for why in each.unsure]
    for number, (name, why) in enumerate(unsure):
        _line("counted" if number == 0 else "", clean(f"{name}: {why}, so the condition counts as met", 300), "yellow")
    skipped = [each for each in found.outcomes if each.skipped is not None]
    for number, each in enumerate(skipped):
        _line("skipped" if number == 0 else "", clean(f"{each.rule.name}: {each.skipped}", 300), "dim")


def _line(label: str, text: str, style: str = "") -> None:
    console().print(styled((label.ljust(_LABEL + 1), "dim"), (text, style)), soft_wrap=True)
