"""What a recorded model response contains: tool calls, text, finish reason."""

from typing import Any, cast

import msgspec

from overnight.domain.json_text import decode_for_display

from .text import clean

MAX_NAMES = 6


def outcome_text(answer: bytes | None) -> str:
    """What the model responded: the names of requested tools, or that it returned text."""
    if answer is None:
        return "answered"
    try:
        body: Any = decode_for_display(answer)
    except (msgspec.DecodeError, RecursionError):
        return "answered"
    if isinstance(body, dict) and (vectors := _dicts(cast("dict[str, Any]", body).get("data"))):
        return f"embedded {len(vectors)} texts" if len(vectors) > 1 else "embedded a text"
    tools, finish = _requested_tools(body)
    if tools:
        names = ", ".join(clean(tool, 60) for tool in tools[:MAX_NAMES])
        more = f" and {len(tools) - MAX_NAMES} more" if len(tools) > MAX_NAMES else ""
        return f"requested tool {names}" if len(tools) == 1 else f"requested {len(tools)} tools: {names}{more}"
    if finish in {"length", "max_tokens"}:
        return "answered in text, truncated at the output limit"
    if finish in {"content_filter", "refusal"}:
        return "rejected by the content filter of the provider"
    return "answered in text"


def _dicts(value: Any) -> list[dict[str, Any]]:
    return (
        [cast("dict[str, Any]", each) for each in cast("list[Any]", value) if isinstance(each, dict)]
        if isinstance(value, list)
        else []
    )


def _message(body: Any) -> tuple[dict[str, Any], str]:
    """The message of a response and its finish reason, for chat completions, Responses and Anthropic messages."""
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
    """As `_message`, for the Responses format."""
    output = _dicts(whole.get("output"))
    texts = [
        part.get("text") for item in output for part in _dicts(item.get("content")) if part.get("type") == "output_text"
    ]
    calls = [{"function": item} for item in output if item.get("type") in ("function_call", "custom_tool_call")]
    [details] = _dicts([whole.get("incomplete_details")]) or [{}]
    reason = str(details.get("reason") or "stop")
    text = "".join(text for text in texts if isinstance(text, str))
    return {"content": text, "tool_calls": calls}, "length" if reason == "max_output_tokens" else reason


def _requested_tools(body: Any) -> tuple[list[str], str]:
    message, finish = _message(body)
    names: list[str] = []
    for call in _dicts(message.get("tool_calls")):
        function = call.get("function")
        if isinstance(function, dict):
            names.append(str(cast("dict[str, Any]", function).get("name")))
    names += [str(block.get("name")) for block in _dicts(message.get("content")) if block.get("type") == "tool_use"]
    return names, finish


def message_content(answer: bytes | None) -> bytes | None:
    """The message without its envelope."""
    if answer is None:
        return None
    try:
        body: Any = decode_for_display(answer)
        message, _ = _message(body)
    except (msgspec.DecodeError, RecursionError):
        return answer
    if message is body and "data" in message:
        return None  # vectors are not readable
    content = message.get("content")
    text = content if isinstance(content, str) else None
    return msgspec.json.encode(text or message.get("tool_calls") or content or message)
