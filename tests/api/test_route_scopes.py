"""Every path with every scope, without a key, and with the key of another tenant."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from api_keys import key_for
from overnight.domain import SCOPES, expand_scopes
from overnight.gateway import CODECS
from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import Served, serving

METHODS = ("generateContent", "countTokens")
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/messages": {"max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]},
    "/v1/responses": {"input": "hello"},
    "/v1/embeddings": {"input": "hello", "model": "text-embedding-3-small"},
    **{
        f"{path}/gpt-5.4-mini:{method}": {"contents": [{"parts": [{"text": "hello"}]}]}
        for path in ("/v1beta/models", "/v1/models")
        for method in METHODS
    },
    "/v1beta/models/text-embedding-3-small:embedContent": {"content": {"parts": [{"text": "hello"}]}},
}
ROUTES = [
    *(("POST", f"/v1{codec.path}", "calls") for codec in CODECS.values() if codec.path),
    ("POST", "/v1beta/models/gpt-5.4-mini:generateContent", "calls"),
    ("POST", "/v1beta/models/gpt-5.4-mini:countTokens", "calls"),
    ("POST", "/v1/models/gpt-5.4-mini:generateContent", "calls"),
    ("POST", "/v1beta/models/text-embedding-3-small:embedContent", "calls"),
    ("GET", "/v1beta/models", "calls"),
    ("GET", "/v1beta/models/gpt-5.4-mini", "calls"),
    ("POST", "/v1/messages/count_tokens", "calls"),
    ("GET", "/v1/models", "calls"),
    ("GET", "/v1/models/gpt-5.4-mini", "calls"),
    ("GET", "/v1/responses/{response}", "calls"),
    ("GET", "/v1/responses/{response}/input_items", "calls"),
    ("DELETE", "/v1/responses/{response}", "calls"),
    ("POST", "/api/v1/effects", "effects"),
    ("GET", "/api/v1/effects", "effects"),
    ("GET", "/api/v1/effects/eff_1", "effects"),
    ("POST", "/api/v1/effects/eff_1/commit", "effects"),
    ("POST", "/api/v1/effects/eff_1/fail", "effects"),
    ("POST", "/api/v1/effects/eff_1/unknown", "effects"),
    ("GET", "/api/v1/jobs", "jobs.read"),
    ("GET", "/api/v1/jobs/{job}", "jobs.read"),
    ("GET", "/api/v1/jobs/{job}/events", "jobs.read"),
    ("GET", "/api/v1/jobs/{job}/receipt", "jobs.read"),
    ("POST", "/api/v1/jobs/{job}/attempts", "jobs.operate"),
    ("POST", "/api/v1/jobs/{job}/complete", "jobs.operate"),
    ("POST", "/api/v1/jobs/{job}/cancel", "jobs.operate"),
    ("GET", "/api/v1/budgets", "jobs.read"),
    ("POST", "/api/v1/budgets", "budgets.write"),
    ("GET", "/api/v1/bounds", "instance.read"),
    ("POST", "/api/v1/bounds/call_1/settle", "instance.admin"),
    ("GET", "/api/v1/circuits", "jobs.read"),
    ("GET", "/api/v1/keys", "keys.admin"),
    ("POST", "/api/v1/keys", "keys.admin"),
    ("GET", "/api/v1/keys/{key}", "keys.admin"),
    ("POST", "/api/v1/keys/{key}/rotate", "keys.admin"),
    ("POST", "/api/v1/keys/{key}/allow", "keys.admin"),
    ("POST", "/api/v1/keys/{key}/revoke", "keys.admin"),
    ("GET", "/api/v1/provider-keys", "keys.admin"),
    ("PUT", "/api/v1/provider-keys/openai", "keys.admin"),
    ("DELETE", "/api/v1/provider-keys/openai", "keys.admin"),
]
NAMED = ("{job}", "{response}", "{key}")


@pytest.fixture
async def served(store: Store, provider: SpawnedProvider) -> AsyncIterator[Served]:
    async with serving(store, provider, hosts=None) as running:
        yield running


async def send(served: Served, method: str, path: str, headers: dict[str, str]) -> Any:
    return await served.http.request(method, path, headers=headers, json=ASKED.get(path, {}))


async def resources(served: Served) -> dict[str, str]:
    """A job, a stored response and a key of the tenant acme, by their place in a path."""
    caller = await key_for(served, name="theirs")
    answer = await served.http.post(
        "/v1/responses", headers=caller | {"x-job-id": "theirs"}, json={"model": "gpt-5.4-mini", "input": "a secret"}
    )
    assert answer.status_code == 200, answer.text
    return {"{job}": answer.headers["x-job-id"], "{response}": answer.json()["id"], "{key}": "theirs"}


def filled(path: str, names: dict[str, str]) -> str:
    for place, name in names.items():
        path = path.replace(place, name)
    return path


async def test_each_scope_allows_exactly_its_paths(served: Served) -> None:
    names = dict.fromkeys(NAMED, "unknown")
    for scope in SCOPES:
        headers = await key_for(served, scopes=(scope,))
        for method, path, needed in ROUTES:
            answer = await send(served, method, filled(path, names), headers)
            lacks = answer.status_code == 403 and f"lacks scope {needed}" in answer.text
            assert lacks == (needed not in expand_scopes([scope])), (scope, method, path, answer.text)
            assert answer.status_code not in {401, 405, 500}, (method, path, answer.text)


async def test_no_path_is_allowed_without_a_key(served: Served) -> None:
    names = await resources(served)
    before = served.provider.stats()["requests"]
    for method, path, _ in ROUTES:
        for headers in ({}, {"authorization": "Bearer sk-other"}, {"authorization": f"Bearer on_{'0' * 76}"}):
            answer = await send(served, method, filled(path, names), headers)
            assert answer.status_code == 401, (method, path, answer.text)
    assert served.provider.stats()["requests"] == before


async def test_key_of_another_tenant_finds_nothing(served: Served) -> None:
    names = await resources(served)
    stranger = await key_for(served, "zeta", scopes=tuple(SCOPES))
    story = await served.story("theirs", "acme")
    for method, path, _ in ROUTES:
        if any(place in path for place in names):
            answer = await send(served, method, filled(path, names), stranger)
            assert answer.status_code == 404, (method, path, answer.text)
        elif "keys" not in path:
            answer = await send(served, method, path, stranger)
            assert "theirs" not in answer.text, (method, path, answer.text)
        refused = await send(served, method, filled(path, names), stranger | {"x-tenant-id": "acme"})
        assert refused.status_code == 403, (method, path, refused.text)
    assert await served.story("theirs", "acme") == story


async def test_content_requires_its_own_scope(served: Served) -> None:
    names = await resources(served)
    reader = await key_for(served, scopes=("jobs.read",))
    everything = await key_for(served, scopes=("jobs.read", "content.read", "jobs.operate"))
    path = f"/api/v1/jobs/{names['{job}']}"
    error = {"state": "failed", "error": "a secret message"}
    assert (await served.http.post(f"{path}/complete", json=error, headers=everything)).status_code == 200
    for below in ("", "/events"):
        assert "a secret message" in (await served.http.get(path + below, headers=everything)).text
        answer = await served.http.get(path + below, headers=reader)
        assert (answer.status_code, "secret" in answer.text) == (200, False), answer.text
    live = await served.http.get(f"{path}/events", headers=reader | {"accept": "text/event-stream"})
    assert ("event: failed" in live.text, "secret" in live.text) == (True, False), live.text
    assert "secret" not in (await served.http.get("/api/v1/jobs", headers=reader)).text
    assert (await served.http.get(path, headers=reader)).json()["error"]["class"] == "failed"


async def test_job_globs_limit_calls_and_the_jobs_api(served: Served) -> None:
    everyone = await key_for(served, scopes=("calls", "jobs.read", "jobs.operate"))
    night = await key_for(served, scopes=("calls", "jobs.read", "jobs.operate"), jobs=("nightly/*", "o_ce"))
    names = ("nightly/1", "nightly/2", "Nightly/3", "once", "o_ce", "daily")
    jobs = {name: (await served.ask(headers=everyone | {"x-job-id": name})).headers["x-job-id"] for name in names}
    mine = {"nightly/1", "nightly/2", "o_ce"}
    for name in names:
        answer = await served.ask(headers=night | {"x-job-id": name})
        assert answer.status_code == (200 if name in mine else 403), answer.text
        by_id = await served.ask(headers=night | {"x-job-id": jobs[name]})
        assert by_id.status_code == (200 if name in mine else 404), by_id.text
        shown = await served.http.get(f"/api/v1/jobs/{jobs[name]}", headers=night)
        assert shown.status_code == (200 if name in mine else 404)
        operated = await served.http.post(f"/api/v1/jobs/{jobs[name]}/attempts", headers=night)
        assert operated.status_code == (201 if name in mine else 404)
    listed = (await served.http.get("/api/v1/jobs?limit=2", headers=night)).json()["jobs"]
    more = (await served.http.get(f"/api/v1/jobs?limit=2&before={listed[-1]['job_id']}", headers=night)).json()["jobs"]
    assert {job["external_id"] for job in (*listed, *more)} == mine
    assert (await served.ask(headers=night)).status_code == 200  # without a name it is a job of its own
    assert (await served.ask(headers=night | {"x-session-id": "s"})).status_code == 403
