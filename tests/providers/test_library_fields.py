"""Fields of a request that reach the provider library, which a recording module replaces."""

import asyncio
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from overnight.providers import LibraryPool

BODY = {"model": "odd/model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "top_k": 3}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    async def acompletion(**fields: Any) -> Any:
        calls.append(fields)
        return SimpleNamespace(model_dump_json=lambda **_: "{}")

    library: Any = ModuleType("litellm")
    library.acompletion, library.exceptions = acompletion, SimpleNamespace(Timeout=OSError, APIConnectionError=OSError)
    monkeypatch.setitem(sys.modules, "litellm", library)
    return calls


async def ask(**more: Any) -> Any:
    pool = LibraryPool("odd", "https://odd.example")
    until = asyncio.get_running_loop().time() + 5
    headers = [(b"authorization", b"Bearer the house's key")]
    return await pool.request("POST", "/chat/completions", headers, json.dumps(BODY | more).encode(), until)


async def test_call_parameters_are_passed_on(asked: list[dict[str, Any]]) -> None:
    assert (await ask()).status == 200
    [call] = asked
    assert BODY.items() <= call.items()
    assert (call["api_base"], call["api_key"]) == ("https://odd.example", "the house's key")


@pytest.mark.parametrize("name", ["base_url", "api_base", "fallbacks", "mock_response", "extra_headers", "num_retries"])
async def test_client_cannot_set_address_or_key(asked: list[dict[str, Any]], name: str) -> None:
    refused = await ask(**{name: "https://elsewhere.example"})
    assert refused.status == 400
    assert json.loads(refused.body)["error"]["param"] == name
    assert not asked
