"""Files and folders for their owner alone. All that holds content is made here, whatever the umask says.

Modes are set twice: when something is made, so that it is never open for a moment, and after, because a umask may have taken
away what the owner needs.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

HOME_NAME = ".overnight"
"""A folder of this name is this program's, and may be closed to others. A folder that was named may hold other things."""
FOLDER, FILE = 0o700, 0o600
_OTHERS = 0o077
_ENTER = 0o011


def make_folder(path: Path) -> None:
    """Make `path` and the folders above it that are missing, 0700 each. What exists stays, but a home of ours is closed.

    Raises OSError.
    """
    missing: list[Path] = []
    above = path
    while not above.exists():
        missing.append(above)
        above = above.parent
    for folder in reversed(missing):
        with suppress(FileExistsError):  # another process was quicker
            folder.mkdir(mode=FOLDER)
            folder.chmod(FOLDER)
    if not path.is_dir():
        path.mkdir(mode=FOLDER)  # says why it cannot be
    for folder in (path, *path.parents):
        if folder.name == HOME_NAME and folder not in missing:
            close_to_others(folder, FOLDER)


def open_file(path: Path | str, flags: int) -> int:
    """A descriptor of `path`, made 0600 where it is missing. `flags` as for os.open. Raises OSError."""
    try:
        return os.open(path, flags & ~os.O_CREAT | os.O_CLOEXEC)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    try:
        made = os.open(path, flags | os.O_EXCL | os.O_CLOEXEC, FILE)
    except FileExistsError:
        if flags & os.O_EXCL:
            raise
        return os.open(path, flags | os.O_CLOEXEC, FILE)  # another process was quicker, or a link leads to nothing yet
    os.fchmod(made, FILE)
    return made


def new_file(path: Path) -> BinaryIO:
    """A new file to write to, 0600. Raises FileExistsError, OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE)
    os.fchmod(descriptor, FILE)
    return open(descriptor, "wb")


def copy_file(source: Path, target: Path) -> None:
    """The bytes of `source` in a new file, 0600: the modes of the source stay behind. Raises OSError."""
    with source.open("rb") as read, new_file(target) as written:
        while piece := read.read(1 << 20):
            written.write(piece)


def make_database_file(path: Path) -> None:
    """An empty file for SQLite, which gives the mode of it to its other files; those that exist are closed to others.

    Raises OSError.
    """
    # One that exists is not opened: to close it again would drop the locks that SQLite holds on it for this process.
    with suppress(FileExistsError):
        new_file(path).close()
    for name in (path, f"{path}-wal", f"{path}-shm", f"{path}.lock"):
        close_to_others(Path(name), FILE)


def close_to_others(path: Path, mode: int) -> None:
    """Take from others what they may do with `path`, where it is ours and they may do something."""
    with suppress(OSError):
        found = path.stat()
        if (
            found.st_mode & _OTHERS
            and found.st_uid == os.geteuid()
            and stat.S_IFMT(found.st_mode)
            in (
                stat.S_IFREG,
                stat.S_IFDIR,
            )
        ):
            path.chmod(mode)


def is_open_to_others(path: Path) -> bool:
    """Whether others can reach `path` and read it, or enter it: each folder on the way to it lets somebody through."""
    try:
        path = path.resolve(strict=True)
        wanted = _ENTER if path.is_dir() else 0o044
        return bool(path.stat().st_mode & wanted) and all(each.stat().st_mode & _ENTER for each in path.parents)
    except OSError:
        return False
