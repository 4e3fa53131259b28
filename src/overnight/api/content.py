"""Content of jobs, which only keys with the scope `content.read` receive."""

from __future__ import annotations

from typing import Any

from overnight.domain import wait_without_texts
from overnight.keys import VirtualKey


def reads_content(key: VirtualKey | None) -> bool:
    """Whether a caller receives content; without keys, every caller does."""
    return key is None or "content.read" in key.scopes


def without_content(shown: dict[str, Any]) -> dict[str, Any]:
    """A public job without its content: result, traceback, the message of its error, and texts of what it waits for."""
    found = {name: value for name, value in shown.items() if name not in {"result", "traceback"}}
    found["waiting"] = [wait_without_texts(wait) for wait in shown["waiting"]]
    if found.get("error"):
        found["error"] = {name: value for name, value in found["error"].items() if name != "message"}
    return found
