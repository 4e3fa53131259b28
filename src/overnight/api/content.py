"""Content of jobs and events, which only keys with the scope `content.read` receive."""

from __future__ import annotations

from typing import Any

from overnight.keys import VirtualKey


def reads_content(key: VirtualKey | None) -> bool:
    """Whether a caller receives content; without keys, every caller does."""
    return key is None or "content.read" in key.scopes


def without_content(shown: dict[str, Any]) -> dict[str, Any]:
    """A public job or event without its content: result, traceback, and the message of its error."""
    found = {name: value for name, value in shown.items() if name not in {"result", "traceback", "content"}}
    if found.get("error"):
        found["error"] = {name: value for name, value in found["error"].items() if name != "message"}
    return found
