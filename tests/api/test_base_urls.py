"""Base URLs without /v1 or with it twice, and other names of this machine."""

from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from overnight.domain import BadInput
from overnight.settings import Settings
from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import Served, serving


@pytest.mark.parametrize("ending", ["", "/v1/v1"])
async def test_openai_client_with_a_wrong_base_url_learns_it(served: Served, ending: str) -> None:
    client = openai.AsyncOpenAI(base_url=served.url + ending, api_key="unused", max_retries=0)
    words = "/v1 is missing" if not ending else "twice"
    said: Any = [{"role": "user", "content": "x"}]
    for call in (
        client.chat.completions.create(model="gpt-5.4-mini", messages=said),
        client.responses.create(model="gpt-5.4-mini", input="x"),
        client.embeddings.create(model="text-embedding-3-small", input="x"),
        client.models.list(),
        client.models.retrieve("gpt-5.4-mini"),
    ):
        with pytest.raises(openai.NotFoundError, match=words) as refused:
            await call
        assert refused.value.code == "not_found"
        assert refused.value.response.headers["x-should-retry"] == "false"
    await client.close()


async def test_anthropic_client_with_a_wrong_base_url_learns_it(served: Served) -> None:
    client = anthropic.AsyncAnthropic(base_url=f"{served.url}/v1", api_key="unused", max_retries=0)
    with pytest.raises(anthropic.NotFoundError, match="/v1 stands there twice") as refused:
        await client.messages.create(model="gpt-5.4-mini", max_tokens=5, messages=[{"role": "user", "content": "x"}])
    assert refused.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    await client.close()


async def test_named_hosts_are_accepted(store: Store, provider: SpawnedProvider) -> None:
    async def status(served: Served, host: str, **headers: str) -> int:
        port = served.url.rpartition(":")[2]
        answer = await served.http.get("/v1/models", headers={"host": f"{host}:{port}", **headers})
        return answer.status_code

    names = ("127.0.0.1", "localhost", "host.docker.internal")
    async with serving(store, provider, hosts=names) as served:
        assert await status(served, "host.docker.internal") == 200
        assert await status(served, "HOST.docker.internal") == 200
        assert await status(served, "evil.example") == 403
        assert await status(served, "host.docker.internal", origin="http://evil.example") == 403
    async with serving(store, provider) as served:
        assert await status(served, "host.docker.internal") == 403


def test_setting_names_the_hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OVERNIGHT_HOME", str(tmp_path))
    monkeypatch.setenv("OVERNIGHT_HOSTS", " host.docker.internal, Gateway ,,")
    assert Settings.from_environment().hosts == ("host.docker.internal", "gateway")
    for wrong in ("http://x", "x:80", "*", "a b", "-", "x" * 300):
        monkeypatch.setenv("OVERNIGHT_HOSTS", wrong)
        with pytest.raises(BadInput, match="OVERNIGHT_HOSTS"):
            Settings.from_environment()
