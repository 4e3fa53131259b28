"""Whether a process of this machine is plainly dead, so that its jobs need not wait for a lease to run out."""

import os
import socket
from pathlib import Path


def this_host() -> str:
    """The name under which process ids mean something: the host, and on Linux its namespace of process ids."""
    namespace = Path("/proc/self/ns/pid")
    try:
        return f"{socket.gethostname()}/{namespace.readlink()}"
    except OSError:
        return socket.gethostname()


def is_dead(host: str, pid: int) -> bool:
    """True only when it is certain. A process id that was given to another program counts as alive."""
    if host != this_host():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False
