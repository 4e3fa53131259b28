"""Whole chat completions: the usual ones are recognised by their types; others are corrected as streams are.

What is corrected: finish reasons in other words or missing, tool calls with arguments that are no string, without an id or
with one twice. What is no answer raises `NoAnswer`.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from overnight.domain.json_text import BYTE_ORDER_MARK, decode_json, encode_json

from .chat_stream import numbers_of
from .contract import Json, NoAnswer
from .finish_reasons import STANDARD_REASONS, chat_reason, without_call

_encode = msgspec.json.Encoder().encode


class _Function(msgspec.Struct):
    name: str
    arguments: str


class _Call(msgspec.Struct):
    id: str
    function: _Function


class _Message(msgspec.Struct):
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str
    error: Any = None


class _Completion(msgspec.Struct):
    """The parts of a completion that are decoded when it is passed through."""

    choices: list[_Choice] = []
    usage: Json | None = None
    error: Any = None


class _RawChoice(msgspec.Struct):
    message: msgspec.Raw = msgspec.Raw(b"")


class _RawCompletion(msgspec.Struct):
    choices: list[_RawChoice] = []


_usual = msgspec.json.Decoder(_Completion).decode
_raw = msgspec.json.Decoder(_RawCompletion).decode


def usual_usage(body: bytes) -> Json | None:
    """The usage of a completion that needs no correction; an empty object without usage. None if it may need one."""
    try:
        completion = _usual(body)
        if not body.isascii():
            body.decode()  # fields that are not decoded must be valid UTF-8 too
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if completion.error or not completion.choices or not all(map(_is_usual, completion.choices)):
        return None
    usage = completion.usage or {}
    return None if any(type(count) is str for count in usage.values()) else usage


def _is_usual(choice: _Choice) -> bool:
    calls = choice.message.tool_calls
    if choice.error or choice.finish_reason not in STANDARD_REASONS:
        return False
    if not calls:
        return choice.finish_reason != "tool_calls" and (
            choice.finish_reason != "function_call" or choice.message.function_call is not None
        )
    ids = {call.id for call in calls if call.id and call.function.name}
    return len(ids) == len(calls)


def characters_of(body: bytes) -> int:
    """The length of the messages, for an estimate of their tokens."""
    try:
        return sum(len(bytes(each.message)) for each in _raw(body).choices)
    except msgspec.DecodeError:
        return len(body)  # no strict JSON


def decode_answer(body: bytes) -> Any:
    """Decode a completion, corrected.

    Raises:
        NoAnswer: the provider broke off the answer.
        msgspec.DecodeError, RecursionError, TypeError, ValueError, KeyError, AttributeError: it is no completion.
    """
    completion: Any = decode_json(body)
    if isinstance(completion, dict) and not completion.get("error"):  # pyright: ignore[reportUnknownMemberType]
        correct(cast("Json", completion))
    return cast("Any", completion)


def corrected_body(body: bytes) -> tuple[bytes, Json] | None:
    """The body to pass on, and the decoded completion; None if it is none. Raises as `decode_answer`."""
    completion: Any = decode_json(body)
    if not isinstance(completion, dict):
        return None
    found = cast("Json", completion)
    if not found.get("choices") or found.get("error"):
        return None
    if correct(found):
        return encode_json(found), found
    return body.removeprefix(BYTE_ORDER_MARK), found


def correct(completion: Json) -> bool:
    """Correct a completion in place. Returns whether anything changed. Raises NoAnswer."""
    changed = False
    for choice in cast("list[Json]", completion.get("choices") or ()):
        if choice.get("error"):
            raise NoAnswer({"error": choice["error"], "usage": completion.get("usage")})
        message: Any = choice.get("message")
        if message is None and isinstance(choice.get("delta"), dict):
            message = choice["message"] = choice.pop("delta")  # a single chunk in place of a completion
            changed = True
        if not isinstance(message, dict):
            raise TypeError("a choice has no message")
        changed |= _correct_usage(completion)
        changed |= _correct_calls(cast("Json", message), str(completion.get("id") or ""))
        changed |= _correct_reason(choice, cast("Json", message), completion.get("usage"))
    return changed


def _correct_usage(completion: Json) -> bool:
    usage: Any = completion.get("usage")
    if not isinstance(usage, dict):
        return False
    completion["usage"] = numbers = numbers_of(cast("Json", usage))
    return numbers != usage


def _correct_reason(choice: Json, message: Json, usage: Any) -> bool:
    given = choice.get("finish_reason")
    calls = message.get("tool_calls") or message.get("function_call")
    try:
        reason = chat_reason(given) if given else "tool_calls" if calls else "stop"
    except NoAnswer as error:
        error.error["usage"] = usage
        raise
    if reason in ("tool_calls", "function_call") and not calls:
        failure = without_call(str(given))
        failure.error["usage"] = usage
        raise failure
    if given in (reason, "function_call"):
        return False
    choice["finish_reason"] = reason
    return True


def _correct_calls(message: Json, completion_id: str) -> bool:
    changed, used = False, set[str]()
    for place, call in enumerate(cast("list[Json]", message.get("tool_calls") or ())):
        given: Any = call.get("id")
        if not given or given in used:
            given = call["id"] = f"call_{completion_id}_{place}"
            changed = True
        used.add(given)
        if "type" not in call:
            call["type"] = "function"
            changed = True
        if call["type"] != "function" and not call.get("function"):
            continue  # a custom tool
        function: Json = cast("Json", call.get("function") or {})
        if not function.get("name"):
            raise without_call("a call without a name")
        changed |= _correct_arguments(function)
    legacy: Any = message.get("function_call")
    if isinstance(legacy, dict):
        changed |= _correct_arguments(cast("Json", legacy))
    return changed


def _correct_arguments(function: Json) -> bool:
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        return False
    function["arguments"] = "" if arguments is None else _encode(arguments).decode()
    return True
