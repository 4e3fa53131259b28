"""Calls of the simulated vendor, with the standard library alone; and its process."""

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TIMEOUT_S = 0.5
"""How long a caller waits for an answer: shorter than the vendor's late work takes."""


class Refused(Exception):
    """The vendor says that nothing was done."""


class Unclear(Exception):
    """An answer from which nobody can tell whether it was done."""


class VendorClient:
    """One connection per request. `address` is `host:port`."""

    def __init__(self, address: str) -> None:
        self.address = address

    def do(self, account: str, subject: str, value: str, key: str, timeout_s: float = TIMEOUT_S) -> str:
        """The vendor's id of what was done. Raises Refused, Unclear, and OSError for a fault of the connection."""
        body = {"subject": subject, "value": value, "caller": os.getpid()}
        status, found = self.ask("POST", f"/{account}/do", body, {"idempotency-key": key}, timeout_s)
        if status == 422:
            raise Refused(str(found))
        if status != 200:
            raise Unclear(f"status {status}")
        return found["id"]

    def status(self, account: str, key: str) -> tuple[str, str | None]:
        """`done` with its id, `none` or `pending`."""
        _, found = self.ask("GET", f"/{account}/status?key={key}")
        return found["state"], found["id"]

    def arrivals(self) -> list[dict[str, Any]]:
        return self.ask("GET", "/arrivals")[1]["arrivals"]

    def deeds(self) -> list[dict[str, Any]]:
        return self.ask("GET", "/deeds")[1]["deeds"]

    def done(self, subject: str) -> list[dict[str, Any]]:
        return [each for each in self.deeds() if each["subject"] == subject]

    def asked(self, subject: str) -> list[dict[str, Any]]:
        return [each for each in self.arrivals() if each["subject"] == subject]

    def pending(self) -> int:
        return self.ask("GET", "/pending")[1]["pending"]

    def plan(self, **behaviours: list[str]) -> None:
        self.ask("POST", "/plan", behaviours)

    def calm(self) -> None:
        self.ask("POST", "/calm", {})

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = 20.0,
    ) -> tuple[int, Any]:
        """Raises Unclear for an answer that is no HTTP or no JSON."""
        host, _, port = self.address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers or {})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (http.client.HTTPException, ValueError) as error:
            raise Unclear(repr(error)) from None
        finally:
            connection.close()


@contextmanager
def spawn_vendor(folder: Path, seed: str = "1", *, calm: bool = True) -> Iterator[VendorClient]:
    """A vendor that lives as long as the block. `calm`: everything works, except for what is planned."""
    command = [sys.executable, str(Path(__file__).with_name("vendor_simulator.py")), "--seed", seed]
    command += ["--file", str(folder / "vendor.jsonl"), *(["--calm"] if calm else [])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield VendorClient(f"127.0.0.1:{json.loads(process.stdout.readline())['port']}")
    finally:
        process.kill()
        process.wait(10)
        process.stdin.close()
        process.stdout.close()
