"""The two boundaries with the world: model calls and tool calls."""

from typing import Any, cast

import msgspec

from overnight.domain import Event, Recorded, booked

from .lifecycle_events import error_words, reason
from .lines import Node
from .text import (
    clean,
    cost_text,
    span_text,
    until_text,
    who,
)
from .timeline import Tale

MOST_NAMES = 6

# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def model_node(tale: Tale, event: Recorded) -> Node | None:
    """The call this event belongs to: by position, by its id, or, for another try, by the same conversation."""
    facts = event.facts
    if (node := tale.at(event)) is not None and node.kind == "model":
        return node
    if facts.call_id is not None and (node := tale.calls.get(facts.call_id)) is not None:
        return node if any(node is each for each in tale.stretch.values()) else None
    again = (facts.detail or {}).get("try", 1) != 1
    node = tale.stretch.get(("model", facts.input_ref)) if again else None
    return node if node is not None and node.status == "failed" else None


def model_text(facts: Event) -> str:
    label = facts.name or facts.task_id or ""
    asked = (facts.detail or {}).get("requested_model")
    if label in {"", "default"}:
        label = str(asked) if asked not in {None, "", "auto"} else ""
    target = facts.model or ""
    words = f"{label} → {target}" if label and target and label != target else target or label
    return f"model {words}"


def _model_called(tale: Tale, event: Recorded) -> None:
    facts = event.facts
    node = model_node(tale, event)
    if node is None:
        node = tale.node(event, "model", model_text(facts))
        why = (facts.model, reason(event))
        node.why = "" if why in tale.reasons else why[1]
        tale.reasons.add(why)
        tale.place(node, event.path, (event.path, event.ordinal) if event.path is not None else facts.call_id)
        if event.path is None and facts.step:
            node.facts.append(f"step {clean(facts.step, 60)}")
        if event.path is None and facts.input_ref:
            tale.stretch["model", facts.input_ref] = node
        tale.show(node, "prompt", last_message(tale, facts.input_ref))
    else:
        node.text, node.status, node.outcome = model_text(facts), "running", ""
        node.seqs.append(event.seq)
    if facts.call_id is not None:
        tale.calls[facts.call_id] = node
    if tale.moved is not None:
        node.notes.append(tale.moved)
        tale.moved = None
    detail = facts.detail or {}
    tokens, asked = detail.get("max_output_tokens"), detail.get("asked_max_output_tokens")
    if detail.get("lowered"):
        tale.note(node, event, f"the budget left room for {tokens} output tokens; the answer was capped there")
    elif asked:
        tale.note(node, event, f"asked for {asked:,} output tokens; {_cap_text(facts, tokens)}")


def _cap_text(facts: Event, tokens: Any) -> str:
    if (facts.detail or {}).get("capped_by") == "model":
        return f"{facts.model} puts out {tokens:,} at most"
    return f"the route {facts.route} allows {tokens:,}"


def last_message(tale: Tale, reference: str | None) -> bytes | None:
    chain = tale.chapter.contents.get(reference or "")
    return chain[-1] if isinstance(chain, list) and chain else None


def _fresh_model(tale: Tale, event: Recorded) -> Node:
    return tale.place(tale.node(event, "model", model_text(event.facts)), event.path, (event.path, event.ordinal))


def _model_succeeded(tale: Tale, event: Recorded) -> None:
    facts = event.facts
    if "degraded" in (facts.detail or {}):
        _answered_without_a_model(tale, event)
        return
    node = model_node(tale, event) or _fresh_model(tale, event)
    node.end(event.at, "replayed" if "cache" in (facts.detail or {}) else "done")
    node.seqs.append(event.seq)
    content = event.content if event.content is not None else tale.chapter.contents.get(facts.output_ref or "")
    answer = content if isinstance(content, bytes) else None
    node.outcome = _decided(answer)
    node.facts += _call_facts(facts)
    if dropped := (facts.detail or {}).get("dropped"):
        tale.note(node, event, f"left out, because {facts.provider} does not take it: {clean(', '.join(dropped), 300)}")
    _tell_excess(tale, node, event)
    tale.show(node, "answer", _answer_text(answer))


def _tell_excess(tale: Tale, node: Node, event: Recorded) -> None:
    """What a provider told beyond what the request could use."""
    facts = event.facts
    if told := (facts.detail or {}).get("told"):
        said = f"{told['input_tokens']:,} tokens in, {told['output_tokens']:,} out, {cost_text(told['cost_microusd'])}"
        way_out = f"if the bill says so, `overnight budget settle {facts.call_id}` books it"
        tale.note(node, event, f"{facts.provider} told {said}: more than the request could use, not booked; {way_out}")


def _call_facts(facts: Event) -> list[str]:
    detail = facts.detail or {}
    about = "about " if detail.get("estimated") else ""
    shown: list[str] = []
    if facts.input_tokens is not None or facts.output_tokens is not None:
        cached = f" ({facts.cached_tokens:,} cached)" if facts.cached_tokens else ""
        shown.append(f"{about}{facts.input_tokens or 0:,}{cached} in, {facts.output_tokens or 0:,} out")
    cost, bound = booked(facts)
    if cost is not None and (cost or not bound):
        shown.append(cost_text(cost))
    if bound:
        shown.append(f"{'' if not cost else 'and '}at most {cost_text(bound)}{' more' if cost else ''}, cost unknown")
    if facts.latency_ms is not None:
        shown.append(span_text(facts.latency_ms * 1000))
    if facts.provider == "scripted":
        shown.append("scripted, offline")
    return shown


def _model_failed(tale: Tale, event: Recorded) -> None:
    facts = event.facts
    node = model_node(tale, event) or _fresh_model(tale, event)
    node.end(event.at, "failed")
    node.outcome = error_words(facts.error)
    cost = _booked_text(facts)
    target = f" at {facts.model}" if facts.model else ""
    text = f"failed{target}: {node.outcome}{cost}"
    latency = span_text(facts.latency_ms * 1000) if facts.latency_ms is not None else ""
    last = node.notes[-1] if node.notes else None
    if last is not None and last.kind == "try" and last.text == text:
        last.seqs.append(event.seq)
        last.facts = [f"{len(last.seqs)} times", f"last after {latency}"]
    else:
        tale.note(node, event, text, "failed", "try").facts = [f"after {latency}"] if latency else []
    tale.failed = (event.seq, node)


def _fallback_taken(tale: Tale, event: Recorded) -> None:
    decision = event.facts.decision or {}
    tale.moved = tale.node(event, "fallback", f"fell back from {decision.get('from')} to {decision.get('to')}", "note")
    tale.moved.why = ": ".join(dict.fromkeys(reason(event).split(": ")))  # a class may be its own code
    if (node := _just_failed(tale, event)) is not None:
        node.notes.append(tale.moved)
        tale.moved = None


def _circuit_opened(tale: Tale, event: Recorded) -> None:
    decision = event.facts.decision or {}
    until = f"; no calls until {until_text(decision['open_until_at'], event.at)}" if "open_until_at" in decision else ""
    text = f"the circuit of {clean(decision.get('target'), 120)} opened{until}"
    tale.note(model_node(tale, event), event, text, "failed", "circuit").why = reason(event)


def _circuit_closed(tale: Tale, event: Recorded) -> None:
    target = clean((event.facts.decision or {}).get("target"), 120)
    tale.note(model_node(tale, event), event, f"the circuit of {target} closed: {reason(event)}", kind="circuit")


_INSTEAD = {"answer": "the fixed answer of its route", "cache": "an older answer from the cache"}


def _degraded(tale: Tale, event: Recorded) -> None:
    """The answer itself comes next."""
    facts = event.facts
    node = model_node(tale, event) or _just_failed(tale, event)
    if node is None:
        key = (event.path, event.ordinal) if event.path is not None else facts.call_id
        node = tale.place(tale.node(event, "model", model_text(facts)), event.path, key)
        tale.show(node, "prompt", last_message(tale, facts.input_ref))
    if facts.call_id is not None:
        tale.calls[facts.call_id] = node
    instead = _INSTEAD.get((facts.decision or {}).get("kind", ""), "another answer")
    tale.note(node, event, f"degraded: no provider answered, so {instead} was given", kind="degraded").why = reason(
        event
    )


def _answered_without_a_model(tale: Tale, event: Recorded) -> None:
    """The degraded answer of a call: no model said it, so none is named as having answered."""
    facts = event.facts
    node = model_node(tale, event)
    if node is None:
        node = tale.node(event, "model", model_text(msgspec.structs.replace(facts, model=None)))
        tale.place(node, event.path, (event.path, event.ordinal))
    node.end(event.at, "degraded")
    node.seqs.append(event.seq)
    node.outcome = "no model answered"
    tale.degraded.add(event.seq)
    content = event.content if event.content is not None else tale.chapter.contents.get(facts.output_ref or "")
    tale.show(node, "answer", _answer_text(content if isinstance(content, bytes) else None))


def _just_failed(tale: Tale, event: Recorded) -> Node | None:
    """The call whose failed try was settled in the same transaction; events about what follows from it name no call."""
    seq, node = tale.failed
    return node if event.seq - seq <= 2 else None


def _model_lost(tale: Tale, event: Recorded) -> None:
    facts = event.facts
    cost = _booked_text(facts)
    node = model_node(tale, event)
    why = reason(event) or "its cost is unknown, so its whole reservation is booked as a bound"
    if node is not None:
        node.end(event.at, "lost")
        node.outcome, node.why = f"no answer came back{cost}", why
        node.seqs.append(event.seq)
        return
    was = tale.calls.get(facts.call_id or "")
    name = was.text if was is not None else model_text(facts)
    tale.note(None, event, f"{name}: its answer was lost in the crash{cost}", "unknown").why = why


def _booked_text(facts: Event) -> str:
    """What the end of a call that brought no answer was booked at."""
    cost, bound = booked(facts)
    known = f", {cost_text(cost)} booked" if cost else ""
    return known + (f", booked at a bound of {cost_text(bound)}" if bound else "")


def _model_replayed(tale: Tale, event: Recorded) -> None:
    facts = event.facts
    of = (facts.detail or {}).get("of")
    node = tale.place(tale.node(event, "model", model_text(facts), "replayed"), event.path)
    what = "the degraded answer was given again" if of in tale.degraded else "answered"
    node.outcome = f"{what} from the record (event {of}), unpaid"


def _budget_stopped(tale: Tale, event: Recorded) -> None:
    decision = event.facts.decision or {}
    node = tale.note(_just_failed(tale, event), event, "budget stop", "failed", "budget")
    node.outcome = reason(event) or f"{decision.get('limit')} of {decision.get('scope')} is used up"


def _decided(answer: bytes | None) -> str:
    """What the model wants, in names only: tools it asked for, or that it answered in text."""
    if answer is None:
        return "answered"
    try:
        body: Any = msgspec.json.decode(answer)
    except (msgspec.DecodeError, RecursionError):
        return "answered"
    if isinstance(body, dict) and (vectors := _dicts(cast("dict[str, Any]", body).get("data"))):
        return f"embedded {len(vectors)} texts" if len(vectors) > 1 else "embedded a text"
    tools, finish = _asked_tools(body)
    if tools:
        names = ", ".join(clean(tool, 60) for tool in tools[:MOST_NAMES])
        more = f" and {len(tools) - MOST_NAMES} more" if len(tools) > MOST_NAMES else ""
        return f"asked for tool {names}" if len(tools) == 1 else f"asked for {len(tools)} tools: {names}{more}"
    if finish in {"length", "max_tokens"}:
        return "answered in text, cut at the output cap"
    if finish in {"content_filter", "refusal"}:
        return "refused by the provider's content filter"
    return "answered in text"


def _dicts(value: Any) -> list[dict[str, Any]]:
    return (
        [cast("dict[str, Any]", each) for each in cast("list[Any]", value) if isinstance(each, dict)]
        if isinstance(value, list)
        else []
    )


def _message(body: Any) -> tuple[dict[str, Any], str]:
    """The answer's message and why it ended; the formats are chat completions, Responses and Anthropic messages."""
    if not isinstance(body, dict):
        return {}, ""
    whole = cast("dict[str, Any]", body)
    if whole.get("object") == "response":
        return _response(whole)
    choices = _dicts(whole.get("choices"))
    if not choices:
        return whole, str(whole.get("stop_reason"))
    message = choices[0].get("message")
    return cast("dict[str, Any]", message) if isinstance(message, dict) else {}, str(choices[0].get("finish_reason"))


def _response(whole: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The same of a response, as chat would say it."""
    output = _dicts(whole.get("output"))
    texts = [
        part.get("text") for item in output for part in _dicts(item.get("content")) if part.get("type") == "output_text"
    ]
    calls = [{"function": item} for item in output if item.get("type") in ("function_call", "custom_tool_call")]
    [details] = _dicts([whole.get("incomplete_details")]) or [{}]
    reason = str(details.get("reason") or "stop")
    text = "".join(text for text in texts if isinstance(text, str))
    return {"content": text, "tool_calls": calls}, "length" if reason == "max_output_tokens" else reason


def _asked_tools(body: Any) -> tuple[list[str], str]:
    message, finish = _message(body)
    names: list[str] = []
    for call in _dicts(message.get("tool_calls")):
        function = call.get("function")
        if isinstance(function, dict):
            names.append(str(cast("dict[str, Any]", function).get("name")))
    names += [str(block.get("name")) for block in _dicts(message.get("content")) if block.get("type") == "tool_use"]
    return names, finish


def _answer_text(answer: bytes | None) -> bytes | None:
    """The message alone: the envelope around it says nothing about the answer."""
    if answer is None:
        return None
    try:
        body: Any = msgspec.json.decode(answer)
        message, _ = _message(body)
    except (msgspec.DecodeError, RecursionError):
        return answer
    if message is body and "data" in message:
        return None  # vectors: numbers that tell a reader nothing
    said = message.get("content")
    return msgspec.json.encode(said if isinstance(said, str) and said else message.get("tool_calls") or said or message)


# ── tools ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _tool_key(event: Recorded) -> object:
    facts = event.facts
    return ("tool", facts.idempotency_key or facts.call_id or (event.path, event.ordinal))


def _tool(tale: Tale, event: Recorded) -> Node:
    """The effect this event is about; where its beginning lies in an earlier stretch, it is told again here."""
    node = tale.stretch.get(_tool_key(event))
    if node is None:
        node = tale.place(tale.node(event, "tool", f"tool {event.facts.name}"), event.path, _tool_key(event))
        if event.path is not None:
            tale.stretch[event.path, event.ordinal] = node
    else:
        node.seqs.append(event.seq)
    return node


def _tool_called(tale: Tale, event: Recorded) -> None:
    before = tale.stretch.get(_tool_key(event))
    node = _tool(tale, event)
    node.status = "running"
    if before is not None:
        tale.note(node, event, "called again", kind="try")
    tale.show(node, "arguments", event.content)


def _tool_succeeded(tale: Tale, event: Recorded) -> None:
    facts = event.facts
    node = _tool(tale, event)
    detail = facts.detail or {}
    if detail.get("replayed"):
        node.end(event.at, "replayed")
        node.outcome, node.why = "given back, not done again", reason(event)
        return
    node.end(event.at, "done")
    node.outcome = "done"
    if (why := reason(event)) and node.notes:
        tale.note(node, event, why, "done", "verdict")
    else:
        node.why = why
    if facts.latency_ms is not None:
        node.facts.append(span_text(facts.latency_ms * 1000))
    if provider_id := detail.get("provider_id"):
        node.facts.append(f"provider id {clean(provider_id, 120)}")
    tale.show(node, "result", event.content)


def _tool_failed(tale: Tale, event: Recorded) -> None:
    facts = event.facts
    node = _tool(tale, event)
    if facts.error is None:
        node.end(event.at, "failed")
        tale.note(node, event, f"not done, so it may be done now: {reason(event)}", kind="verdict")
        return
    node.end(event.at, "failed")
    said = f"rejected by {who(facts.actor)}: {clean(facts.error.message)}" if facts.actor else error_words(facts.error)
    node.outcome = f"not done: {said}"


def _tool_unknown(tale: Tale, event: Recorded) -> None:
    node = _tool(tale, event)
    node.end(event.at, "unknown")
    tale.stretch["unknown"] = node
    verdict = tale.note(node, event, f"unknown whether it was done: {reason(event)}", "unknown", "verdict")
    tale.trace(verdict, event.content)


CALLS = {
    "model_called": _model_called,
    "model_succeeded": _model_succeeded,
    "model_failed": _model_failed,
    "model_lost": _model_lost,
    "model_replayed": _model_replayed,
    "fallback_taken": _fallback_taken,
    "budget_stopped": _budget_stopped,
    "circuit_opened": _circuit_opened,
    "circuit_closed": _circuit_closed,
    "degraded": _degraded,
    "tool_called": _tool_called,
    "tool_succeeded": _tool_succeeded,
    "tool_failed": _tool_failed,
    "tool_unknown": _tool_unknown,
}
