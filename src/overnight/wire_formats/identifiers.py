"""Names and ids in the form that the target accepts: letters, digits, `_` and `-`, up to a maximum length.

A rejected name is shortened and gets a hash, so that two names stay different and the original name can be restored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256

_OTHER = re.compile(r"[^a-zA-Z0-9_-]")
MESSAGES_NAME = 128
CHAT_NAME = 64
CHAT_ID = 40
"""The maximum length of a tool call id that all OpenAI endpoints accept."""
MESSAGES_ID = 128


def fit_name(name: str, most: int) -> str:
    """The name if the target accepts it, else a shortened name with a hash."""
    if name and len(name) <= most and not _OTHER.search(name):
        return name
    mark = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{_OTHER.sub('_', name)[: most - 13]}_{mark}"


def original_names(names: Iterable[str], most: int) -> Mapping[str, str]:
    """Map changed names to the original ones. Names that did not change are absent."""
    return {became: name for name in names if (became := fit_name(name, most)) != name}
