"""Named points at which a test can kill the process: `OVERNIGHT_CRASH_AT=effect_called:3` is SIGKILL at the third pass.

They stand in the product's own code, because a crash that a test simulates elsewhere proves nothing about this code.
"""

import os
import signal
from collections import Counter

_armed = os.environ.get("OVERNIGHT_CRASH_AT", "")
_name, _, _count = _armed.partition(":")
_passes: Counter[str] = Counter()


def _kill_at(name: str) -> None:
    _passes[name] += 1
    if name == _name and _passes[name] == int(_count or 1):
        os.kill(os.getpid(), signal.SIGKILL)


def _nothing(_: str) -> None:
    return


crash_point = _kill_at if _armed else _nothing
