"""TensorZero's gateway as a peer: the one embedded in its package, in Rust on all cores, with its logging to a database off.

PYTHON-OF-THE-PEER bench/peer_tensorzero.py CONFIG      be that gateway; the last line printed is its address
"""

import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONFIG = """
[gateway]
observability.enabled = false
[models.mock]
routing = ["mock"]
[models.mock.providers.mock]
type = "openai"
model_name = "gpt-5.4-mini"
api_base = "{upstream}/v1/"
api_key_location = "none"
"""


@contextmanager
def running(upstream: str) -> "Iterator[object]":
    """Start the gateway in front of `upstream` (`http://host:port`); gives a `Proxy`."""
    import peers
    from proxies import START_SECONDS, Proxy, started, wait_for

    with tempfile.TemporaryDirectory(prefix="bench-tensorzero-") as folder:
        home = Path(folder)
        (home / "config.toml").write_text(CONFIG.format(upstream=upstream))
        command = [peers.python("tensorzero"), Path(__file__).resolve(), home / "config.toml"]
        with started(command, home, {}) as process:
            deadline = time.monotonic() + START_SECONDS
            while not (found := [line for line in (home / "log").read_text().splitlines() if line[:2] == '{"']):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"TensorZero did not start:\n{(home / 'log').read_text()[-4000:]}")
                time.sleep(0.1)
            url = json.loads(found[0])["base_url"] + "/chat/completions"
            proxy = Proxy(url, process.pid, model="tensorzero::model_name::mock")
            wait_for("TensorZero", proxy, process, home / "log")
            yield proxy


if __name__ == "__main__":
    from tensorzero.tensorzero import _start_http_gateway  # pyright: ignore

    gateway = _start_http_gateway(
        config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False
    )
    print(json.dumps({"base_url": gateway.base_url}), flush=True)
    signal.pause()
