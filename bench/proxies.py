"""What the peers of the gateway have in common: an address, headers, the name of a model, and a start that is waited for."""

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import load
import upstream_mock

START_SECONDS = 180


@dataclass(frozen=True)
class Proxy:
    """A running proxy: `url` of its chat completions, `headers` it asks for, `model` as it is called there, `pid` for its CPU."""

    url: str
    pid: int
    headers: dict[str, str] = field(default_factory=dict[str, str])
    model: str = "gpt-5.4-mini"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def started(command: Sequence[str | Path], home: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The process, with its output in `home/log`; killed at the end: a peer keeps nothing worth saving."""
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=home, env=os.environ | dict(env), stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(name: str, proxy: Proxy, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the proxy has answered a completion with the upstream's text."""
    headers = proxy.headers | {"content-type": "application/json"}
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            question = urllib.request.Request(proxy.url, load.chat_body(model=proxy.model), headers)
            with urllib.request.urlopen(question, timeout=30) as answer:
                if upstream_mock.TEXT in answer.read().decode():
                    return
                raise RuntimeError(f"{name} answered, but not with the upstream's text")
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{name} answered {error.code}: {error.read().decode()[:500]}") from None
        except (urllib.error.URLError, ConnectionError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start:\n{log.read_text()[-4000:]}") from None
            time.sleep(0.3)
