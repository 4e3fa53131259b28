"""Counts of requests and paid calls of the scripted provider, durable across kills."""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from overnight.files import open_file

MAX_CALLS = 10_000
MAX_MODELS = 1_000
OTHER_MODELS = "(other models)"
PREFIX_CHARS = 80

_canonical = msgspec.json.Encoder(order="deterministic")
_encode = msgspec.json.encode


def request_fingerprint(model: str, messages: list[dict[str, Any]]) -> str:
    """SHA-256 (hex) of model and messages, independent of key order and whitespace in the body."""
    return sha256(_canonical.encode((model, messages))).hexdigest()


class PaidCall(msgspec.Struct):
    """One distinct request and its number of payments. `last_user` is the start of the last user message."""

    fingerprint: str
    model: str
    last_user: str
    paid: int = 0


class _PaidLine(msgspec.Struct):
    fingerprint: str
    model: str
    last_user: str


class Counts:
    """The counters of one provider. With a `file`, each paid call is written as one JSON line before its answer
    starts, and read at the next start, so that a kill loses no paid call.
    """

    def __init__(self, file: Path | None) -> None:
        self._fd = open_file(file, os.O_RDWR | os.O_CREAT | os.O_APPEND) if file else None
        self.in_flight = 0
        self._clear()
        if file:
            self._restore(file)

    def _clear(self) -> None:
        self.requests = 0
        self.paid_calls = 0
        self.calls_forgotten = 0
        self.paid_by_model: Counter[str] = Counter()
        self.errors_by_status: Counter[int] = Counter()
        self._calls: OrderedDict[str, PaidCall] = OrderedDict()

    def reset(self) -> None:
        """Reset all counters and the file; calls in flight remain counted."""
        self._clear()
        if self._fd is not None:
            os.ftruncate(self._fd, 0)

    def pay(self, fingerprint: str, model: str, last_user: str) -> int:
        """Charge one call and return the number of payments of this request. Durable across kills."""
        last_user = last_user[:PREFIX_CHARS]
        if self._fd is not None:
            os.write(self._fd, _encode(_PaidLine(fingerprint, model, last_user)) + b"\n")
        return self._count(fingerprint, model, last_user)

    def _count(self, fingerprint: str, model: str, last_user: str) -> int:
        self.paid_calls += 1
        known = model in self.paid_by_model or len(self.paid_by_model) < MAX_MODELS
        self.paid_by_model[model if known else OTHER_MODELS] += 1
        call = self._calls.get(fingerprint)
        if call is None:
            call = self._calls[fingerprint] = PaidCall(fingerprint, model, last_user)
            if len(self._calls) > MAX_CALLS:
                self._calls.popitem(last=False)
                self.calls_forgotten += 1
        call.paid += 1
        return call.paid

    def _restore(self, file: Path) -> None:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    paid = msgspec.json.decode(line, type=_PaidLine)
                except msgspec.DecodeError as problem:
                    raise ValueError(
                        f"{file}:{number}: is not a line of paid calls ({problem}); name another --count-file"
                    ) from None
                self._count(paid.fingerprint, paid.model, paid.last_user)

    def stats(self) -> dict[str, Any]:
        return {
            "paid_calls": self.paid_calls,
            "paid_calls_by_model": dict(self.paid_by_model),
            "requests": self.requests,
            "errors_by_status": {str(status): count for status, count in self.errors_by_status.items()},
            "in_flight": self.in_flight,
            "calls_forgotten": self.calls_forgotten,
        }

    def calls(self) -> list[PaidCall]:
        """Distinct paid requests, oldest first. At most 10,000; older ones are counted in `calls_forgotten`."""
        return list(self._calls.values())
