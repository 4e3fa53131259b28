"""Files and folders that only their owner can access, independent of the umask.

Modes are set twice: at creation, so that nothing is accessible for a moment, and afterwards, because a umask may have removed
permissions of the owner.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

HOME_NAME = ".overnight"
"""A folder of this name belongs to Overnight, so its mode may be changed. Other folders may hold other files."""
FOLDER, FILE = 0o700, 0o600
_OTHERS = 0o077
_ENTER = 0o011


def make_folder(path: Path) -> None:
    """Create `path` and its missing parents, 0700 each. Existing folders keep their mode, except an Overnight home.

    Raises OSError.
    """
    missing: list[Path] = []
    above = path
    while not above.exists():
        missing.append(above)
        above = above.parent
    for folder in reversed(missing):
        with suppress(FileExistsError):  # created by another process
            folder.mkdir(mode=FOLDER)
            folder.chmod(FOLDER)
    if not path.is_dir():
        path.mkdir(mode=FOLDER)  # raises the reason
    for folder in (path, *path.parents):
        if folder.name == HOME_NAME and folder not in missing:
            close_to_others(folder, FOLDER)


def open_file(path: Path | str, flags: int) -> int:
    """A descriptor of `path`, created with mode 0600 if missing. `flags` as for os.open. Raises OSError."""
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
        return os.open(path, flags | os.O_CLOEXEC, FILE)  # created by another process, or a dangling link
    os.fchmod(made, FILE)
    return made


def new_file(path: Path) -> BinaryIO:
    """Create a file with mode 0600 for writing. Raises FileExistsError, OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE)
    os.fchmod(descriptor, FILE)
    return open(descriptor, "wb")


def copy_file(source: Path, target: Path) -> None:
    """Copy the bytes of `source` to a new file with mode 0600. Raises OSError."""
    with source.open("rb") as read, new_file(target) as written:
        while piece := read.read(1 << 20):
            written.write(piece)


def make_database_file(path: Path) -> None:
    """Create an empty file for SQLite, which copies its mode to its other files; existing ones are closed to others.

    Raises OSError.
    """
    # An existing file is not opened: closing it would drop the locks that SQLite holds for this process.
    with suppress(FileExistsError):
        new_file(path).close()
    for name in (path, f"{path}-wal", f"{path}-shm", f"{path}.lock"):
        close_to_others(Path(name), FILE)


def close_to_others(path: Path, mode: int) -> None:
    """Remove the permissions of other users from `path`, if this user owns it."""
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
    """Whether other users can read the file or enter the folder `path`, through all of its parents."""
    try:
        path = path.resolve(strict=True)
        wanted = _ENTER if path.is_dir() else 0o044
        return bool(path.stat().st_mode & wanted) and all(each.stat().st_mode & _ENTER for each in path.parents)
    except OSError:
        return False
