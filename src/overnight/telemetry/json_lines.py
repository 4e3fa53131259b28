"""The event log: each event of all jobs as one line of JSON, in files that are rotated.

A line is written and flushed before the cursor moves. After a crash the last lines of the files tell what the log has
already, and a line that was cut is removed, so that each event stands in the log once. Content and free texts (questions,
notes, messages of errors) stay in the ledger, where they can be erased.
"""

import asyncio
import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from overnight.domain import StoreUnavailable, iso_utc, public_event, without_texts
from overnight.files import make_folder, open_file
from overnight.ledger import FeedEvent, FeedIdentity, FeedMark, FeedPosition
from overnight.store import Table, Unit, crash_point

from .log_mark import LogMark, check_folder

NAME = "events"
CHUNK = 1 << 16
READ_BACK = 1000
"""Lines that are compared with new events: twice a page, since at most one is written and not committed."""
MAX_OPEN_FILES = 64

_Key = tuple[tuple[int, str, int], str, str]


class LogFiles(msgspec.Struct, frozen=True):
    """Where the event log is written. `most_bytes` is the size at which a file is rotated; `kept` rotated files stay."""

    folder: Path
    by_tenant: bool = False
    most_bytes: int = 64_000_000
    kept: int = 20


class JsonLinesSink:
    """A sink that writes the event log.

    Raises StoreUnavailable where the disk takes no more; the events are written later.
    """

    name = "json_lines"

    def __init__(self, files: LogFiles) -> None:
        self._files = files
        self._open: OrderedDict[str, _LogFile] = OrderedDict()
        self._mark: LogMark | None = None
        self._feed: FeedIdentity | None = None
        # A cancelled write continues in its thread; the files are not closed under it.
        self._busy = threading.Lock()

    async def check(self, feed: FeedIdentity) -> None:
        await asyncio.to_thread(check_folder, self._files.folder, feed)

    async def opened(self, feed: FeedIdentity | None = None) -> FeedMark | None:
        return await asyncio.to_thread(self._take, feed)

    async def deliver(self, events: Sequence[FeedEvent], done: FeedPosition) -> None:  # noqa: ARG002
        await asyncio.to_thread(self._write, events)

    def locks(self, events: Sequence[FeedEvent]) -> Iterable[tuple[Table[Any], Any]]:  # noqa: ARG002
        return ()

    def write(self, unit: Unit, events: Sequence[FeedEvent]) -> None:
        """Nothing stands in the database."""

    def close(self) -> None:
        """Close the files; a later write opens them again."""
        with self._busy:
            self._close()

    def _close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()
        if self._mark is not None:
            self._mark.close()
            self._mark = None

    def _take(self, feed: FeedIdentity | None) -> FeedMark | None:
        self._feed = feed
        with self._writing(taken=False) as mark:
            return mark.newest

    def _write(self, events: Sequence[FeedEvent]) -> None:
        by_folder: dict[str, list[FeedEvent]] = {}
        for each in events:
            folder = quote(each.event.tenant_id, safe="") if self._files.by_tenant else ""
            by_folder.setdefault(folder, []).append(each)
        with self._writing(taken=True) as mark:
            for folder, own in by_folder.items():
                self._file(folder).append(own)
            if self._feed is not None:
                last = events[-1]
                mark.note(FeedMark(self._feed.epoch, last.place, last.event.at))

    @contextlib.contextmanager
    def _writing(self, *, taken: bool) -> Generator[LogMark]:
        """Keep other processes from writing. Without `taken`, take the log first; else raises Fenced if another has."""
        with self._busy:
            try:
                if not taken:
                    self._close()
                if self._mark is None:
                    self._mark, taken = LogMark(self._files.folder), False
                mark = self._mark
                with mark.held() if taken else mark.taken(self._feed):
                    yield mark
            except OSError as error:
                self._close()
                raise StoreUnavailable(f"{self._files.folder}: {error.strerror or error}") from None

    def _file(self, folder: str) -> "_LogFile":
        if folder not in self._open:
            while len(self._open) >= MAX_OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            self._open[folder] = _LogFile(self._files.folder / folder, self._files)
        self._open.move_to_end(folder)
        return self._open[folder]


class _Written(msgspec.Struct):
    """What tells a line from all others, also from those of another history of a database that was restored."""

    feed: tuple[int, str, int]
    ts: str
    event: str


class _LogFile:
    """The current file of one folder and the rotated ones beside it. Used only while the mark is held."""

    def __init__(self, folder: Path, files: LogFiles) -> None:
        make_folder(folder)
        self._folder, self._files = folder, files
        self._path = folder / f"{NAME}.jsonl"
        self._begin()

    def append(self, events: Sequence[FeedEvent]) -> None:
        """Write and flush the events that are not in the log yet."""
        if self._is_changed():
            os.close(self._descriptor)
            self._begin()
        new = [each for each in events if _key(each) not in self._written]
        if not new:
            return
        if self._size >= self._files.most_bytes:
            self._rotate(new[0])
        rest = memoryview(b"".join(map(_line, new)))
        crash_point("log_opened")
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        crash_point("log_written")
        os.fsync(self._descriptor)
        crash_point("log_flushed")
        self._size = os.fstat(self._descriptor).st_size
        self._written = {_key(each) for each in events}

    def close(self) -> None:
        os.close(self._descriptor)

    def _begin(self) -> None:
        self._descriptor = open_file(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            self._remove_cut_line()
            self._size = os.fstat(self._descriptor).st_size
            self._written = self._last_written()
        except BaseException:
            os.close(self._descriptor)
            raise

    def _is_changed(self) -> bool:
        """Whether something else replaced, removed or wrote the file: a program that rotates logs, or an operator."""
        try:
            there, own = self._path.stat(), os.fstat(self._descriptor)
        except FileNotFoundError:
            return True
        return (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino) or own.st_size != self._size

    def _rotate(self, first: FeedEvent) -> None:
        """Give the full file the time and the place of the event that comes after it as a name: a name that sorts."""
        stamp = iso_utc(first.event.at).replace(":", "").replace("-", "")
        self._path.rename(self._folder / f"{NAME}-{first.place.position:016d}-{stamp}.jsonl")
        crash_point("log_rotated")
        current = open_file(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.close(self._descriptor)
        self._descriptor = current
        for old in self._rotated()[: -self._files.kept or None]:
            old.unlink(missing_ok=True)

    def _rotated(self) -> list[Path]:
        """The rotated files, oldest first: by time, since positions go back when a database is restored."""
        return sorted(self._folder.glob(f"{NAME}-*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path.name))

    def _remove_cut_line(self) -> None:
        size = os.fstat(self._descriptor).st_size
        if cut := len(_tail(self._path, 1).rpartition(b"\n")[2]):
            os.ftruncate(self._descriptor, size - cut)

    def _last_written(self) -> set[_Key]:
        """The last lines, in this file and the ones before."""
        lines: list[bytes] = []
        for path in (self._path, *reversed(self._rotated())):
            if (most := READ_BACK - len(lines)) <= 0:
                break
            lines += _tail(path, most).splitlines()[-most:]
        found: set[_Key] = set()
        for line in lines:
            # A line that is not of this log is no event.
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                each = msgspec.json.decode(line, type=_Written)
                found.add((each.feed, each.ts, each.event))
        return found


def _tail(path: Path, lines: int) -> bytes:
    """The end of a file: at least so many whole lines, if it has them, and what may follow the last one."""
    size, length = path.stat().st_size, CHUNK
    with path.open("rb") as file:
        while True:
            file.seek(max(0, size - length))
            tail = file.read()
            if length >= size or tail.count(b"\n") > lines:
                return tail
            length *= 2


def _key(each: FeedEvent) -> _Key:
    return each.place, iso_utc(each.event.at), each.event.facts.event


def _line(each: FeedEvent) -> bytes:
    public = {"feed": list(each.place), **public_event(without_texts(each.event))}
    return msgspec.json.encode(public) + b"\n"
