"""LiteLLM's proxy as a peer: in front of the fixed-answer upstream, one worker, nothing stored, telemetry off."""

import json
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peers
from proxies import Proxy, free_port, started, wait_for

ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it asks the internet for prices
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_DISABLE_TELEMETRY": "True",
    "DO_NOT_TRACK": "1",
    "NO_DOCS": "True",
}


@contextmanager
def running(upstream: str) -> Iterator[Proxy]:
    """Start the proxy in front of `upstream` (`http://host:port`); it has answered a completion when this returns."""
    key = f"sk-{secrets.token_hex(32)}"  # it does not start without one; good for this run only
    target = {"model": f"openai/{Proxy.model}", "api_base": f"{upstream}/v1", "api_key": "unused"}
    config = {
        "model_list": [{"model_name": Proxy.model, "litellm_params": target}],
        "litellm_settings": {"telemetry": False, "num_retries": 0},
    }
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-litellm-") as folder:
        home = Path(folder)
        (home / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        command = [Path(peers.python("litellm")).with_name("litellm"), "--config", home / "config.yaml"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1", "--telemetry", "False"]
        with started(command, home, ENVIRONMENT | {"LITELLM_MASTER_KEY": key}) as process:
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            proxy = Proxy(url, process.pid, {"authorization": f"Bearer {key}"})
            wait_for("LiteLLM", proxy, process, home / "log")
            yield proxy
