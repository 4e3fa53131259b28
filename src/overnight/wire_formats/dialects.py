"""Differences between providers of the OpenAI wire format.

When a provider fails, the conversation continues at another one and may contain content that only the first accepts:
reasoning, tool call ids, parameters. Content that the next provider is known to reject is removed and reported.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec

Json = dict[str, Any]
REASONING_FIELDS = frozenset({"reasoning_content", "thinking_blocks", "reasoning", "reasoning_details"})
_REASONING_PARTS = frozenset({"thinking", "redacted_thinking", "reasoning"})
_SIGNED = b'"thinking_blocks"'
_MARKS = tuple(f'"{name}"'.encode() for name in (*REASONING_FIELDS, *_REASONING_PARTS))


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Parameters that only some providers accept; most others reject the whole request. None of them is a capability
# that the answer would lack. A target without tools or audio must reject the request instead.
_VENDOR_PARAMETERS = _names(
    "thinking enable_thinking chat_template_kwargs top_k min_p repetition_penalty reasoning provider transforms plugins"
    " safe_prompt random_seed prompt_mode search_parameters"
)
_OPENAI_PARAMETERS = _names(
    "store metadata service_tier prompt_cache_key prompt_cache_retention safety_identifier verbosity prediction"
)
_TOKEN_PARAMETERS = _names("logprobs top_logprobs logit_bias")


class Dialect(msgspec.Struct, frozen=True):
    """Deviations of one provider.

    - `cap_field`: the field of the output limit; None: the field that the client used, else `max_tokens`.
    - `stream_options`: whether a stream accepts this field. Providers that reject it report usage anyway.
    - `rejected_parameters`, `rejected_message_fields`: fields that make the provider reject the whole request.
    - `requires_reasoning`: whether an assistant turn with tool calls must contain `reasoning_content`.
    - `requires_short_ids`: whether tool call ids must be nine letters and digits.
    - `cache_key`: whether `prompt_cache_key` is accepted.
    """

    cap_field: str | None = None
    stream_options: bool = True
    rejected_parameters: frozenset[str] = frozenset()
    rejected_message_fields: frozenset[str] = frozenset()
    requires_reasoning: bool = False
    requires_short_ids: bool = False
    cache_key: bool = False


DEFAULT_DIALECT = Dialect()
_OPENAI = Dialect(
    cap_field="max_completion_tokens", rejected_parameters=_VENDOR_PARAMETERS, rejected_message_fields=REASONING_FIELDS
)
_THINKING = Dialect(
    rejected_parameters=_OPENAI_PARAMETERS,
    rejected_message_fields=REASONING_FIELDS - {"reasoning_content"},
    requires_reasoning=True,
)
# Mistral rejects every unknown field.
_NAMED: dict[str, Dialect] = {
    "openai": msgspec.structs.replace(_OPENAI, cache_key=True),
    "azure": _OPENAI,
    "mistral": Dialect(
        cap_field="max_tokens",
        stream_options=False,
        rejected_parameters=(_VENDOR_PARAMETERS | _OPENAI_PARAMETERS | _TOKEN_PARAMETERS | {"user"})
        - {"safe_prompt", "random_seed", "prompt_mode", "prediction"},
        rejected_message_fields=REASONING_FIELDS,
        requires_short_ids=True,
    ),
    "groq": Dialect(
        rejected_parameters=(_VENDOR_PARAMETERS | _OPENAI_PARAMETERS | _TOKEN_PARAMETERS) - {"service_tier"},
        rejected_message_fields=REASONING_FIELDS,
    ),
    "cerebras": Dialect(
        rejected_parameters=_VENDOR_PARAMETERS | _OPENAI_PARAMETERS, rejected_message_fields=REASONING_FIELDS
    ),
    "google": Dialect(
        rejected_parameters=_VENDOR_PARAMETERS | _OPENAI_PARAMETERS | {"user", "logit_bias"},
        rejected_message_fields=REASONING_FIELDS,
    ),
    "together": Dialect(rejected_message_fields=REASONING_FIELDS),
    "fireworks": Dialect(rejected_message_fields=REASONING_FIELDS - {"reasoning_content"}),
    "deepseek": _THINKING,
    "moonshot": _THINKING,
    "openrouter": Dialect(cap_field="max_tokens", rejected_message_fields=frozenset({"thinking_blocks"})),
    "plain": DEFAULT_DIALECT,
}
DIALECT_NAMES = tuple(_NAMED)
"""The values of a provider's `dialect`."""
# By the suffix of the host name.
_BY_HOST = {
    "api.openai.com": "openai",
    ".openai.azure.com": "azure",
    "api.mistral.ai": "mistral",
    "api.groq.com": "groq",
    "api.cerebras.ai": "cerebras",
    "generativelanguage.googleapis.com": "google",
    "api.together.xyz": "together",
    "api.fireworks.ai": "fireworks",
    "api.deepseek.com": "deepseek",
    "api.moonshot.ai": "moonshot",
    "api.moonshot.cn": "moonshot",
    "openrouter.ai": "openrouter",
}
# OpenAI's reasoning models reject `max_tokens`, which all others still accept, behind any host. Their names may have a prefix.
_REASONING_MODEL = re.compile(r"(?:.*/)?(?:o[1-9](?:-.*)?|gpt-(?:[5-9]|\d\d)\b.*|codex-.*)")
_CAP_FIELDS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
_REFUSAL = re.compile(
    r"unsupported.parameter|not supported with this model|unrecognized request argument|unexpected keyword argument"
    r"|unknown (?:parameter|field|name|argument)|extra_forbidden|extra inputs are not permitted"
    r"|additional properties are not allowed|use '?max_(?:completion_)?tokens"
)


def dialect_of(base_url: str, model: str = "", name: str | None = None) -> Dialect:
    """The dialect of a target: that of its provider's setting `name`, else that of its host; and that of its model's family."""
    host = urlsplit(base_url).hostname or ""
    name = name or next((found for end, found in _BY_HOST.items() if host.endswith(end)), "plain")
    dialect = _NAMED[name]
    if dialect.cap_field is None and _REASONING_MODEL.fullmatch(model):
        return msgspec.structs.replace(dialect, cap_field="max_completion_tokens")
    return dialect


def other_cap_field(cap_field: str, refusal: bytes) -> str | None:
    """The other field of the output limit, if `refusal`, the body of a 400 or 422, is of the field itself and not its value."""
    said = refusal[:4096].decode("utf-8", "replace").lower()
    named = re.search(rf"\b{cap_field}\b", said)
    return _CAP_FIELDS.get(cap_field) if named and _REFUSAL.search(said) else None


def names_model(named: Any, model: str) -> bool:
    """Whether the model name in a reasoning block names `model`. The name may start with the provider's name."""
    return isinstance(named, str) and (named == model or named.endswith(f"/{model}"))


def adapt_fields(
    fields: Mapping[str, msgspec.Raw], dialect: Dialect, model: msgspec.Raw
) -> tuple[Mapping[str, msgspec.Raw], list[str]]:
    """Adapt the fields of a request to a target.

    Args:
        fields: the top-level fields of the client's body.
        dialect: the target's deviations.
        model: the target's model name, as JSON.

    Returns: the fields and the names of removed ones. If nothing changed, the fields are the same object.
    """
    losses = sorted(dialect.rejected_parameters.intersection(fields))
    messages = fields.get("messages")
    if messages is not None and _may_need_change(bytes(messages), dialect):
        found: Any = _decode(messages)
        if isinstance(found, list) and _adapt_messages(cast("list[Any]", found), dialect, _decode(model), losses):
            fields = {**fields, "messages": msgspec.Raw(_encode(found))}
    if dialect.rejected_parameters.isdisjoint(fields):
        return fields, losses
    return {name: value for name, value in fields.items() if name not in dialect.rejected_parameters}, losses


def adapt_in_place(body: Json, dialect: Dialect) -> list[str]:
    """Adapt a decoded body in place. Returns the names of removed fields."""
    losses = sorted(dialect.rejected_parameters.intersection(body))
    for name in losses:
        del body[name]
    if isinstance(body.get("messages"), list):
        model: Any = body.get("model")
        _adapt_messages(body["messages"], dialect, _decode(model) if isinstance(model, msgspec.Raw) else model, losses)
    return losses


def short_id(name: str) -> str:
    """A deterministic id of nine letters and digits."""
    if len(name) == 9 and name.isascii() and name.isalnum():
        return name
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:9]


def _may_need_change(messages: bytes, dialect: Dialect) -> bool:
    if (dialect.requires_short_ids or dialect.requires_reasoning) and b'"tool_calls"' in messages:
        return True
    if not dialect.rejected_message_fields:
        return _SIGNED in messages
    return any(mark in messages for mark in _MARKS)


def _adapt_messages(messages: list[Any], dialect: Dialect, model: Any, losses: list[str]) -> bool:
    changed = False
    for at, message in enumerate(messages):
        if not isinstance(message, dict):
            continue
        fields = cast("Json", message)
        changed = _remove_foreign_reasoning(fields, model, f"messages[{at}]", losses) or changed
        for name in sorted(dialect.rejected_message_fields.intersection(fields)):
            del fields[name]
            losses.append(f"messages[{at}].{name}")
            changed = True
        for change in _CHANGES:
            changed = change(fields, dialect, f"messages[{at}]", losses) or changed
    return changed


def _remove_foreign_reasoning(message: Json, model: Any, place: str, losses: list[str]) -> bool:
    """Remove reasoning that names a different model, and its copies in plain text."""
    blocks: Any = message.get("thinking_blocks")
    if not isinstance(blocks, list):
        return False
    own: list[Any] = []
    for at, block in enumerate(cast("list[Any]", blocks)):
        named = cast("Json", block).get("model") if isinstance(block, dict) else None
        if named is None or names_model(named, str(model)):
            own.append(block)
        else:
            losses.append(f"{place}.thinking_blocks[{at}]")
    if len(own) == len(cast("list[Any]", blocks)):
        return False
    del message["thinking_blocks"]
    for name in sorted(REASONING_FIELDS.intersection(message)):
        del message[name]
        losses.append(f"{place}.{name}")
    if own:
        message["thinking_blocks"] = own
    return True


def _without_reasoning(message: Json, dialect: Dialect, place: str, losses: list[str]) -> bool:
    parts = message.get("content")
    if not dialect.rejected_message_fields or not isinstance(parts, list):
        return False
    kept: list[Any] = []
    for at, part in enumerate(cast("list[Any]", parts)):
        kind = cast("Json", part).get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind in _REASONING_PARTS:
            losses.append(f"{place}.content[{at}]")
        else:
            kept.append(part)
    if len(kept) == len(cast("list[Any]", parts)):
        return False
    message["content"] = kept or None
    return True


def _with_reasoning(message: Json, dialect: Dialect, _place: str, _losses: list[str]) -> bool:
    # Turns of another model contain none; an empty string is accepted, a missing field is not.
    if not dialect.requires_reasoning or not message.get("tool_calls") or "reasoning_content" in message:
        return False
    message["reasoning_content"] = ""
    return True


def _with_short_ids(message: Json, dialect: Dialect, _place: str, _losses: list[str]) -> bool:
    if not dialect.requires_short_ids:
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
    _without_reasoning,
    _with_reasoning,
    _with_short_ids,
)
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
