"""The OpenAPI document matches the served paths, and generated requests receive documented responses."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from overnight.api.openapi import document
from overnight.api.routes import ROUTES
from overnight.testing import spawn_scripted_provider

DOCUMENT: dict[str, Any] = json.loads(document())


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, str]]:
    """The address of a gateway, and an admin's key for it."""
    with tempfile.TemporaryDirectory() as home, spawn_scripted_provider() as provider:
        env = {key: value for key, value in os.environ.items() if not key.endswith(("_API_KEY", "_BASE_URL"))}
        env |= {
            "OVERNIGHT_HOME": home,
            "OVERNIGHT_OFFLINE_BASE_URL": provider.base_url,
        }
        command = [sys.executable, "-m", "overnight", "gateway", "--port", "0"]
        make = [sys.executable, "-m", "overnight", "keys", "create", "tester", "--json"]
        for scope in ("call", "read", "operate", "admin", "instance.admin"):
            make += ["--scope", scope]
        made = subprocess.run(make, env=env, cwd=home, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
        with (Path(home) / "log").open("w") as log:
            process = subprocess.Popen(command, env=env, cwd=home, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}", json.loads(made.stdout)["key"]
        finally:
            process.terminate()
            process.wait(30)
            said = (Path(home) / "log").read_text()
        assert "internal error in a request" not in said, said[-3000:]


def test_document_lists_exactly_the_routes_with_their_scopes() -> None:
    said = {
        (method.upper(), path, operation.get("x-overnight-scope"))
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
        if method != "parameters"
    }
    assert said == {(route.method, route.template, route.scope) for route in ROUTES}


@pytest.mark.timeout(280)
def test_generated_requests_receive_documented_responses(served: tuple[str, str], tmp_path: Path) -> None:
    """Schemathesis makes requests out of the document, good ones and bad ones: none is a 500, and every answer has its shape."""
    url, key = served
    command = [
        Path(sys.executable).with_name("schemathesis"),
        "run",
        f"{url}/openapi.json",
        "--max-examples=12",
        "--seed=7",
    ]
    command += ["--checks=not_a_server_error,content_type_conformance,response_schema_conformance"]
    command += [
        "--phases=examples,coverage,fuzzing",
        "--no-color",
        "--generation-database=none",
        f"--header=authorization: Bearer {key}",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=270, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
