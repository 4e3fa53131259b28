"""Names and ids as the other side takes them: letters, digits, `_` and `-`, up to some length.

A name that does not fit is shortened and gets a mark of its own, so that two names never become one and the way back is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256

_OTHER = re.compile(r"[^a-zA-Z0-9_-]")
MESSAGES_NAME = 128
CHAT_NAME = 64
CHAT_ID = 40
"""The longest id of a tool call that all of OpenAI's own endpoints take."""
MESSAGES_ID = 128


def fitting(name: str, most: int) -> str:
    """The name where it fits, else one made of it."""
    if name and len(name) <= most and not _OTHER.search(name):
        return name
    mark = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{_OTHER.sub('_', name)[: most - 13]}_{mark}"


def way_back(names: Iterable[str], most: int) -> Mapping[str, str]:
    """What the names became, and what they were; those that fit are left out."""
    return {became: name for name in names if (became := fitting(name, most)) != name}
