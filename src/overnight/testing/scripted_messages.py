"""An Anthropic messages request, validated as strictly as by the real API, and prepared for rule matching.

The strict validation finds translation errors offline.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha256
from typing import Annotated, Any, Literal, cast

import msgspec

from .scripted_rules import Call, ChatRequest, text_of
from .scripted_wire import NOT_JSON, Headers, Refused, tokens_of

Json = dict[str, Any]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
MAX_MARKERS = 4
WITHOUT_SAMPLING = b"2026-10-21"
"""From this version of the API on, sampling parameters are rejected."""
_TOOL_ID = re.compile(r"[a-zA-Z0-9_-]+")
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_BLOCKS = {
    "user": {"text", "image", "document", "search_result", "tool_result", "container_upload"},
    "assistant": {"text", "thinking", "redacted_thinking", "tool_use", "server_tool_use", "web_search_tool_result"},
    "system": {"text"},
}
_encode = msgspec.json.encode


class MessagesRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model: str
    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    messages: Annotated[list[Json], msgspec.Meta(min_length=1)]
    system: str | list[Json] | None = None
    stream: bool = False
    tools: list[Json] = []
    tool_choice: Json | None = None
    thinking: Json | None = None
    temperature: Fraction | None = None
    top_p: Fraction | None = None
    top_k: int | None = None
    stop_sequences: list[str] = []
    metadata: Json | None = None
    output_config: Json | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    cache_control: Json | None = None
    container: Any = None
    context_management: Json | None = None
    diagnostics: Json | None = None
    inference_geo: str | None = None
    mcp_servers: list[Json] | None = None
    speed: Literal["standard", "fast"] | None = None


class _Counted(MessagesRequest, kw_only=True):
    """A request to count tokens requires no output limit."""

    max_tokens: int = 1


_decode = msgspec.json.Decoder(MessagesRequest).decode
_decode_counted = msgspec.json.Decoder(_Counted).decode


def signature(model: str, thinking: str) -> str:
    """The signature of a reasoning block; blocks of another model, or changed ones, are rejected."""
    return f"sig_{sha256(model.encode() + b':' + thinking.encode()).hexdigest()[:40]}=="


def read(body: bytes, headers: Headers) -> Call:
    """Decode a messages request for rule matching. Raises Refused."""
    try:
        request = _decode(body)
    except NOT_JSON as problem:
        raise Refused(f"The JSON body cannot be used: {problem}") from None
    turns = _checked(request, headers)
    chat = ChatRequest(request.model, _as_chat(request, turns), request.stream, tools=_offered(request.tools))
    chat.max_tokens = request.max_tokens
    return Call(chat, headers, tuple(request.stop_sequences))


def count_tokens(body: bytes, headers: Headers) -> int:
    """The number of input tokens of a request. Raises Refused."""
    try:
        request = _decode_counted(body)
    except NOT_JSON as problem:
        raise Refused(f"The JSON body cannot be used: {problem}") from None
    messages = _as_chat(request, _checked(request, headers))
    return tokens_of(sum(len(text_of(message["content"])) for message in messages) + len(_encode(request.tools)))


# ── validation ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _checked(request: MessagesRequest, headers: Headers) -> list[Json]:
    """The turns, with consecutive turns of one role joined. Raises Refused."""
    version = next((value for name, value in headers if name.lower() == b"anthropic-version"), b"")
    if not version:
        raise Refused("anthropic-version: header is required")
    if version >= WITHOUT_SAMPLING:
        rejected = next(
            (name for name in ("temperature", "top_p", "top_k") if getattr(request, name) is not None), None
        )
        if rejected:
            raise Refused(f"{rejected}: Extra inputs are not permitted")
    if set(request.metadata or ()) - {"user_id"}:
        raise Refused("metadata: Extra inputs are not permitted")
    if any(not each.strip() for each in request.stop_sequences):
        raise Refused("stop_sequences: each stop sequence must contain non-whitespace")
    _check_tools(request)
    _check_thinking(request)
    turns = _turns(request)
    markers = sum(_encode(part).count(b'"cache_control":{') for part in (request.system, request.tools, turns))
    if markers > MAX_MARKERS:
        raise Refused(f"A maximum of {MAX_MARKERS} blocks with cache_control may be provided. Found {markers}.")
    return turns


def _check_tools(request: MessagesRequest) -> None:
    names = [tool.get("name") for tool in request.tools]
    for place, tool in enumerate(request.tools):
        kind = tool.get("type")
        if not isinstance(names[place], str) or not _TOOL_NAME.fullmatch(cast("str", names[place])):
            raise Refused(f"tools.{place}.custom.name: String should match pattern '{_TOOL_NAME.pattern}'")
        schema: Json = tool.get("input_schema") or {}
        if kind in (None, "custom") and schema.get("type") != "object":
            raise Refused(f"tools.{place}.custom.input_schema.type: Field required")
    if len(set(names)) < len(names):
        raise Refused("tools: Tool names must be unique.")
    choice = request.tool_choice
    if choice is not None:
        if not request.tools:
            raise Refused("tool_choice may only be specified while providing tools")
        if choice.get("type") not in ("auto", "any", "tool", "none"):
            raise Refused("tool_choice: Input tag found does not match any of the expected tags")
        if choice["type"] == "tool" and choice.get("name") not in names:
            raise Refused(f"Tool '{choice.get('name')}' not found in provided tools")


def _check_thinking(request: MessagesRequest) -> None:
    thinking = request.thinking or {}
    if thinking.get("type") == "enabled":
        budget = thinking.get("budget_tokens", 0)
        if budget < 1024:
            raise Refused("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024")
        if budget >= request.max_tokens:
            raise Refused("`max_tokens` must be greater than `thinking.budget_tokens`.")
    if thinking.get("type") in ("enabled", "adaptive"):
        if request.temperature not in (None, 1) or request.top_k is not None:
            raise Refused("`temperature` may only be set to 1, and `top_k` must be unset, when thinking is enabled.")
        if (request.tool_choice or {}).get("type") in ("any", "tool"):
            raise Refused("Thinking may not be enabled when tool_choice forces tool use.")


def _turns(request: MessagesRequest) -> list[Json]:
    turns: list[Json] = []
    for place, message in enumerate(request.messages):
        role, content = message.get("role"), message.get("content")
        if role not in _BLOCKS or set(message) != {"role", "content"}:
            raise Refused(f"messages.{place}: Unexpected role {role!r} or extra inputs")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(blocks, list) or not blocks:
            raise Refused(f"messages.{place}: all messages must have non-empty content")
        for index, block in enumerate(cast("list[Json]", blocks)):
            _check_block(f"messages.{place}.content.{index}", str(role), block, request.model)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": list(cast("list[Json]", blocks))})
    before: Json = {"role": None, "content": []}
    for turn in turns:
        _check_order(before, turn)
        before = turn
    last = turns[-1]["content"][-1]
    if turns[-1]["role"] == "assistant" and last.get("type") == "text" and last["text"] != last["text"].rstrip():
        raise Refused("messages: final assistant content cannot end with trailing whitespace")
    return turns


def _check_block(place: str, role: str, block: Json, model: str) -> None:
    kind = block.get("type")
    if kind not in _BLOCKS[role]:
        raise Refused(f"{place}: {role} message does not take a block of type {kind!r}")
    if kind == "text" and not block.get("text", "").strip():
        raise Refused("messages: text content blocks must contain non-whitespace text")
    if kind == "thinking" and block.get("signature") != signature(model, block.get("thinking", "")):
        raise Refused(f"{place}: Invalid `signature` in `thinking` block")
    name = {"tool_use": "id", "tool_result": "tool_use_id"}.get(str(kind))
    if name and not _TOOL_ID.fullmatch(block.get(name, "")):
        raise Refused(f"{place}.{kind}.{name}: String should match pattern '^[a-zA-Z0-9_-]+$'")
    if kind == "tool_use" and not isinstance(block.get("input"), dict):
        raise Refused(f"{place}.tool_use.input: Input should be a valid dictionary")


def _check_order(before: Json, turn: Json) -> None:
    if before["role"] is None and turn["role"] != "user":
        raise Refused("messages: first message must use the user role")
    if turn["role"] == "system" and before["role"] != "user":
        raise Refused("messages: a system message must follow a user message")
    asked = [block["id"] for block in before["content"] if block["type"] == "tool_use"]
    kinds = [block["type"] for block in turn["content"]]
    results = [block["tool_use_id"] for block in turn["content"] if block["type"] == "tool_result"]
    if len(set(asked)) < len(asked):
        raise Refused("messages: `tool_use` ids must be unique")
    if set(asked) - set(results):
        raise Refused(f"`tool_use` ids were found without `tool_result` blocks immediately after: {asked}")
    if set(results) - set(asked):
        raise Refused(f"unexpected `tool_use_id` found in `tool_result` blocks: {results}")
    if "tool_result" in kinds[len(results) :]:
        raise Refused("messages: `tool_result` blocks must come first in their message")


# ── rule matching ───────────────────────────────────────────────────────────────────────────────────────────────────


def _as_chat(request: MessagesRequest, turns: list[Json]) -> list[Json]:
    system: list[Json] = [{"role": "system", "content": request.system}] if request.system else []
    return [*system, *(message for turn in turns for message in _messages(turn))]


def _messages(turn: Json) -> Iterator[Json]:
    rest: list[Json] = []
    calls: list[Json] = []
    for block in turn["content"]:
        if block["type"] == "tool_result":
            yield {"role": "tool", "tool_call_id": block["tool_use_id"], "content": block.get("content") or ""}
        elif block["type"] == "tool_use":
            function = {"name": block["name"], "arguments": _encode(block["input"]).decode()}
            calls.append({"id": block["id"], "type": "function", "function": function})
        else:
            rest.append(block)
    if rest or calls:
        yield {"role": turn["role"], "content": rest, **({"tool_calls": calls} if calls else {})}


def _offered(tools: list[Json]) -> list[Json]:
    return [{"type": "function", "function": {"name": tool["name"]}} for tool in tools]
