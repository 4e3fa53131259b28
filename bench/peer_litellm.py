"""LiteLLM's proxy as a peer: in front of the fixed-answer upstream, one worker, nothing stored, telemetry off.

    python bench/peer_litellm.py --connections 16        one figure; the proxy takes a while to start

Other benchmarks keep `running()` open and put `load.py` in turn on its address and on ours. Value: requests per second.
"""

import argparse
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import load
import peers
import upstream_mock

MODEL = "gpt-5.4-mini"
START_SECONDS = 180
ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it asks the internet for prices
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_DISABLE_TELEMETRY": "True",
    "DO_NOT_TRACK": "1",
    "NO_DOCS": "True",
}


@dataclass(frozen=True)
class Proxy:
    """A running proxy: `url` of its chat completions, `headers` it asks for, `pid` for its CPU time."""

    url: str
    headers: dict[str, str]
    pid: int


@contextmanager
def running(upstream: str) -> Iterator[Proxy]:
    """Start the proxy in front of `upstream` (`http://host:port`); it has answered a completion when this returns."""
    key = f"sk-{secrets.token_hex(32)}"  # it does not start without one; good for this run only
    target = {"model": f"openai/{MODEL}", "api_base": f"{upstream}/v1", "api_key": "unused"}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": target}],
        "litellm_settings": {"telemetry": False, "num_retries": 0},
    }
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="bench-litellm-") as folder:
        home = Path(folder)
        (home / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        command = [Path(peers.python("litellm")).with_name("litellm"), "--config", home / "config.yaml"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1", "--telemetry", "False"]
        env = os.environ | ENVIRONMENT | {"LITELLM_MASTER_KEY": key}
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=home, env=env, stdout=log, stderr=log)
        proxy = Proxy(f"http://127.0.0.1:{port}/v1/chat/completions", {"authorization": f"Bearer {key}"}, process.pid)
        try:
            _wait(proxy, process, home / "log")
            yield proxy
        finally:
            process.kill()  # one worker is one process, and it keeps nothing worth saving
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(proxy: Proxy, process: subprocess.Popen[bytes], log: Path) -> None:
    headers = proxy.headers | {"content-type": "application/json"}
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            question = urllib.request.Request(proxy.url, load.chat_body(), headers)
            with urllib.request.urlopen(question, timeout=30) as answer:
                if upstream_mock.TEXT in answer.read().decode():
                    return
                raise RuntimeError("LiteLLM answered, but not with the upstream's text")
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"LiteLLM answered {error.code}: {error.read().decode()[:500]}") from None
        except (urllib.error.URLError, ConnectionError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"LiteLLM did not start:\n{log.read_text()[-4000:]}") from None
            time.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, nargs="+", default=[16])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--stream", action="store_true")
    options = parser.parse_args()
    clean = True
    with upstream_mock.running() as upstream, running(upstream) as proxy:
        question = [load.request(proxy.url, load.chat_body(stream=options.stream), proxy.headers)]
        for connections in options.connections:
            result = load.run(
                proxy.url,
                question,
                connections=connections,
                seconds=options.seconds,
                warm_up=2,
                server_pid=proxy.pid,
            )
            clean = clean and result.clean
            print(json.dumps(result.summary() | {"connections": connections}))
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
