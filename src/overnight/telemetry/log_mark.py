"""The mark of an event log: the file that names the process which writes the log, and that is locked while it does.

The cursor of the sink alone does not suffice: a process that stalled before its write would find out after it. The mark also
names the ledger of the log, and the newest event in it: a database without that event was restored from a backup.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Generator
from pathlib import Path

import msgspec

from overnight.domain import BadInput, Fenced, StoreUnavailable, new_id
from overnight.files import make_folder, open_file
from overnight.ledger import FeedIdentity, FeedMark

NAME = "events.lock"
MAX_WAIT_S, LOOK_S = 1.0, 0.01
"""How long a sink waits for another process that is just writing, and how often it looks."""
LENGTH = 1024
"""A mark is written at once, and is never partly that of before."""


class _Record(msgspec.Struct, omit_defaults=True):
    """The content of the file. An empty `ledger` is not known."""

    process: str = ""
    ledger: str = ""
    newest: FeedMark | None = None


class LogMark:
    """The mark of the log in a folder. `newest` is the newest event in the log, as far as it is known."""

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._folder, self._process, self._record = folder, new_id("log"), _Record()
        self._path = folder / NAME
        self._descriptor = open_file(self._path, os.O_RDWR | os.O_CREAT)

    @property
    def newest(self) -> FeedMark | None:
        return self._record.newest

    @contextlib.contextmanager
    def taken(self, feed: FeedIdentity | None) -> Generator[None]:
        """Lock the log, and take it for this process.

        Raises:
            BadInput: it is the log of another ledger.
            StoreUnavailable: another process did not release it for a long time.
        """
        with self._locked():
            _check_ledger(self._folder, self._record, feed)
            self._record.process = self._process
            self._record.ledger = feed.ledger_id if feed is not None else self._record.ledger
            self._write()
            yield

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """Lock the log. Raises Fenced if another process took it, StoreUnavailable after a long wait."""
        with self._locked():
            if self._record.process != self._process:
                raise Fenced("another process writes the event log")
            yield

    def note(self, newest: FeedMark) -> None:
        """Keep the newest event of the log, which is locked."""
        self._record.newest = newest
        self._write()

    def close(self) -> None:
        os.close(self._descriptor)

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        self._lock()
        try:
            if not self._path.exists() or not os.path.samestat(self._path.stat(), os.fstat(self._descriptor)):
                raise Fenced("the lock of the event log was removed")
            self._record = _decode(os.pread(self._descriptor, LENGTH, 0))
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _write(self) -> None:
        os.pwrite(self._descriptor, msgspec.json.encode(self._record).ljust(LENGTH - 1) + b"\n", 0)

    def _lock(self) -> None:
        until = time.monotonic() + MAX_WAIT_S
        while True:
            try:
                return fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise StoreUnavailable("another process is writing the event log") from None
                time.sleep(LOOK_S)


def check_folder(folder: Path, feed: FeedIdentity) -> None:
    """Raises BadInput if the folder holds the log of another ledger."""
    try:
        record = _decode((folder / NAME).read_bytes())
    except OSError:
        return  # the sink reports it
    _check_ledger(folder, record, feed)


def _check_ledger(folder: Path, record: _Record, feed: FeedIdentity | None) -> None:
    if feed is not None and record.ledger not in ("", feed.ledger_id):
        raise BadInput(
            f"{folder}: this folder holds the event log of another ledger. Set OVERNIGHT_EVENT_LOG to a folder of its own;"
            " if this ledger replaces the other one, move the folder away first"
        )


def _decode(content: bytes) -> _Record:
    try:
        return msgspec.json.decode(content, type=_Record)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Record()  # a new file, or that of an earlier version
