"""The front of all paths: key, scope, method and origin are checked for each row of the table before a body is read."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from asgi_calls import asgi_call
from overnight.api import Application, application, rest_application
from overnight.api.rest_process import RestProcess
from overnight.api.routes import CALLS, ROUTES
from overnight.brain import Brain
from overnight.domain import SCOPES, expand_scopes
from overnight.gateway import Gateway, PriceBook
from overnight.keys import Keyring, Keys, MasterKeys, NewKey
from overnight.ledger import Ledger
from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider
from serving import Served, serving

KEYED = [route for route in ROUTES if route.scope is not None]
TEMPLATES = sorted({route.template for route in ROUTES})
ODD_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND")


class House:
    """An application that other machines could reach, with a key for each scope."""

    def __init__(self, app: Application, keys: Keys) -> None:
        self.app, self._keys = app, keys

    async def key(self, *scopes: str, tenant: str = "acme") -> dict[str, str]:
        name = "-".join(scopes)
        _, secret = await self._keys.create(tenant, NewKey(name=name, scopes=scopes), "ann")
        return {"authorization": f"Bearer {secret}"}

    async def ask(self, method: str, template: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Any:
        path = re.sub(r"{\w+}", "none", template)
        return await asgi_call(self.app, method, path, headers, body)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    brain, masters = Brain.from_files({}), MasterKeys("11" * 32)
    with open_store(str(tmp_path / "ledger.db")) as store:
        keyring = Keyring(store, masters)
        offline = "http://127.0.0.1:9/v1"
        gateway = Gateway(store, brain.routing, PriceBook(), offline_base_url=offline, keys=keyring)
        await gateway.start()
        try:
            yield House(application(gateway, Ledger(store), hosts=None), Keys(store, masters))
        finally:
            await gateway.close()


@pytest.fixture
async def served(store: Store, provider: SpawnedProvider) -> AsyncIterator[Served]:
    async with serving(store, provider) as running:
        yield running


async def test_every_path_requires_its_scope_and_no_other(house: House) -> None:
    keys = {scope: await house.key(scope) for scope in SCOPES}
    for route in KEYED:
        for scope, headers in keys.items():
            answer = await house.ask(route.method, route.template, headers, b"[]")
            if route.scope in expand_scopes((scope,)):
                assert answer.status not in (401, 403, 405, 500), (route, answer.body)
            else:
                assert (answer.status, answer.reads) == (403, 0), (route, scope, answer.body)


async def test_no_path_reads_a_body_without_a_valid_key(house: House) -> None:
    await house.key("calls")
    wrong = ({}, {"authorization": "Bearer sk-1"}, {"x-api-key": f"on_{'0' * 76}"}, {"x-tenant-id": "acme"})
    for route in KEYED:
        for headers in wrong:
            for method in (route.method, "HEAD") if route.method == "GET" else (route.method,):
                answer = await house.ask(method, route.template, headers, b"{not json")
                assert (answer.status, answer.reads) == (401, 0), (route, answer.body)
                assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_key_of_another_tenant_is_refused_unread(house: House) -> None:
    every = await house.key(*SCOPES, tenant="zeta")
    for route in KEYED:
        if route.template not in CALLS and route.template != "/v1/messages/count_tokens":
            answer = await house.ask(route.method, route.template, every | {"x-tenant-id": "acme"}, b"{not json")
            assert (answer.status, answer.reads) == (403, 0), (route, answer.body)


async def test_public_paths_require_no_key(house: House) -> None:
    await house.key("calls")
    links = {"/reviews/{token}"}  # their token is their key: tests/notifications/test_links.py
    public = [route for route in ROUTES if route.scope is None and route.template not in links]
    assert {route.template for route in public} == {"/", "/openapi.json", "/healthz", "/readyz"}
    for route in public:
        assert (await house.ask(route.method, route.template)).status == 200


@pytest.mark.parametrize("template", TEMPLATES)
async def test_other_methods_are_refused_with_the_allowed_ones(house: House, template: str) -> None:
    served = {route.method for route in ROUTES if route.template == template}
    served |= {"HEAD"} if "GET" in served else set()
    for method in {*ODD_METHODS, "HEAD"} - served:
        answer = await house.ask(method, template, {}, b"{not json")
        assert (answer.status, answer.reads) == (405, 0), (method, answer.body)
        assert set(answer.headers["allow"].split(", ")) == served


@pytest.mark.parametrize(
    "path", ["/docs", "/redoc", "/api", "/api/v1", "/api/v1/jobs/", "/api/v2/jobs", "/v1", "/v1/", "/v1/jobs", "/x"]
)
async def test_unknown_path_error_lists_the_paths(house: House, path: str) -> None:
    for method in ("GET", "HEAD", "POST", "DELETE"):
        answer = await house.ask(method, path, {}, b"{not json")
        assert (answer.status, answer.reads) == (404, 0)
        assert b"/openapi.json" in answer.body
        assert "location" not in answer.headers


async def test_gemini_path_without_method_lists_gemini_paths(house: House) -> None:
    headers = await house.key("calls")
    for path in ("/v1beta/models/gemini-2.5-flash", "/v1beta/models/gemini-2.5-flash:sing", "/v1beta/x"):
        answer = await asgi_call(house.app, "POST", path, headers, b"{}")
        assert answer.status == 404, answer.body
        assert "/v1beta/models/{model}:{method}" in answer.json()["error"]["message"]


async def test_head_is_answered_as_get(served: Served) -> None:
    await served.ask(headers={"x-job-id": "none"})
    for route in ROUTES:
        if route.method == "GET":
            path = re.sub(r"{\w+}", "none", route.template)
            got, head = await served.http.get(path), await served.http.head(path)
            assert head.status_code == got.status_code, path
            assert head.headers["content-type"] == got.headers["content-type"]
            assert head.content == b""
    live = await served.http.head("/api/v1/jobs/none/events", headers={"accept": "text/event-stream"})
    assert live.headers["content-type"].startswith("text/event-stream"), "it ends at once"


@pytest.mark.parametrize(
    ("method", "path"), sorted({(route.method, route.template) for route in KEYED if route.method in ("POST", "PUT")})
)
async def test_huge_body_without_key_is_refused_unread(
    store: Store, provider: SpawnedProvider, method: str, path: str
) -> None:
    """A client that waits for `100 Continue` is never told to send."""
    if store.dialect == "postgres":
        pytest.skip("nothing is read from the store")
    async with serving(store, provider, auth="required") as running:
        url = httpx2.URL(running.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {10**12}\r\nexpect: 100-continue\r\n\r\n"
        )
        writer.write(head.encode())
        async with asyncio.timeout(10):
            said = (await reader.read()).decode()
        writer.close()
        assert said.startswith("HTTP/1.1 401 "), said


async def test_root_describes_the_service(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, public_url="https://agents.example.com/overnight") as running:
        said = (await running.http.get("/", headers={"host": "localhost"})).json()
        assert (said["name"], said["openapi"]) == ("Overnight", "https://agents.example.com/overnight/openapi.json")
        assert said["version"]
        document = (await running.http.get("/openapi.json")).json()
        assert document["servers"] == [{"url": "https://agents.example.com/overnight"}]


@pytest.mark.parametrize(
    ("method", "path", "body", "says"),
    [
        ("POST", "/api/v1/jobs/j/complete", b'{"stat": "failed"}', "did you mean 'state'"),
        ("POST", "/api/v1/jobs/j/complete", b'{"result": NaN}', "body:"),
        ("POST", "/api/v1/jobs/j/cancel?now=true", b"", "unknown query parameter 'now'"),
        ("POST", "/api/v1/jobs/j/attempts", b'{"mode": 1}', "mode: expected"),
        ("GET", "/api/v1/jobs?limit=1_0", b"", "limit: expected a whole number from 0 to 200"),
        ("GET", "/api/v1/jobs?limit=+1", b"", "limit: expected a whole number from 0 to 200"),
        ("GET", "/api/v1/budgets?al=true", b"", "did you mean 'all'"),
    ],
)
async def test_invalid_request_is_one_problem_with_its_place(
    served: Served, method: str, path: str, body: bytes, says: str
) -> None:
    answer = await served.http.request(method, path, content=body)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json"), answer.text
    assert says in answer.json()["detail"]


def test_model_calls_do_not_import_fastapi() -> None:
    code = (
        "import sys, overnight.api, overnight.gateway, overnight.roles\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('fastapi', 'starlette')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []


async def test_process_without_model_calls_answers_404(tmp_path: Path) -> None:
    with open_store(str(tmp_path / "ledger.db")) as store:
        ledger, keyring = Ledger(store), Keyring(store, MasterKeys("11" * 32))
        services = RestProcess(ledger, keyring, Brain.from_files({})).services("", None)  # type: ignore[arg-type]
        app = rest_application(services)
        host = {"host": "localhost"}
        for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/v1/responses/r")):
            answer = await asgi_call(app, method, path, host, b"{}")
            assert (answer.status, answer.json()["error"]["code"]) == (404, "not_found"), answer.body
            assert "send model calls to the gateway" in answer.json()["error"]["message"]
        assert (await asgi_call(app, "GET", "/api/v1/jobs", host)).status == 200
