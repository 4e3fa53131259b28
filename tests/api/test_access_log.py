"""The access log, and requests that come through a trusted proxy."""

import json
from pathlib import Path
from typing import Any

from api_keys import key_for
from asgi_calls import asgi_call
from overnight.api import AccessLog, TrustedProxies, application
from overnight.store import Store
from overnight.testing import SpawnedProvider
from raw_http import served as serving_raw
from serving import serving


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_access_log_has_templates_and_no_content(store: Store, provider: SpawnedProvider, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    async with serving(store, provider, access_log=AccessLog(path), hosts=None) as served:
        headers = await key_for(served, name="laptop", scopes=("call", "read"))
        assert (await served.ask("secret", headers=headers | {"x-job-id": "secret"})).status_code == 200
        await served.ask("secret", headers=headers, stream=True)
        await served.http.get("/api/v1/jobs/secret?secret=1", headers=headers)
        await served.http.get("/secret", headers={"x-tags": "secret"})
        await served.http.get("/api/v1/keys")
    text = path.read_text()
    assert "secret" not in text
    assert headers["authorization"].removeprefix("Bearer ") not in text
    found = [(each["method"], each["route"], each["status"], each["key"]) for each in lines(path)]
    assert found == [
        ("POST", "/v1/chat/completions", 200, "laptop"),
        ("POST", "/v1/chat/completions", 200, "laptop"),
        ("GET", "/api/v1/jobs/{job}", 400, "laptop"),
        ("GET", None, 404, None),
        ("GET", "/api/v1/keys", 401, None),
    ]
    assert all(0 <= each["first_byte_ms"] <= each["duration_ms"] for each in lines(path))
    assert path.stat().st_mode & 0o077 == 0


async def test_access_log_continues_after_its_file_is_moved(
    store: Store, provider: SpawnedProvider, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("overnight.api.access_log.REOPEN_S", 0.0)
    path, moved = tmp_path / "access.log", tmp_path / "moved.log"
    async with serving(store, provider) as served:
        app = application(served.gateway, served.ledger, access_log=AccessLog(path), hosts=None)
        await asgi_call(app, "GET", "/healthz")
        path.rename(moved)
        await asgi_call(app, "GET", "/healthz")
    assert (len(lines(moved)), len(lines(path))) == (1, 1)


async def test_forwarded_request_requires_a_key_on_loopback(store: Store, provider: SpawnedProvider) -> None:
    """A proxy on this machine makes everybody local; what it forwards is not."""
    async with serving(store, provider) as gateway:
        app = application(gateway.gateway, gateway.ledger)
        async with serving_raw(app, proxies=TrustedProxies(["127.0.0.1"])) as (_, connect):
            for more, status in (("", 200), ("x-forwarded-for: 203.0.113.9\r\n", 401), ("forwarded: for=::1\r\n", 401)):
                client = await connect()
                client.say(f"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n{more}\r\n".encode())
                assert (await client.answer())[0] == status, more
