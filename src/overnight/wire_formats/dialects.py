"""Where providers of the OpenAI wire format differ in what they take.

A conversation goes on at another provider when the first one fails, and then carries what only the first one understands:
thoughts, ids of tool calls, parameters. What the next one is known to refuse is left out, and named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec

Json = dict[str, Any]
THOUGHTS = frozenset({"reasoning_content", "thinking_blocks", "reasoning", "reasoning_details"})
_THOUGHT_PARTS = frozenset({"thinking", "redacted_thinking", "reasoning"})
_SIGNED = b'"thinking_blocks"'
_MARKS = tuple(f'"{name}"'.encode() for name in (*THOUGHTS, *_THOUGHT_PARTS))


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Parameters that only some take; most others refuse a whole request for one of them. None of these is a capability that the
# answer would lack: a target that has no tools or no audio must refuse.
_OF_OTHERS = _names(
    "thinking enable_thinking chat_template_kwargs top_k min_p repetition_penalty reasoning provider transforms plugins"
    " safe_prompt random_seed prompt_mode search_parameters"
)
_OF_OPENAI = _names(
    "store metadata service_tier prompt_cache_key prompt_cache_retention safety_identifier verbosity prediction"
)
_TALLIES = _names("logprobs top_logprobs logit_bias")


class Dialect(msgspec.Struct, frozen=True):
    """`cap_field` names the limit of output tokens (None: the name the client used, else `max_tokens`).

    `stream_options`: may usage be asked for with a stream? Those that refuse the field tell usage anyway. `cache_key`: is
    `prompt_cache_key` known? `refuses` are parameters and `forgets` fields of messages that it refuses a whole request for.
    `wants_thoughts`: a turn with tool calls must carry its `reasoning_content`. `short_ids`: ids of tool calls are nine letters
    and digits.
    """

    cap_field: str | None = None
    stream_options: bool = True
    refuses: frozenset[str] = frozenset()
    forgets: frozenset[str] = frozenset()
    wants_thoughts: bool = False
    short_ids: bool = False
    cache_key: bool = False


USUAL = Dialect()
_OPENAI = Dialect(cap_field="max_completion_tokens", refuses=_OF_OTHERS, forgets=THOUGHTS)
_THINKING = Dialect(refuses=_OF_OPENAI, forgets=THOUGHTS - {"reasoning_content"}, wants_thoughts=True)
# By the end of the host's name. OpenAI's reasoning models refuse `max_tokens`, which all others still take; Mistral refuses
# every field that it does not know.
_BY_HOST = {
    "api.openai.com": msgspec.structs.replace(_OPENAI, cache_key=True),
    ".openai.azure.com": _OPENAI,
    "api.mistral.ai": Dialect(
        cap_field="max_tokens",
        stream_options=False,
        refuses=(_OF_OTHERS | _OF_OPENAI | _TALLIES | {"user"})
        - {"safe_prompt", "random_seed", "prompt_mode", "prediction"},
        forgets=THOUGHTS,
        short_ids=True,
    ),
    "api.groq.com": Dialect(refuses=(_OF_OTHERS | _OF_OPENAI | _TALLIES) - {"service_tier"}, forgets=THOUGHTS),
    "api.cerebras.ai": Dialect(refuses=_OF_OTHERS | _OF_OPENAI, forgets=THOUGHTS),
    "generativelanguage.googleapis.com": Dialect(
        refuses=_OF_OTHERS | _OF_OPENAI | {"user", "logit_bias"}, forgets=THOUGHTS
    ),
    "api.together.xyz": Dialect(forgets=THOUGHTS),
    "api.fireworks.ai": Dialect(forgets=THOUGHTS - {"reasoning_content"}),
    "api.deepseek.com": _THINKING,
    "api.moonshot.ai": _THINKING,
    "api.moonshot.cn": _THINKING,
    "openrouter.ai": Dialect(forgets=frozenset({"thinking_blocks"})),
}


def dialect_of(base_url: str) -> Dialect:
    host = urlsplit(base_url).hostname or ""
    return next((dialect for end, dialect in _BY_HOST.items() if host.endswith(end)), USUAL)


def is_of(told: Any, model: str) -> bool:
    """Does what a thought tells of its model name this one? `told` may begin with the provider's name."""
    return isinstance(told, str) and (told == model or told.endswith(f"/{model}"))


def fitted(
    fields: Mapping[str, msgspec.Raw], dialect: Dialect, model: msgspec.Raw
) -> tuple[Mapping[str, msgspec.Raw], list[str]]:
    """A request's fields as the target takes them, and the names of what was left out. What fits is the very same object.
    `model` is the target's own name."""
    losses = sorted(dialect.refuses.intersection(fields))
    messages = fields.get("messages")
    if messages is not None and _may_need_change(bytes(messages), dialect):
        found: Any = _decode(messages)
        if isinstance(found, list) and _fit_messages(cast("list[Any]", found), dialect, _decode(model), losses):
            fields = {**fields, "messages": msgspec.Raw(_encode(found))}
    if dialect.refuses.isdisjoint(fields):
        return fields, losses
    return {name: value for name, value in fields.items() if name not in dialect.refuses}, losses


def fit(body: Json, dialect: Dialect) -> list[str]:
    """The same for a decoded body, in place, with the model that it has."""
    losses = sorted(dialect.refuses.intersection(body))
    for name in losses:
        del body[name]
    if isinstance(body.get("messages"), list):
        model: Any = body.get("model")
        _fit_messages(body["messages"], dialect, _decode(model) if isinstance(model, msgspec.Raw) else model, losses)
    return losses


def short_id(name: str) -> str:
    """Nine letters and digits, the same for the same id."""
    if len(name) == 9 and name.isascii() and name.isalnum():
        return name
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:9]


def _may_need_change(messages: bytes, dialect: Dialect) -> bool:
    if (dialect.short_ids or dialect.wants_thoughts) and b'"tool_calls"' in messages:
        return True
    if not dialect.forgets:
        return _SIGNED in messages
    return any(mark in messages for mark in _MARKS)


def _fit_messages(messages: list[Any], dialect: Dialect, model: Any, losses: list[str]) -> bool:
    changed = False
    for at, message in enumerate(messages):
        if not isinstance(message, dict):
            continue
        said = cast("Json", message)
        changed = _without_others(said, model, f"messages[{at}]", losses) or changed
        for name in sorted(dialect.forgets.intersection(said)):
            del said[name]
            losses.append(f"messages[{at}].{name}")
            changed = True
        for change in _CHANGES:
            changed = change(said, dialect, f"messages[{at}]", losses) or changed
    return changed


def _without_others(message: Json, model: Any, place: str, losses: list[str]) -> bool:
    """Leave out the thoughts that say that another model had them, and what repeats them in plain words."""
    blocks: Any = message.get("thinking_blocks")
    if not isinstance(blocks, list):
        return False
    own: list[Any] = []
    for at, block in enumerate(cast("list[Any]", blocks)):
        told = cast("Json", block).get("model") if isinstance(block, dict) else None
        if told is None or is_of(told, str(model)):
            own.append(block)
        else:
            losses.append(f"{place}.thinking_blocks[{at}]")
    if len(own) == len(cast("list[Any]", blocks)):
        return False
    del message["thinking_blocks"]
    for name in sorted(THOUGHTS.intersection(message)):
        del message[name]
        losses.append(f"{place}.{name}")
    if own:
        message["thinking_blocks"] = own
    return True


def _without_thoughts(message: Json, dialect: Dialect, place: str, losses: list[str]) -> bool:
    parts = message.get("content")
    if not dialect.forgets or not isinstance(parts, list):
        return False
    kept: list[Any] = []
    for at, part in enumerate(cast("list[Any]", parts)):
        kind = cast("Json", part).get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind in _THOUGHT_PARTS:
            losses.append(f"{place}.content[{at}]")
        else:
            kept.append(part)
    if len(kept) == len(cast("list[Any]", parts)):
        return False
    message["content"] = kept or None
    return True


def _with_thoughts(message: Json, dialect: Dialect, _place: str, _losses: list[str]) -> bool:
    # Turns of another model have none; an empty one is taken, a missing one is not.
    if not dialect.wants_thoughts or not message.get("tool_calls") or "reasoning_content" in message:
        return False
    message["reasoning_content"] = ""
    return True


def _with_short_ids(message: Json, dialect: Dialect, _place: str, _losses: list[str]) -> bool:
    if not dialect.short_ids:
        return False
    calls: Any = message.get("tool_calls")
    named = (
        [cast("Json", call) for call in cast("list[Any]", calls) if isinstance(call, dict)]
        if isinstance(calls, list)
        else []
    )
    changed = False
    for holder, name in [(message, "tool_call_id"), *((call, "id") for call in named)]:
        if isinstance(was := holder.get(name), str) and (now := short_id(was)) != was:
            holder[name], changed = now, True
    return changed


_CHANGES: tuple[Callable[[Json, Dialect, str, list[str]], bool], ...] = (
    _without_thoughts,
    _with_thoughts,
    _with_short_ids,
)
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
