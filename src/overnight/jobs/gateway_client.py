"""A client of `/api/v1` for programs without the database: JSON over HTTP, with retries of requests that may be repeated."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import msgspec

from overnight.domain import StoreUnavailable

TIMEOUT_S = 60.0
PATIENCE_S = 60.0
"""How long a request is repeated while the gateway cannot be reached, or asks to try again."""
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 5.0
_RETRIED = frozenset({429, 502, 503, 504})
_encode = msgspec.json.Encoder().encode


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send the key to another place."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:  # noqa: ARG002
        return None


class GatewayAnswer(NamedTuple):
    """A response: its status, its JSON object, and the seconds of `Retry-After`."""

    status: int
    body: dict[str, Any]
    retry_after_s: float | None = None

    @property
    def code(self) -> str:
        """The code of a problem; "" without one."""
        return str(self.body.get("code", ""))

    @property
    def detail(self) -> str:
        """The text of a problem."""
        return str(self.body.get("detail") or self.body.get("title") or f"HTTP {self.status}")


class GatewayClient:
    """Sends requests to one gateway. Blocks; threads may share it.

    - `root`: its URL, without `/v1`. `headers`: sent with every request.
    """

    def __init__(self, root: str, headers: Mapping[str, str], patience_s: float | None = None) -> None:
        self.root, self._headers = root, dict(headers)
        self._patience_s = PATIENCE_S if patience_s is None else patience_s
        self._opener = urllib.request.build_opener(_NoRedirect)

    def send(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> GatewayAnswer:
        """The answer, also of an error. The request is repeated if it got none, so it must be one that may be.

        Raises StoreUnavailable if the gateway gave no answer for `patience_s`.
        """
        until, pause_s = time.monotonic() + self._patience_s, _FIRST_PAUSE_S
        while True:
            try:
                answer = self._send(method, path, body, headers or {})
            except (OSError, ValueError) as error:  # no connection, a broken one, or an answer that is no JSON
                problem = f"{self.root} gave no answer to {method} {path}: {error}"
                if time.monotonic() >= until:
                    raise StoreUnavailable(f"{problem}; is the gateway running? OVERNIGHT_BASE_URL names it") from None
            else:
                if answer.status not in _RETRIED or answer.code == "budget" or time.monotonic() >= until:
                    return answer
                pause_s = max(pause_s, min(answer.retry_after_s or 0.0, _MAX_PAUSE_S))
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _send(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> GatewayAnswer:
        data = None if body is None else _encode(body)
        sent = {**self._headers, "content-type": "application/json", **headers}
        request = urllib.request.Request(self.root + path, data, sent, method=method)  # noqa: S310 - the scheme is checked
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                return _answer(response.status, response.read(), response.headers)
        except urllib.error.HTTPError as error:
            with error:
                return _answer(error.code, error.read(), error.headers)


def _answer(status: int, content: bytes, headers: Any) -> GatewayAnswer:
    value: Any = json.loads(content) if content else {}
    wait = str(headers.get("retry-after") or "")
    body = cast(dict[str, Any], value) if isinstance(value, dict) else {"value": value}
    return GatewayAnswer(status, body, float(wait) if wait.isdigit() else None)
