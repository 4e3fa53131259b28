"""Tool calls that a model asked for and nothing followed. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from .records import UnexecutedCall

if TYPE_CHECKING:
    from overnight.wire_formats.tool_calls import ToolCallRef


class AskedCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call in a recorded answer of a model."""

    job_id: str
    ref: ToolCallRef
    at: int


class ToolUse(msgspec.Struct, frozen=True, kw_only=True):
    """An effect, or a refused one, that may be the answer to a call. `at`: when it was first asked for."""

    tool: str
    call_id: str | None
    at: int


def without_effect(asked: Iterable[AskedCall], uses: Iterable[ToolUse]) -> list[AskedCall]:
    """The calls that no effect followed: by the id of the call, else each by a later effect of the same tool."""
    left: list[AskedCall] = sorted(asked, key=lambda each: each.at)
    by_id = {use.call_id: use for use in uses if use.call_id is not None}
    named = {each.ref.call_id for each in left}
    left = [each for each in left if each.ref.call_id is None or each.ref.call_id not in by_id]
    for use in sorted(uses, key=lambda each: each.at):
        if use.call_id is not None and use.call_id in named:
            continue
        first = next((each for each in left if each.ref.name == use.tool and each.at <= use.at), None)
        if first is not None:
            left.remove(first)
    return left


def without_result(asked: Iterable[AskedCall], results: Iterable[ToolCallRef]) -> list[UnexecutedCall]:
    """The calls without a result in the messages of any request: by id, else by the number of results of that name."""
    found = list(results)
    ids = {each.call_id for each in found if each.call_id is not None}
    nameless = Counter(each.name for each in found if each.call_id is None)
    left: list[UnexecutedCall] = []
    for each in asked:
        if each.ref.call_id is not None and each.ref.call_id in ids:
            continue
        if nameless[each.ref.name] > 0:
            nameless[each.ref.name] -= 1
            continue
        left.append(UnexecutedCall(job_id=each.job_id, tool=each.ref.name or "", call_id=each.ref.call_id, at=each.at))
    return left
