"""Named points at which a test can kill or stop the process.

`OVERNIGHT_CRASH_AT=effect_called:3` sends SIGKILL at the third pass. `OVERNIGHT_STOP_AT` sends SIGSTOP instead;
SIGCONT resumes. The points are part of the product code, because a crash simulated elsewhere proves nothing about
this code.
"""

import os
import signal
from collections import Counter

_armed = {
    name: os.environ[variable].partition(":")
    for name, variable in ((signal.SIGKILL, "OVERNIGHT_CRASH_AT"), (signal.SIGSTOP, "OVERNIGHT_STOP_AT"))
    if os.environ.get(variable)
}
_passes: Counter[str] = Counter()


def _signal_at(name: str) -> None:
    _passes[name] += 1
    for number, (point, _, count) in _armed.items():
        if name == point and _passes[name] == int(count or 1):
            os.kill(os.getpid(), number)


def _nothing(_: str) -> None:
    return


crash_point = _signal_at if _armed else _nothing
