"""The field of the output limit: by dialect and family of the model, and once the other one after a refusal of the field."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from faulty_upstream import Asked, FaultyUpstream, answers, faulty_upstream, head
from overnight.domain.policies import DIALECTS
from overnight.store import Store, open_store
from overnight.wire_formats.dialects import DIALECT_NAMES, dialect_of
from serving import Served, serving

PRICE = "{input_usd_per_mtok: 1, output_usd_per_mtok: 1}"
ROUTING = """
default_model: own
retries: {{max_attempts: 2, backoff_ms: 1}}
providers: {{house: {{base_url: '{url}', models: [own, o4-mini, acme/gpt-5-nano, gpt-4.1]{more}}}}}
prices: {{own: {price}, o4-mini: {price}, acme/gpt-5-nano: {price}, gpt-4.1: {price}}}
"""
OLD, NEW = "max_tokens", "max_completion_tokens"
REFUSALS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "OpenAI": (
        400,
        OLD,
        {
            "error": {
                "message": f"Unsupported parameter: '{OLD}' is not supported with this model. Use '{NEW}' instead.",
                "type": "invalid_request_error",
                "param": OLD,
                "code": "unsupported_parameter",
            }
        },
    ),
    "Azure's older versions": (
        400,
        NEW,
        {"error": {"message": f"Unrecognized request argument supplied: {NEW}", "type": "invalid_request_error"}},
    ),
    "strict servers": (
        422,
        NEW,
        {"detail": [{"type": "extra_forbidden", "loc": ["body", NEW], "msg": "Extra inputs are not permitted"}]},
    ),
}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with open_store(str(tmp_path / "ledger.db")) as opened:
        yield opened


class Fields:
    """An act that records the fields of the output limit, and refuses one of them."""

    def __init__(self, status: int = 400, refused: str = "", body: dict[str, Any] | None = None) -> None:
        self.sent: list[str] = []
        self._status, self._refused, self._body = status, refused, json.dumps(body).encode()

    async def __call__(self, asked: Asked, reader: Any, writer: Any) -> None:
        [field] = {OLD, NEW} & asked.body.keys()
        self.sent.append(field)
        if field != self._refused:
            await answers(asked, reader, writer)
            return
        length = f"content-length: {len(self._body)}"
        writer.write(head(self._status, "application/json", length) + self._body)
        await writer.drain()


@asynccontextmanager
async def before(store: Store, act: Fields, more: str = "") -> AsyncIterator[tuple[Served, FaultyUpstream]]:
    plan = dict.fromkeys(("own", "o4-mini", "acme/gpt-5-nano", "gpt-4.1"), act)
    async with (
        faulty_upstream(plan) as upstream,
        serving(store, upstream, ROUTING.format(url=upstream.base_url, price=PRICE, more=more)) as served,  # type: ignore[arg-type]
    ):
        yield served, upstream


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", REFUSALS)
async def test_refused_field_is_replaced_once(store: Store, name: str, stream: bool) -> None:
    status, refused, body = REFUSALS[name]
    act = Fields(status, refused, body)
    more = ", dialect: openai" if refused == NEW else ""
    other = NEW if refused == OLD else OLD
    async with before(store, act, more) as (served, _):
        first = await served.ask(model="own", headers={"x-job-id": "j"}, stream=stream)
        assert first.status_code == 200, first.text
        assert act.sent == [refused, other]
        await served.until("j", "model_succeeded")
        assert await served.story("j") == ["created", "model_called", "model_failed", "model_called", "model_succeeded"]
        assert (await served.ask(model="own", stream=stream)).status_code == 200
        assert act.sent == [refused, other, other]  # it was learnt


async def test_refused_value_is_no_refusal_of_the_field(store: Store) -> None:
    said = {"error": {"message": "max_tokens is too large: 9999. This model supports at most 16 completion tokens"}}
    act = Fields(400, OLD, said)
    async with before(store, act) as (served, _):
        assert (await served.ask(model="own")).status_code == 400
        assert act.sent == [OLD]


async def test_both_fields_refused_is_the_end(store: Store) -> None:
    class Never(Fields):
        async def __call__(self, asked: Asked, reader: Any, writer: Any) -> None:
            [self._refused] = {OLD, NEW} & asked.body.keys()
            self._body = json.dumps({"error": {"message": f"Unsupported parameter: {self._refused}"}}).encode()
            await super().__call__(asked, reader, writer)

    act = Never()
    async with before(store, act) as (served, _):
        assert (await served.ask(model="own")).status_code == 400
        assert act.sent == [OLD, NEW]


@pytest.mark.parametrize(
    ("model", "field"), [("o4-mini", NEW), ("acme/gpt-5-nano", NEW), ("gpt-4.1", OLD), ("own", OLD)]
)
async def test_reasoning_models_get_their_field_behind_any_host(store: Store, model: str, field: str) -> None:
    act = Fields()
    async with before(store, act) as (served, _):
        assert (await served.ask(model=model)).status_code == 200
        message = {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
        assert (await served.http.post("/v1/messages", json=message)).status_code == 200
        assert act.sent == [field, field]


async def test_dialect_of_a_provider_decides(store: Store) -> None:
    act = Fields()
    async with before(store, act, ", dialect: openai") as (served, _):
        assert (await served.ask(model="own", top_k=5)).headers["x-overnight-dropped"] == "top_k"
        assert act.sent == [NEW]


def test_names_of_dialects_are_those_of_the_brain() -> None:
    assert DIALECT_NAMES == DIALECTS
    assert dialect_of("https://proxy.example.com", "m", "mistral") == dialect_of("https://api.mistral.ai/v1")
