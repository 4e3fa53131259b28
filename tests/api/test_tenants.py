"""Tenants are isolated: no response to one tenant depends on actions of another.

Each tenant asks its own sequence of requests, over all routes of the application, with the same names for its jobs and
keys as the other, and with the other's very ids. Its answers are compared with those it gets when it is alone, where ids
that never existed stand in for the other's.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overnight.api import Application, application
from overnight.api.routes import COUNT_TOKENS, ROUTES
from overnight.brain import Brain
from overnight.gateway import Gateway, PriceBook
from overnight.keys import Keyring, Keys, MasterKeys, NewKey
from overnight.ledger import Ledger
from overnight.store import open_store
from overnight.testing import SpawnedProvider

TENANTS = ("acme", "zeta")
ROUTING = b"""
default_model: gpt-5.4-mini
budgets: {max_llm_calls_per_job: 4}
retries: {max_attempts: 1}
cache: {exact: {ttl_s: 3600}}
"""
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "the same question"}]},
    "/v1/messages": {"max_tokens": 50, "messages": [{"role": "user", "content": "the same question"}]},
    "/v1/responses": {"input": "the same question"},
    "/v1/embeddings": {"input": "the same question", "model": "text-embedding-3-small"},
}
BODIES: dict[str, Any] = {
    "attempts": {"mode": "recover"},
    "complete": {"result": "done"},
    "settle": {"usd": 1},
    "rotate": {"overlap_ms": 0},
    "keys": {"name": "k1"},
    "provider-keys": {"key": "sk-1"},
}
NAMES = {"provider-keys": ("openai", "mistral"), "keys": ("k1", "root"), "jobs": ("j1", "j2")}
TOLD = (
    "x-overnight-cache",
    "x-overnight-replayed",
    "x-overnight-fallback",
    "x-overnight-model",
    "x-overnight-cost-usd",
)


class Step(NamedTuple):
    """`route` and `name` choose by their remainder; `others` takes an id of the other tenant's."""

    route: int
    name: int
    others: bool
    more: bool


STEPS = st.lists(st.builds(Step, st.integers(0, 999), st.integers(0, 999), st.booleans(), st.booleans()), max_size=14)


def all_routes() -> list[tuple[str, str]]:
    """Every method and path that requires a key, but the count of tokens; `{}` stands for a name."""
    found = [(route.method, re.sub(r"{\w+}", "{}", route.template)) for route in ROUTES if route.scope is not None]
    return [each for each in found if each[1] != COUNT_TOKENS]


class Tenant:
    """One of the two: its key, and the ids it was given."""

    def __init__(self, secret: str) -> None:
        self.headers = {"authorization": f"Bearer {secret}"}
        self.ids: list[str] = []
        self.transcript: list[Any] = []
        self._numbers: dict[str, str] = {}

    def own_name(self, template: str, step: Step) -> str:
        """A name of this tenant's own that may stand in a path."""
        first = template.split("/")[3] if template.startswith("/api") else "responses"
        known = [*NAMES.get(first, ()), *self.ids]
        return known[step.name % len(known)] if known else "none"

    def heard(self, status: int, headers: dict[str, str], body: str, theirs: str = "none") -> None:
        """Keep what was answered, with ids by the order in which they came, and without times; `theirs` was asked for."""
        body = body.replace(theirs, "THEIRS")
        self.ids += [found for found in re.findall(r"\b(?:job|key|resp)_[0-9a-f]{32}\b", body) if found not in self.ids]
        said = f"{body} {[headers.get(name) for name in TOLD]}"
        said = re.sub(r"\bon_[0-9a-f]{12,76}\b", "SECRET", said)
        said = re.sub(r"[a-z]+[_-][0-9a-f]{32}", lambda found: self._number(found[0]), said)
        said = re.sub(r"\b[0-9a-f]{12,}\b", "HASH", said)
        said = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", said)
        said = re.sub(r'"(created|created_at|completed_at|\w+_ms)": ?[\d.]+', r'"\1":0', said)
        self.transcript.append((status, said))

    def _number(self, name: str) -> str:
        return self._numbers.setdefault(name, f"ID{len(self._numbers)}")


async def ask(
    app: Application, method: str, path: str, headers: dict[str, str], body: Any
) -> tuple[int, dict[str, str], str]:
    """One request, without a socket."""
    sent: list[dict[str, Any]] = []
    content = msgspec.json.encode(body) if body is not None else b""
    path, _, query = path.partition("?")
    scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "query_string": query.encode()}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answered, b"".join(message.get("body", b"") for message in sent[1:]).decode()


@asynccontextmanager
async def house(
    folder: Path, provider: SpawnedProvider, names: Sequence[str]
) -> AsyncIterator[tuple[Application, list[Tenant]]]:
    """An application that other machines could reach, and its tenants."""
    brain, masters = Brain.from_files({"routing.yaml": ROUTING}), MasterKeys("11" * 32)
    with open_store(str(folder / "ledger.db")) as store:
        gateway = Gateway(
            store,
            brain.routing,
            PriceBook(brain.routing.prices),
            offline_base_url=provider.base_url,
            keys=Keyring(store, masters),
        )
        await gateway.start()
        tenants: list[Tenant] = []
        for name in names:
            new = NewKey(name="root", scopes=("call", "read", "operate", "admin"))
            tenants.append(Tenant((await Keys(store, masters).create(name, new, "ann"))[1]))
        try:
            yield application(gateway, Ledger(store), hosts=None), tenants
        finally:
            await gateway.close()


async def live(app: Application, tenant: Tenant, steps: Sequence[Step], other: Tenant | None) -> None:
    routes = all_routes()
    for step in steps:
        method, template = routes[step.route % len(routes)]
        starts_jobs = template in ASKED or template.endswith("/attempts")  # under a name that is no job_id of another
        ids = [name for name in (other.ids if other else ()) if not starts_jobs or name.startswith("job_")]
        theirs = ids[step.name % len(ids)] if ids else f"job_{step.name:032x}"
        path = template.replace("{}", theirs if step.others else tenant.own_name(template, step))
        headers = dict(tenant.headers)
        body = BODIES.get(template.rpartition("/")[2]) or BODIES.get(template.split("/")[-2])
        if path in ASKED:
            body = {"model": "auto", **ASKED[path], "stream": step.more and path != "/v1/embeddings"}
            headers["x-job-id"] = theirs if step.others else f"j{1 + step.name % 2}"
            if step.more:
                headers["x-session-id"] = "s"
        tenant.heard(*await ask(app, method, path, headers, body if method != "GET" else None), theirs)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(STEPS, STEPS)
def test_responses_do_not_depend_on_other_tenants(
    provider: SpawnedProvider, tmp_path_factory: pytest.TempPathFactory, mine: list[Step], theirs: list[Step]
) -> None:
    async def together() -> list[Any]:
        async with house(tmp_path_factory.mktemp("both"), provider, TENANTS) as (app, (acme, zeta)):
            await asyncio.gather(live(app, acme, mine, zeta), live(app, zeta, theirs, acme))
            return acme.transcript

    async def alone() -> list[Any]:
        async with house(tmp_path_factory.mktemp("alone"), provider, TENANTS[:1]) as (app, (acme,)):
            await live(app, acme, mine, None)
            return acme.transcript

    assert asyncio.run(together()) == asyncio.run(alone())


async def test_id_of_another_tenant_equals_an_unknown_id(provider: SpawnedProvider, tmp_path: Path) -> None:
    async with house(tmp_path, provider, TENANTS) as (app, (acme, zeta)):
        for path, body in ASKED.items():
            status, headers, said = await ask(
                app, "POST", path, acme.headers | {"x-job-id": "j1"}, {"model": "auto", **body}
            )
            acme.heard(status, headers, said + headers.get("x-job-id", ""))
        acme.heard(*await ask(app, "GET", "/api/v1/keys", acme.headers, None))
        kinds = {name.partition("_")[0] for name in acme.ids}
        assert kinds == {"job", "key", "resp"}
        before = await ask(app, "GET", "/api/v1/jobs/j1/events", acme.headers, None)
        asked = 0
        for method, template in all_routes():
            for name in acme.ids if "{}" in template else ():
                if template.endswith("/attempts") and not name.startswith("job_"):
                    continue  # it would start a job of this name
                never = f"{name.partition('_')[0]}_{'0' * 32}"
                body = BODIES.get(template.rpartition("/")[2]) or BODIES.get(template.split("/")[-2])
                body = body if method != "GET" else None
                theirs, nobodys = [
                    await ask(app, method, template.replace("{}", each), zeta.headers, body) for each in (name, never)
                ]
                assert theirs[0] == nobodys[0], (method, template, name, theirs[2])
                assert theirs[0] >= 400
                assert theirs[2].replace(name, never) == nobodys[2]
                asked += 1
        assert asked > 30
        assert await ask(app, "GET", "/api/v1/jobs/j1/events", acme.headers, None) == before
        for collection in ("jobs", "keys", "provider-keys"):
            _, _, said = await ask(app, "GET", f"/api/v1/{collection}", zeta.headers, None)
            assert "acme" not in said
            assert not any(name in said for name in acme.ids)


ELSEWHERE: list[tuple[str, str, Any]] = [
    ("GET", "/api/v1/jobs?before={}", None),
    ("GET", "/api/v1/keys?before={}", None),
    ("GET", "/api/v1/budgets?job={}", None),
    ("POST", "/api/v1/budgets", {"scope": "job", "id": "{}", "usd": 1}),
    ("POST", "/v1/responses", {"model": "auto", "input": "and?", "previous_response_id": "{}"}),
    ("POST", "/v1/chat/completions", {"model": "{}", "messages": [{"role": "user", "content": "hello"}]}),
    ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "{}"}], "metadata": {"job_id": "{}"}}),
]


@pytest.mark.parametrize(("method", "path", "body"), ELSEWHERE)
async def test_query_or_body_id_of_another_tenant_equals_an_unknown_id(
    provider: SpawnedProvider, tmp_path: Path, method: str, path: str, body: Any
) -> None:
    async with house(tmp_path, provider, TENANTS) as (app, (acme, zeta)):
        for asked in ("/v1/responses", "/v1/chat/completions"):
            question = {"model": "auto", **ASKED[asked]}
            status, headers, said = await ask(app, "POST", asked, acme.headers | {"x-job-id": "j1"}, question)
            acme.heard(status, headers, said + headers["x-job-id"])
        acme.heard(*await ask(app, "GET", "/api/v1/keys", acme.headers, None))
        before = await ask(app, "GET", "/api/v1/jobs/j1/events", acme.headers, None)
        for name in acme.ids:
            heard: list[Tenant] = []
            for each in (name, f"{name.partition('_')[0]}_0{name.partition('_')[2][1:-1]}0"):
                sent = msgspec.json.decode(msgspec.json.encode(body).replace(b"{}", each.encode()))
                tenant = Tenant(zeta.headers["authorization"].removeprefix("Bearer "))
                tenant.heard(*await ask(app, method, path.replace("{}", each), zeta.headers, sent), each)
                heard.append(tenant)
            theirs, nobodys = heard
            assert theirs.transcript == nobodys.transcript
        assert await ask(app, "GET", "/api/v1/jobs/j1/events", acme.headers, None) == before


async def test_every_route_requires_a_key(provider: SpawnedProvider, tmp_path: Path) -> None:
    async with house(tmp_path, provider, TENANTS) as (app, (acme, _)):
        before = provider.stats()["requests"]
        for headers in ({}, {"authorization": "Bearer sk-1"}, {"x-api-key": f"on_{'0' * 76}"}, {"x-tenant-id": "acme"}):
            for method, template in all_routes():
                status, _, said = await ask(
                    app, method, template.replace("{}", "root"), headers, ASKED.get(template, {})
                )
                assert status == 401, (method, template, said)
        assert provider.stats()["requests"] == before
        keys = msgspec.json.decode((await ask(app, "GET", "/api/v1/keys", acme.headers, None))[2])["keys"]
        assert [key["name"] for key in keys] == ["root"]
