"""The `api` process behind the gateway's port: what it serves, and what goes on while it is killed."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from overnight.testing import SpawnedProvider

CALL = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "hello"}]}


@contextlib.contextmanager
def role(folder: Path, *words: str) -> Iterator[tuple["subprocess.Popen[str]", dict[str, Any]]]:
    """A process of a role, and the line with which it said that it was ready."""
    environment = os.environ | {"OVERNIGHT_HOME": str(folder)}
    command = [sys.executable, "-m", "overnight", *words]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture
def both(tmp_path: Path, provider: SpawnedProvider) -> Iterator[tuple["subprocess.Popen[str]", str, httpx2.Client]]:
    """The api process, its socket, and a client of the gateway in front of it."""
    offline = ("--offline-base-url", provider.base_url)
    path = str(tmp_path / "api.sock")
    with (
        role(tmp_path, "api", "--socket", path, *offline) as (api, _),
        role(tmp_path, "gateway", "--port", "0", "--api-socket", path, *offline) as (_, ready),
        httpx2.Client(base_url=f"http://127.0.0.1:{ready['port']}", timeout=20) as client,
    ):
        yield api, path, client


def test_jobs_of_the_gateway_are_served_by_the_api_process(both: Any) -> None:
    _, path, client = both
    assert Path(path).stat().st_mode & 0o077 == 0
    assert client.post("/v1/chat/completions", json=CALL, headers={"x-job-id": "mail-1"}).status_code == 200
    listed = client.get("/api/v1/jobs").json()["jobs"]
    assert [job["external_id"] for job in listed] == ["mail-1"]
    with client.stream("GET", "/api/v1/jobs/mail-1/events", headers={"accept": "text/event-stream"}) as live:
        assert live.status_code == 200
        assert next(line for line in live.iter_lines() if line.startswith("data:"))
    assert client.get("/api/v1/jobs", headers={"host": "evil.example"}).status_code == 403


def test_model_calls_go_on_while_the_api_process_is_dead(both: Any) -> None:
    api, _, client = both
    api.send_signal(signal.SIGKILL)
    api.wait()
    answer = client.get("/api/v1/jobs")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.headers["content-type"] == "application/problem+json"
    assert client.post("/v1/chat/completions", json=CALL).status_code == 200
    assert client.get("/healthz").status_code == 200


def test_a_stopped_api_process_delays_no_model_call(both: Any) -> None:
    api, _, client = both
    api.send_signal(signal.SIGSTOP)
    try:
        with (
            httpx2.Client(base_url=client.base_url, timeout=0.5) as hasty,
            contextlib.suppress(httpx2.TimeoutException),
        ):
            hasty.get("/api/v1/jobs")
        began = time.monotonic()
        assert client.post("/v1/chat/completions", json=CALL).status_code == 200
        assert time.monotonic() - began < 15  # it would hang for good
    finally:
        api.send_signal(signal.SIGCONT)
    assert client.get("/api/v1/jobs").status_code == 200


def test_an_answer_that_breaks_off_is_followed_by_nothing(tmp_path: Path, provider: SpawnedProvider) -> None:
    """A server behind the socket that sends half of what it announces."""
    path = str(tmp_path / "api.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()

        def half() -> None:
            taken, _ = listening.accept()
            taken.recv(65536)
            taken.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")
            time.sleep(0.2)
            taken.close()

        answering = threading.Thread(target=half)
        answering.start()
        offline = ("--offline-base-url", provider.base_url)
        got = b""
        with (
            role(tmp_path, "gateway", "--port", "0", "--api-socket", path, *offline) as (_, ready),
            socket.create_connection(("127.0.0.1", ready["port"]), timeout=10) as client,
        ):
            client.sendall(b"GET /api/v1/jobs HTTP/1.1\r\nhost: localhost\r\n\r\n")
            while data := client.recv(65536):
                got += data
        answering.join()
    assert got.endswith(b"\r\n\r\nhalf")
