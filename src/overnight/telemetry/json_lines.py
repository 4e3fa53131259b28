"""The event log: each event of all jobs as one line of JSON, in files that are rotated.

A line is written and flushed before the cursor moves. After a crash the last line of a file tells what it has already, and a line
that was cut is removed, so that each event stands in the log once. Content and messages of errors stay in the ledger, where they
can be erased.
"""

import asyncio
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from overnight.domain import StoreUnavailable, iso_utc, public_event
from overnight.files import make_folder, open_file
from overnight.ledger import START, FeedEvent, FeedPosition
from overnight.store import Table, Unit

NAME = "events"
CHUNK = 1 << 16


class LogFiles(msgspec.Struct, frozen=True):
    """Where the event log is written. `most_bytes` is the size at which a file is rotated; `kept` rotated files stay."""

    folder: Path
    by_tenant: bool = False
    most_bytes: int = 64_000_000
    kept: int = 20


class JsonLinesSink:
    """A sink that writes the event log. Raises StoreUnavailable where the disk takes no more; the events are written later."""

    name = "json_lines"

    def __init__(self, files: LogFiles) -> None:
        self._files = files
        self._open: dict[str, _LogFile] = {}

    async def deliver(self, events: Sequence[FeedEvent], done: FeedPosition) -> None:  # noqa: ARG002
        await asyncio.to_thread(self._write, events)

    def locks(self, events: Sequence[FeedEvent]) -> Iterable[tuple[Table[Any], Any]]:  # noqa: ARG002
        return ()

    def write(self, unit: Unit, events: Sequence[FeedEvent]) -> None:
        """Nothing stands in the database."""

    def close(self) -> None:
        """Close the files; a later write opens them again."""
        while self._open:
            self._open.popitem()[1].close()

    def _write(self, events: Sequence[FeedEvent]) -> None:
        by_folder: dict[str, list[FeedEvent]] = {}
        for each in events:
            folder = quote(each.event.tenant_id, safe="") if self._files.by_tenant else ""
            by_folder.setdefault(folder, []).append(each)
        for folder, own in by_folder.items():
            try:
                if folder not in self._open:
                    self._open[folder] = _LogFile(self._files.folder / folder, self._files)
                self._open[folder].append(own)
            except OSError as error:
                self.close()
                raise StoreUnavailable(f"{self._files.folder}: {error.strerror or error}") from None


class _LogFile:
    """The current file of one folder and the rotated ones beside it."""

    def __init__(self, folder: Path, files: LogFiles) -> None:
        make_folder(folder)
        self._folder, self._files = folder, files
        self._path = folder / f"{NAME}.jsonl"
        self._descriptor = open_file(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self._remove_cut_line()
        self._last = self._last_place()

    def append(self, events: Sequence[FeedEvent]) -> None:
        """Write and flush the events that are not in the log yet."""
        lines = [_line(each) for each in events if each.place > self._last]
        if not lines:
            return
        if os.fstat(self._descriptor).st_size >= self._files.most_bytes:
            self._rotate(events[0])
        rest = memoryview(b"".join(lines))
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        os.fsync(self._descriptor)
        self._last = events[-1].place

    def close(self) -> None:
        os.close(self._descriptor)

    def _rotate(self, first: FeedEvent) -> None:
        """Give the full file the time and the place of the event that comes after it as a name: a name that sorts."""
        stamp = iso_utc(first.event.at).replace(":", "").replace("-", "")
        os.close(self._descriptor)
        self._path.rename(self._folder / f"{NAME}-{first.place.position:016d}-{stamp}.jsonl")
        self._descriptor = open_file(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        for old in self._rotated()[: -self._files.kept or None]:
            old.unlink(missing_ok=True)

    def _rotated(self) -> list[Path]:
        return sorted(self._folder.glob(f"{NAME}-*.jsonl"))

    def _remove_cut_line(self) -> None:
        size = os.fstat(self._descriptor).st_size
        if cut := len(_tail(self._path).rpartition(b"\n")[2]):
            os.ftruncate(self._descriptor, size - cut)

    def _last_place(self) -> FeedPosition:
        """The place of the last line, in this file or, just after a rotation, in the one before."""
        for path in (self._path, *reversed(self._rotated()[-1:])):
            if lines := _tail(path).splitlines():
                return FeedPosition(*msgspec.json.decode(lines[-1])["feed"])
        return START


def _tail(path: Path) -> bytes:
    """The end of a file: its last whole line at least, and what may follow it."""
    size, length = path.stat().st_size, CHUNK
    with path.open("rb") as file:
        while True:
            file.seek(max(0, size - length))
            tail = file.read()
            if length >= size or tail.count(b"\n") > 1:
                return tail
            length *= 2


def _line(each: FeedEvent) -> bytes:
    event, facts = each.event, each.event.facts
    if facts.error is not None:
        facts = msgspec.structs.replace(facts, error=msgspec.structs.replace(facts.error, message=""))
        event = msgspec.structs.replace(event, facts=facts)
    public = {"feed": list(each.place), **public_event(event)}
    return msgspec.json.encode(public) + b"\n"
