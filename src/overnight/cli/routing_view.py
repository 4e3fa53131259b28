"""Decisions and comparisons of routing, for eyes and as JSON."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from overnight.story import clean, cost_text, count_text, span_text

from .output import console, print_rows

if TYPE_CHECKING:
    from overnight.brain import CachePolicy, RouteDecision
    from overnight.gateway import Rerouting

_LABEL = 10


def show_decision(decision: "RouteDecision", ways: Sequence[Mapping[str, Any]]) -> None:
    """The rule that won, where it sends the call, and why the others did not."""
    _line("route", clean(decision.route), "bold")
    _line("why", clean(decision.why, 300))
    if decision.tier is not None:
        weighed = "" if decision.complexity is None else f"  (complexity {decision.complexity:g})"
        _line("tier", decision.tier + weighed)
    for number, way in enumerate(ways, 1):
        _line("targets" if number == 1 else "", f"{number}. {clean(way['model'], 100)}  {_way_text(way)}")
    if not ways:
        _line("targets", "none is left: the call is refused", "red")
    for number, (name, why) in enumerate(decision.rejected):
        _line("rejected" if number == 0 else "", f"{clean(name, 100)}: {clean(why, 200)}", "dim")
    _line("within", f"{span_text(decision.deadline_ms * 1000)}, {_cap_text(decision)}")
    _line("cache", _cache_text(decision.cache))
    if decision.degraded is not None:
        ends = (decision.degraded.cache and "an older answer", decision.degraded.answer and "a fixed answer")
        _line("degraded", ", then ".join(end for end in ends if end))
    _line("all open", decision.when_all_open.replace("_", " "))


def _cap_text(decision: "RouteDecision") -> str:
    if decision.output_cap is None:
        return f"{decision.max_output_tokens:,} output tokens where the call names no cap"
    return f"at most {decision.output_cap:,} output tokens"


def _line(label: str, text: str, style: str = "") -> None:
    from rich.text import Text

    console().print(Text.assemble((label.ljust(_LABEL), "dim"), (text, style)), soft_wrap=True)


def _way_text(way: Mapping[str, Any]) -> str:
    if way["provider"] is None:
        return "nobody serves it: list it under providers.<name>.models"
    price: Mapping[str, float] | None = way["price"]
    said = [str(way["provider"]), "/".join(way["apis"])]
    if price is not None:
        into, cached, out = price.values()
        said.append(f"${into:g} in, ${cached:g} cached, ${out:g} out per million tokens")
    else:
        said.append(str(way["without_price"]))
    if way["residency"]:
        said.append(f"in {', '.join(way['residency'])}")
    return " · ".join(said)


def _cache_text(policy: "CachePolicy") -> str:
    said = [f"exact for {span_text(policy.exact_ttl_s * 1_000_000)}"] if policy.exact_ttl_s else []
    if policy.semantic is not None and policy.semantic.mode != "off":
        said.append(f"semantic {policy.semantic.mode} from {policy.semantic.threshold:g}")
    if policy.prompt_markers:
        said.append("prompt markers")
    return ", ".join(said) or "off"


def public_rerouting(rerouting: "Rerouting", file: str, unseen_headers: Sequence[str]) -> dict[str, Any]:
    """The comparison with stable public names. Sums are over the calls whose price now is known, and only those."""
    moves = list(rerouting.moves())
    priced = [move for move in moves if move.now_microusd is not None]
    then = sum(move.then_microusd for move in priced)
    now = sum(move.now_microusd or 0 for move in priced)
    return {
        "routing": file,
        "calls": sum(move.calls for move in moves),
        "moved": sum(move.calls for move in moves if move.moved),
        "cost_then_usd": then / 1_000_000,
        "cost_now_usd": now / 1_000_000,
        "difference_usd": (now - then) / 1_000_000,
        "rows": [
            {
                "route_then": move.route_then,
                "model_then": move.model_then,
                "route_now": move.route_now,
                "model_now": move.model_now,
                "provider_now": move.provider_now,
                "moved": move.moved,
                "calls": move.calls,
                "cost_then_usd": move.then_microusd / 1_000_000,
                "cost_now_usd": None if move.now_microusd is None else move.now_microusd / 1_000_000,
            }
            for move in moves
        ],
        "left_out": [
            {
                "why": left.why,
                "calls": left.calls,
                "cost_then_usd": left.cost_microusd / 1_000_000,
                "bound_then_usd": left.bound_microusd / 1_000_000,
            }
            for left in rerouting.left_out()
        ],
        "unknown_prices": dict(sorted(rerouting.unpriced.items())),
        "prompts_not_kept": rerouting.erased,
        "headers_not_recorded": list(unseen_headers),
    }


def show_rerouting(public: Mapping[str, Any]) -> None:
    """A row for each way, those that move first; then the sums, then all that is in no sum."""
    out = console()
    rows: Sequence[Mapping[str, Any]] = public["rows"]
    if rows:
        heads = ("then", "now", "calls", "cost then", "cost now", "difference")
        print_rows(heads, [*map(_row, rows), _total(public)], frozenset(heads[2:]))
    moved = f"{public['moved']} of {count_text(public['calls'], 'call')} would move"
    sums = _cost(public["cost_then_usd"]), _cost(public["cost_now_usd"]), _signed(public["difference_usd"])
    out.print(f"{moved} · {sums[0]} then, {sums[1]} under {clean(public['routing'])} ({sums[2]})", soft_wrap=True)
    for line in _remarks(public):
        out.print(line, style="yellow", soft_wrap=True)


def _row(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    now = row["cost_now_usd"]
    style = "" if row["moved"] else "dim"
    return [
        (f"{clean(row['route_then'], 40)} · {clean(row['model_then'], 40)}", style),
        (f"{clean(row['route_now'], 40)} · {clean(row['model_now'], 40)}", style),
        (str(row["calls"]), style),
        (_cost(row["cost_then_usd"]), style),
        ("unknown", "yellow") if now is None else (_cost(now), style),
        ("unknown", "yellow") if now is None else (_signed(now - row["cost_then_usd"]), style),
    ]


def _total(public: Mapping[str, Any]) -> list[tuple[str, str]]:
    calls = sum(row["calls"] for row in public["rows"] if row["cost_now_usd"] is not None)
    texts = (
        "total",
        "",
        str(calls),
        _cost(public["cost_then_usd"]),
        _cost(public["cost_now_usd"]),
        _signed(public["difference_usd"]),
    )
    return [(text, "bold") for text in texts]


def _remarks(public: Mapping[str, Any]) -> Iterable[str]:
    for model, calls in public["unknown_prices"].items():
        yield f"no price is known for {clean(model, 100)}: {count_text(calls, 'call')} in no sum; state it in `prices`"
    for left in public["left_out"]:
        cost = _cost(left["cost_then_usd"])
        bound = f" and at most {_cost(left['bound_then_usd'])} unknown" if left["bound_then_usd"] else ""
        yield f"not compared: {count_text(left['calls'], 'call')} at {cost}{bound}, {clean(left['why'], 300)}"
    if public["prompts_not_kept"]:
        yield f"{count_text(public['prompts_not_kept'], 'prompt')} no longer kept: weighed as simple"
    for header in public["headers_not_recorded"]:
        yield f"the header {header} is recorded once the brain's own rules look at it; until then no call has it"


def _cost(usd: float) -> str:
    return cost_text(round(usd * 1_000_000))


def _signed(usd: float) -> str:
    return f"{'-' if usd < 0 else '+'}{_cost(abs(usd))}" if round(usd * 1_000_000) else "no difference"
