"""Routing decisions and comparisons, as text and as JSON."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from overnight.brain import CachePolicy, RouteDecision
from overnight.gateway import RoutingSimulation
from overnight.story import clean, cost_text, count_text, span_text

from .output import console, print_rows, styled

_LABEL = 10


def show_decision(decision: RouteDecision, targets: Sequence[Mapping[str, Any]]) -> None:
    """The matching rule, its targets, and why the other rules did not match."""
    _line("route", clean(decision.route), "bold")
    _line("reason", clean(decision.why, 300))
    if decision.tier is not None:
        weighed = "" if decision.complexity is None else f"  (complexity {decision.complexity:g})"
        _line("tier", decision.tier + weighed)
    for number, target in enumerate(targets, 1):
        _line("targets" if number == 1 else "", f"{number}. {clean(target['model'], 100)}  {_target_text(target)}")
    if not targets:
        _line("targets", "none: the call is rejected", "red")
    for number, (name, why) in enumerate(decision.rejected):
        _line("rejected" if number == 0 else "", f"{clean(name, 100)}: {clean(why, 200)}", "dim")
    _line("limits", f"deadline {span_text(decision.deadline_ms * 1000)}, {_cap_text(decision)}")
    _line("cache", _cache_text(decision.cache))
    if decision.degraded is not None:
        ends = (decision.degraded.cache and "an older cached response", decision.degraded.answer and "a fixed response")
        _line("degraded", ", then ".join(end for end in ends if end))
    _line("if open", decision.when_all_open.replace("_", " "))


def _cap_text(decision: RouteDecision) -> str:
    if decision.output_cap is None:
        return f"{decision.max_output_tokens:,} output tokens unless the call sets a limit"
    return f"at most {decision.output_cap:,} output tokens"


def _line(label: str, text: str, style: str = "") -> None:

    console().print(styled((label.ljust(_LABEL), "dim"), (text, style)), soft_wrap=True)


def _target_text(target: Mapping[str, Any]) -> str:
    if target["provider"] is None:
        return "no provider serves this model: list it under providers.<name>.models"
    price: Mapping[str, float] | None = target["price"]
    texts = [str(target["provider"]), "/".join(target["apis"])]
    if price is not None:
        into, cached, out = price.values()
        texts.append(f"${into:g} in, ${cached:g} cached, ${out:g} out per million tokens")
    else:
        texts.append(str(target["without_price"]))
    if target["residency"]:
        texts.append(f"in {', '.join(target['residency'])}")
    return " · ".join(texts)


def _cache_text(policy: CachePolicy) -> str:
    texts = [f"exact for {span_text(policy.exact_ttl_s * 1_000_000)}"] if policy.exact_ttl_s else []
    if policy.semantic is not None and policy.semantic.mode != "off":
        texts.append(f"semantic {policy.semantic.mode} from {policy.semantic.threshold:g}")
    if policy.prompt_markers:
        texts.append("prompt markers")
    return ", ".join(texts) or "off"


def public_rerouting(simulation: RoutingSimulation, file: str, unseen_headers: Sequence[str]) -> dict[str, Any]:
    """The comparison with stable public names. Sums cover only calls whose new price is known."""
    moves = list(simulation.moves())
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
            for left in simulation.left_out()
        ],
        "unknown_prices": dict(sorted(simulation.unpriced.items())),
        "prompts_not_kept": simulation.erased,
        "headers_not_recorded": list(unseen_headers),
    }


def show_simulation(public: Mapping[str, Any]) -> None:
    """One row per change of target; then the sums, then the calls that are not in the sums."""
    out = console()
    rows: Sequence[Mapping[str, Any]] = public["rows"]
    if rows:
        heads = ("before", "after", "calls", "cost before", "cost after", "difference")
        print_rows(heads, [*map(_row, rows), _total(public)], frozenset(heads[2:]))
    moved = f"{public['moved']} of {count_text(public['calls'], 'call')} would change target"
    sums = _cost(public["cost_then_usd"]), _cost(public["cost_now_usd"]), _signed(public["difference_usd"])
    out.print(f"{moved} · {sums[0]} before, {sums[1]} under {clean(public['routing'])} ({sums[2]})", soft_wrap=True)
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
        yield f"unknown price of {clean(model, 100)}: {count_text(calls, 'call')} not in the sums; set it in `prices`"
    for left in public["left_out"]:
        cost = _cost(left["cost_then_usd"])
        bound = f" and an unknown cost of at most {_cost(left['bound_then_usd'])}" if left["bound_then_usd"] else ""
        yield f"not compared: {count_text(left['calls'], 'call')} at {cost}{bound}, {clean(left['why'], 300)}"
    if public["prompts_not_kept"]:
        yield f"{count_text(public['prompts_not_kept'], 'prompt')} no longer stored: complexity assumed simple"
    for header in public["headers_not_recorded"]:
        yield f"header {header} is not recorded: only headers that the brain's rules use are recorded"


def _cost(usd: float) -> str:
    return cost_text(round(usd * 1_000_000))


def _signed(usd: float) -> str:
    return f"{'-' if usd < 0 else '+'}{_cost(abs(usd))}" if round(usd * 1_000_000) else "no difference"
