"""The tools of a Responses request as chat functions, and their original names.

A tool of a `namespace`, in which Codex groups the tools of an MCP server, becomes a function with both names. A custom tool
becomes a function with one string parameter. Tools that the provider executes are reported as losses; a request whose
`tool_choice` requires one is rejected.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from .contract import InvalidBody, Json, Losses
from .identifiers import CHAT_NAME, fit_name
from .tool_schemas import parameters_schema, without_repeated

NAMESPACE = "namespace"
_ONE_TEXT: Json = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


class ToolNames(NamedTuple):
    """The names of custom tools, and the namespace and name of each function that was made of a namespace's tool."""

    custom: frozenset[str]
    namespaced: dict[str, tuple[str, str]]


def function_name(namespace: Any, name: str) -> str:
    """The name of the function for a tool, which may be in a namespace."""
    if not isinstance(namespace, str) or not namespace:
        return name
    joint = "" if namespace.endswith("__") else "__"
    return fit_name(f"{namespace}{joint}{name}", CHAT_NAME)


def tool_names(body: Json) -> ToolNames:
    """The names by which calls of the request's tools are returned."""
    custom: set[str] = set()
    namespaced: dict[str, tuple[str, str]] = {}
    for tool, namespace, _ in _flat(body.get("tools")):
        name = function_name(namespace, str(tool.get("name")))
        if tool.get("type") == "custom":
            custom.add(name)
        if namespace:
            namespaced.setdefault(name, (namespace, str(tool.get("name"))))
    return ToolNames(frozenset(custom), namespaced)


def set_tools(body: Json, sent: Json, losses: Losses) -> None:
    """Set `tools`, `tool_choice` and `parallel_tool_calls` of the chat body. Raises InvalidBody."""
    choice: Any = body.get("tool_choice")
    tools: list[Json] = []
    places: list[str] = []
    for tool, namespace, place in _flat(body.get("tools")):
        kind = tool.get("type")
        if kind == "function":
            tools.append(_function(tool, namespace, losses, place))
        elif kind == "custom":
            tools.append(_custom(tool, namespace, losses, place))
        else:
            losses.append(f"{place} ({kind})")
            continue
        places.append(place)
    tools = without_repeated(tools, [tool["function"]["name"] for tool in tools], losses, places)
    names = {tool["function"]["name"] for tool in tools}
    if isinstance(choice, dict):
        choice, names = _chosen(cast("Json", choice), names, tool_names(body))
        tools = [tool for tool in tools if tool["function"]["name"] in names]
    if choice == "required" and not tools:
        raise InvalidBody(
            "tool_choice: no tool remains that the target's API can call; offer a function", "tool_choice"
        )
    if not tools:
        return
    sent["tools"] = tools
    if choice is not None:
        sent["tool_choice"] = choice
    if body.get("parallel_tool_calls") is not None:
        sent["parallel_tool_calls"] = body["parallel_tool_calls"]


def _flat(tools: Any) -> Iterator[tuple[Json, str, str]]:
    """Each tool with its namespace ("" without one) and its place."""
    for at, tool in enumerate(cast("list[Json]", tools or [])):
        if tool.get("type") != NAMESPACE:
            yield tool, "", f"tools[{at}]"
            continue
        for inner_at, inner in enumerate(cast("list[Json]", tool.get("tools") or [])):
            yield inner, str(tool.get("name") or ""), f"tools[{at}].tools[{inner_at}]"


def _function(tool: Json, namespace: str, losses: Losses, where: str) -> Json:
    if not isinstance(tool.get("name"), str):
        raise InvalidBody(f"{where}: a function requires a name beside its type", f"{where}.name")
    function: Json = {
        "name": function_name(namespace, tool["name"]),
        "parameters": parameters_schema(tool.get("parameters"), f"{where}.parameters", losses),
    }
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    known = {"type", "name", "parameters", "description", "strict"}
    losses += [f"{where}.{name}" for name, value in tool.items() if name not in known and value not in (None, False)]
    return {"type": "function", "function": function}


def _custom(tool: Json, namespace: str, losses: Losses, where: str) -> Json:
    if not isinstance(tool.get("name"), str):
        raise InvalidBody(f"{where}: a custom tool requires a name beside its type", f"{where}.name")
    description: str = tool.get("description") or ""
    form: Json = tool.get("format") or {}
    if form.get("type") == "grammar":
        losses.append(f"{where}.format")
        description += f"\n\nThe input follows this {form.get('syntax')} grammar:\n{form.get('definition')}"
    name = function_name(namespace, tool["name"])
    function: Json = {"name": name, "description": description.strip(), "parameters": _ONE_TEXT}
    return {"type": "function", "function": function}


def _chosen(choice: Json, names: set[str], known: ToolNames) -> tuple[Any, set[str]]:
    """The tool choice in the chat format, and the names of the remaining tools."""
    kind, name = choice.get("type"), function_name(choice.get("namespace"), str(choice.get("name")))
    if kind in ("function", "custom") and name in names:
        return {"type": "function", "function": {"name": name}}, names
    if kind == "allowed_tools":
        allowed: set[str] = set()
        for tool in cast("list[Json]", choice.get("tools") or []):
            if tool.get("type") == NAMESPACE:
                allowed |= {each for each, (space, _) in known.namespaced.items() if space == tool.get("name")}
            else:
                allowed.add(function_name(tool.get("namespace"), str(tool.get("name"))))
        return choice.get("mode") or "auto", names & allowed
    wanted = choice.get("name") or kind
    raise InvalidBody(f"tool_choice: the target's API cannot call {wanted}; offer a function", "tool_choice")
