"""The `api` process behind the gateway's port: what it serves, and what goes on while it is killed."""

import asyncio
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

from overnight.api.routes import ROUTES
from overnight.store import Statement, open_store
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
        role(tmp_path, "api", "--socket", path) as (api, _),
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


def test_kill_of_the_api_process_ends_no_stream(both: Any, provider: SpawnedProvider) -> None:
    api, _, client = both
    provider.set_rules("rules: [{answer: 'one two three four five six seven eight', fault: {chunk_delay_ms: 60}}]")
    body = CALL | {"stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body, headers={"x-job-id": "s"}) as stream:
        lines = stream.iter_lines()
        assert next(line for line in lines if "one" in line)
        api.send_signal(signal.SIGKILL)
        api.wait()
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert client.get("/readyz").status_code == 200


def over_socket(path: str, request: str) -> tuple[int, Any]:
    """The status and JSON of one request on the unix socket."""
    with socket.socket(socket.AF_UNIX) as sending:
        sending.settimeout(10)
        sending.connect(path)
        sending.sendall(f"{request} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        got = b""
        while data := sending.recv(65536):
            got += data
    head, _, body = got.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_every_path_of_the_table_is_served_as_by_one_process(
    both: Any, tmp_path: Path, provider: SpawnedProvider
) -> None:
    """Each path of the API answers alike in a gateway that serves all and behind one that relays."""
    _, _, client = both
    assert client.post("/v1/chat/completions", json=CALL, headers={"x-job-id": "n"}).status_code == 200
    offline = ("--offline-base-url", provider.base_url)
    with (
        role(tmp_path, "gateway", "--port", "0", *offline) as (_, ready),
        httpx2.Client(base_url=f"http://127.0.0.1:{ready['port']}", timeout=20) as alone,
    ):
        for route in ROUTES:
            if route.part == "calls":
                continue
            path = route.template.replace("{job}", "n")
            path = path if "{" not in path else path[: path.index("{")] + "none" + path[path.index("}") + 1 :]
            for method in [route.method, *(["HEAD"] if route.method == "GET" else [])]:
                body = None if method in ("GET", "HEAD", "DELETE") else {"bogus": 1}
                answers = [each.request(method, path, json=body) for each in (client, alone)]
                statuses = {answer.status_code for answer in answers}
                assert len(statuses) == 1, (method, path, [answer.text for answer in answers])
                assert max(statuses) < 500, (method, path)
        for accepted in ("attempts", "attempts", "complete"):
            answer = client.post(f"/api/v1/jobs/m/{accepted}", json={})
            assert answer.status_code < 300, answer.text


def test_api_process_serves_no_call_and_is_no_gateway(both: Any, tmp_path: Path) -> None:
    _, path, client = both
    assert over_socket(path, "GET /readyz")[0] == 200
    assert over_socket(path, "GET /healthz") == (200, {"status": "ok"})
    status, answer = over_socket(path, "GET /v1/models")
    assert (status, "not served by this process" in json.dumps(answer)) == (404, True)
    with open_store(str(tmp_path / "ledger.db"), for_reading=True) as store:
        rows = asyncio.run(store.read(Statement("roles", {"sqlite": "SELECT role FROM worker"}), {}))
    assert rows == [("gateway",)]
    assert client.get("/readyz").status_code == 200


def test_api_process_follows_a_reload(tmp_path: Path, provider: SpawnedProvider) -> None:
    brain, path = tmp_path / "brain", str(tmp_path / "api.sock")
    brain.mkdir()
    (brain / "routing.yaml").write_text("default_model: gpt-5.4-mini\n")
    offline = ("--offline-base-url", provider.base_url)
    with (
        role(tmp_path, "api", "--socket", path),
        role(tmp_path, "gateway", "--port", "0", "--api-socket", path, *offline) as (_, ready),
        httpx2.Client(base_url=f"http://127.0.0.1:{ready['port']}", timeout=20) as client,
    ):
        assert client.get("/api/v1/budgets").json()["budgets"] == []
        (brain / "routing.yaml").write_text(
            "default_model: gpt-5.4-mini\nbudgets: {limits: [{scope: tenant, max_cost_usd: 5}]}\n"
        )
        environment = os.environ | {"OVERNIGHT_HOME": str(tmp_path)}
        subprocess.run([sys.executable, "-m", "overnight", "reload"], env=environment, cwd=tmp_path, check=True)
        deadline = time.monotonic() + 60
        while not client.get("/api/v1/budgets").json()["budgets"]:
            assert time.monotonic() < deadline
            assert client.post("/v1/chat/completions", json=CALL).status_code == 200  # makes the row
            time.sleep(0.1)


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
