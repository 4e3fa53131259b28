"""Fees of tools that the provider executes within a call (a search, an interpreter), in addition to tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from overnight.domain import BadInput

Json = dict[str, Any]
Hosted = tuple[tuple[str, int], ...]
"""The provider-executed tools of a request: name, and maximum number of uses."""

MAX_USES = 10
"""Uses reserved for a tool without a limit in the request (`max_uses`, `max_tool_calls`). Further reported uses are billed."""

FEES: Mapping[str, int] = {
    "web_search": 10_000,
    "web_search_preview": 25_000,
    "file_search": 2_500,
    "code_interpreter": 30_000,
    "image_generation": 250_000,
    "code_execution": 5_000,
    # Gemini's, by https://ai.google.dev/gemini-api/docs/pricing: a search of Gemini 2.5; those of Gemini 3 cost less.
    "google_search": 35_000,
    "google_maps": 25_000,
    # Billed by tokens only, or executed by the client.
    **dict.fromkeys(("google_code_execution", "google_file_search", "url_context"), 0),
    **dict.fromkeys(("web_fetch", "mcp", "tool_search", "namespace"), 0),
    **dict.fromkeys(("computer", "computer_use_preview", "shell", "local_shell", "apply_patch"), 0),
}
"""Micro-dollars per use, from the public price lists of 2026 (image: the most expensive size; interpreter: one session)."""

_DATED = re.compile(r"_\d{4}_?\d{2}_?\d{2}$")


def hosted_tools(tools: Iterable[Json], most: int | None = None) -> Hosted:
    """The provider-executed tools of a request. `most` limits the uses of tools without their own limit."""
    found: dict[str, int] = {}
    for tool in tools:
        name = _DATED.sub("", str(tool.get("type")))
        bound = tool.get("max_uses", most)
        found[name] = found.get(name, 0) + (bound if type(bound) is int and 0 < bound < 10_000 else MAX_USES)
    return tuple(found.items())


def bound_microusd(asked: Hosted, fees: Mapping[str, int]) -> int:
    """The maximum fee of all uses, in micro-dollars. Raises BadInput for a tool without a known fee."""
    for name, _ in asked:
        if name not in fees:
            raise BadInput(
                f"tools: the provider runs {name[:64]!r} itself, and its fee is unknown; set it in"
                f" routing.yaml, 0 if it is free: hosted_tools: {{{name[:64]}: 0.01}}"
            )
    return sum(fees[name] * most for name, most in asked)


def fees_of(asked: Hosted, fees: Mapping[str, int], counted: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """The uses by tool of those `counted` in an answer, and their total fee."""
    used = {name: count for name, _ in asked if (count := counted.get(name.removesuffix("_preview"), 0))}
    return used, sum(fees[name] * count for name, count in used.items())


def uses_in_response(body: Json) -> dict[str, int]:
    """The uses of each tool in the items of a response."""
    found: dict[str, int] = {}
    sessions: set[object] = set()
    for item in _dicts(body.get("output")):
        name = str(item.get("type")).removesuffix("_call")
        action = item.get("action")
        if name == "code_interpreter":
            sessions.add(item.get("container_id"))
        elif name != "web_search" or not isinstance(action, dict) or cast("Json", action).get("type") == "search":
            found[name] = found.get(name, 0) + 1  # pages opened by a search are not billed as searches
    return found | ({"code_interpreter": len(sessions)} if sessions else {})


def uses_in_message(body: Json) -> dict[str, int]:
    """The uses of each tool in the usage of a message."""
    usage = body.get("usage")
    uses = cast("Json", usage).get("server_tool_use") if isinstance(usage, dict) else None
    counts = cast("Json", uses) if isinstance(uses, dict) else {}
    found = {
        name.removesuffix("_requests"): count
        for name, count in counts.items()
        if type(count) is int and 0 < count < 1_000_000
    }
    blocks = (block for block in _dicts(body.get("content")) if block.get("type") == "server_tool_use")
    if any("code_execution" in str(block.get("name")) for block in blocks):
        found["code_execution"] = 1  # one session, regardless of the number of runs
    return found


def _dicts(value: object) -> list[Json]:
    return (
        [cast("Json", each) for each in cast("list[Any]", value) if isinstance(each, dict)]
        if isinstance(value, list)
        else []
    )
