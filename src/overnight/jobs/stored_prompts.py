"""The prompts of stored brain versions, and which messages of a model call are such prompts."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from overnight.ledger import read_brain_files
from overnight.store import Store

if TYPE_CHECKING:
    from overnight.brain import Prompt

MAX_VERSIONS = 16
MAX_RENDERED = 10_000


class StoredPrompts:
    """Reads the prompts of brain versions from the store. A version never changes, so the latest ones stay in memory."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[str, Mapping[str, Prompt]] = OrderedDict()

    def known(self, version: str) -> Mapping[str, Prompt] | None:
        """The prompts of a version by name, if they are in memory."""
        found = self._known.get(version)
        if found is not None:
            self._known.move_to_end(version)
        return found

    async def read(self, version: str) -> Mapping[str, Prompt]:
        """The prompts of a version by name. Raises NotFound if the store lacks one of its files, and StoreUnavailable."""
        from overnight.brain import read_prompts

        found = read_prompts(await read_brain_files(self._store, version))
        self._known[version] = found
        while len(self._known) > MAX_VERSIONS:
            self._known.popitem(last=False)
        return found


class RenderedPrompts:
    """The names of the prompts that a job has read, by the hash of their text."""

    def __init__(self) -> None:
        self._names: OrderedDict[bytes, str] = OrderedDict()

    def add(self, text: str, name: str) -> None:
        self._names[_digest(text)] = name
        if len(self._names) > MAX_RENDERED:
            self._names.popitem(last=False)

    def names_in(self, messages: Iterable[Any]) -> tuple[str, ...]:
        """The names of the prompts that are the text of a message or of a part of one, each once, in order."""
        if not self._names:
            return ()
        found = [self._names.get(_digest(text)) for message in messages for text in _texts(message)]
        return tuple(dict.fromkeys(name for name in found if name is not None))


def _texts(message: Any) -> Iterable[str]:
    content = cast("dict[str, Any]", message).get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in cast("list[Any]", content):
            text = cast("dict[str, Any]", part).get("text") if isinstance(part, dict) else None
            if isinstance(text, str):
                yield text


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
