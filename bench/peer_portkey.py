"""Portkey's gateway as a peer: in front of the fixed-answer upstream, one process, nothing stored, no console."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peers
from proxies import Proxy, free_port, started, wait_for


@contextmanager
def running(upstream: str) -> Iterator[Proxy]:
    """Start the gateway; `upstream` (`http://host:port`) is named in a header of every request, as it wants it."""
    home = Path(peers.python("portkey")).parents[1]
    server = home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-portkey-") as folder:
        command = [peers.node("portkey"), server, f"--port={port}", "--headless"]
        # Addresses on this machine are refused unless they are listed.
        with started(command, Path(folder), {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1"}) as process:
            headers = {
                "authorization": "Bearer unused",
                "x-portkey-provider": "openai",
                "x-portkey-custom-host": f"{upstream}/v1",
            }
            proxy = Proxy(f"http://127.0.0.1:{port}/v1/chat/completions", process.pid, headers)
            wait_for("Portkey", proxy, process, Path(folder) / "log")
            yield proxy
