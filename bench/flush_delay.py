"""Make flushes cost what they cost on an honest disk, for one subprocess and its children.

`environment(5)` is the environment to start it with; `check_flush_delay.py` proves that it works.
"""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("flush_delay.c")
CACHE = SOURCE.parent / ".peers"  # not /tmp: a library that root preloads must not stand where others can write


def library() -> Path:
    """The compiled shim, built with `cc` once per version of its source."""
    built = CACHE / f"flush_delay-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}.so"
    if not built.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            fresh = Path(scratch) / built.name
            subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", fresh, SOURCE, "-ldl"], check=True)
            fresh.replace(built)  # atomic: two benchmarks may start at once
    return built


def environment(delay_ms: float = 0, **variables: str) -> dict[str, str]:
    """This process's environment plus `variables`, and the shim in front when `delay_ms` > 0."""
    env = {key: value for key, value in os.environ.items() if key != "FLUSH_DELAY_MS"} | variables
    if delay_ms > 0:
        env |= {"LD_PRELOAD": str(library()), "FLUSH_DELAY_MS": str(delay_ms)}
    return env
