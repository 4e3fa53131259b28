"""The keys of a provider's connection in routing.yaml: proxy, proxy_env, ca, client_cert, client_key."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from certificates import Authority
from faulty_upstream import WHOLE
from http_proxy import HttpProxy, http_proxy
from overnight.store import Store, open_store
from serving import serving
from web_server import WebServer, answer, web_server

PRICE = "{input_usd_per_mtok: 1, output_usd_per_mtok: 1}"
GOOD = answer(json.dumps(WHOLE["chat"]).encode(), "content-type: application/json")
PATH = "/v1/chat/completions"


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with open_store(str(tmp_path / "ledger.db")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def to_loopback(proxy: HttpProxy) -> None:
    proxy.credentials, proxy.hosts = "us:s3cret", {"models.example": "127.0.0.1"}


def routing(scheme: str, server: WebServer, *keys: str) -> str:
    lines = "".join(f"\n    {key}" for key in keys)
    return f"""
default_model: good
retries: {{max_attempts: 2, backoff_ms: 1}}
providers:
  house:
    base_url: {scheme}://models.example:{server.port}/v1
    models: [good]{lines}
prices: {{good: {PRICE}}}
"""


async def asked(store: Store, routes: str, environment: dict[str, str] | None = None) -> Any:
    keys = environment or {"SOME_KEY": "x"}
    async with serving(store, None, routes, environment=keys) as served:  # type: ignore[arg-type]
        return await served.ask(model="good")


async def test_proxy_of_the_environment_carries_calls(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    async with (
        web_server({PATH: GOOD}, tls=authority.serving("models.example")) as server,
        http_proxy(to_loopback) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://us:s3cret@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
        found = await asked(store, routing("https", server))
        assert found.status_code == 200, found.text
        assert proxy.asked == [f"CONNECT models.example:{server.port}"]
        # A provider can be excluded.
        refused = await asked(store, routing("https", server, "proxy: none"))
        assert "unknown_host" in refused.text or "host name is unknown" in refused.text
        assert len(proxy.asked) == 1


async def test_proxy_of_a_provider_carries_plain_calls(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async with web_server({PATH: GOOD}) as server, http_proxy(to_loopback) as proxy:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # the provider's own comes first
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")  # for the client of the test
        proxy.credentials = None
        found = await asked(store, routing("http", server, f"proxy: http://127.0.0.1:{proxy.port}"))
        assert found.status_code == 200, found.text
        assert proxy.asked == [f"POST http://models.example:{server.port}{PATH}"]


async def test_proxy_credentials_come_from_a_variable(store: Store) -> None:
    async with web_server({PATH: GOOD}) as server, http_proxy(to_loopback) as proxy:
        routes = routing("http", server, "proxy_env: HOUSE_PROXY")
        good = {"HOUSE_PROXY": f"http://us:s3cret@127.0.0.1:{proxy.port}"}
        assert (await asked(store, routes, environment=good)).status_code == 200
        wrong = await asked(store, routes, environment={"HOUSE_PROXY": f"http://us:wr0ng@127.0.0.1:{proxy.port}"})
        assert wrong.status_code == 502
        assert "the credentials are wrong" in wrong.text
        assert "wr0ng" not in wrong.text
        missing = await asked(store, routes)
        assert missing.status_code == 503
        assert "HOUSE_PROXY is not set" in missing.text
        unusable = await asked(store, routes, environment={"HOUSE_PROXY": "socks5://us:s3cret@127.0.0.1:1"})
        assert "socks5 proxies are not supported" in unusable.text
        assert "s3cret" not in unusable.text


async def test_certificates_of_a_provider(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    authority = Authority(tmp_path)
    cert, key = authority.issue("client")
    async with (
        web_server({PATH: GOOD}, tls=authority.serving("models.example", wants_client=True)) as server,
        http_proxy(to_loopback) as proxy,
    ):
        proxy.credentials = None
        by = f"proxy: {proxy.url}"
        trusted = (by, f"ca: {authority.ca}")
        found = await asked(store, routing("https", server, *trusted, f"client_cert: {cert}", f"client_key: {key}"))
        assert found.status_code == 200, found.text
        unknown = await asked(store, routing("https", server, by))
        assert unknown.status_code == 502
        assert "set SSL_CERT_FILE, or `ca` of the provider" in unknown.text
        anonymous = await asked(store, routing("https", server, *trusted))
        assert anonymous.status_code == 502
        shutil.move(key, tmp_path / "elsewhere.key")
        lost = await asked(store, routing("https", server, *trusted, f"client_cert: {cert}", f"client_key: {key}"))
        assert lost.status_code == 503
        assert "No such file" in lost.text
        assert len(server.requests) == 1
