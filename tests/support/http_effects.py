"""Effects over HTTP: requests, and a store whose clock can be set forward."""

from typing import Any

from overnight.store.store import wall_clock_us

PATH = "/api/v1/effects"


class AheadClock:
    """The wall clock, and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead_us = 0

    def __call__(self) -> int:
        return wall_clock_us() + self.ahead_us

    def forward(self, seconds: float) -> None:
        self.ahead_us += round(seconds * 1_000_000)


async def claim(http: Any, key: str | None = "k1", headers: dict[str, str] | None = None, **body: Any) -> Any:
    """A claim of a refund; the response."""
    body = {"tool": "refund", "arguments": {"payment": "pay_7", "usd": 40}, **body}
    named = {} if key is None else {"idempotency-key": key}
    return await http.post(PATH, json=body, headers={**named, **(headers or {})})


async def report(http: Any, claimed: Any, verb: str, headers: dict[str, str] | None = None, **body: Any) -> Any:
    """A report by the holder of this claim; the response."""
    told = claimed.json()
    body = {"claim_id": told["claim_id"], **body}
    return await http.post(f"{PATH}/{told['effect_id']}/{verb}", json=body, headers=headers)


async def effect(http: Any, claimed: Any, wait_ms: int = 0, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """The effect of a response, with `wait_ms` after its next change."""
    query = {"wait_ms": str(wait_ms)} if wait_ms else None
    found = await http.get(f"{PATH}/{claimed.json()['effect_id']}", params=query, headers=headers)
    assert found.status_code == 200, found.text
    return found.json()
