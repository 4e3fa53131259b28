"""Numbers from outside are ASCII digits of bounded length; other input is a client error."""

import asyncio
import json
from typing import Any

import pytest

from faulty_upstream import error_of, faulty_upstream, head, says
from overnight.domain import parse_whole
from overnight.store import Store
from raw_http import Client
from serving import Served, routed, serving

HELLO = [{"role": "user", "content": "hello"}]
ODD = {
    "thousands of digits": "9" * 5000,
    "thousands of zeros": "0" * 5000 + "1",
    "full-width": "２",
    "Arabic": "٢",
    "superscript": "²",
    "underscore": "1_0",
    "sign": "+1",
    "minus": "-1",
    "space": " 1 ",
    "point": "1.0",
    "exponent": "1e3",
    "hex": "0x1",
    "zero": "0",
    "over the most": "1000001",
    "empty": "",
}


@pytest.mark.parametrize("name", ODD)
async def test_attempt_numbers_are_validated_everywhere(served: Served, name: str) -> None:
    value = ODD[name]
    for metadata in ({"job_attempt": value}, {"job_attempt": value, "job_id": "n1"}):
        assert (await served.ask(metadata=metadata)).status_code == 400
    if value.isascii() and value.strip() == value and value:
        assert (await served.ask(headers={"x-job-attempt": value})).status_code == 400


@pytest.mark.parametrize("number", ["9" * 5000, "1e999", "-1", "1.5", "true", "[1]", "{}", "1e-999", "-0", "NaN"])
async def test_invalid_numbers_in_a_body_are_client_errors(served: Served, number: str) -> None:
    fields = (
        "max_tokens",
        "temperature",
        "n",
        "seed",
        "top_logprobs",
        "max_completion_tokens",
        "metadata",
        "stream_options",
    )
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings"):
        base: dict[str, Any] = {"model": "auto", "messages": HELLO, "input": "hello", "max_tokens": 20}
        for field in fields:
            body = json.dumps({**base, field: "NUMBER"}).replace('"NUMBER"', number)
            answer = await served.http.post(path, content=body, headers={"content-type": "application/json"})
            assert answer.status_code < 500, (path, field, number, answer.text[:300])
        body = json.dumps({**base, "metadata": {"job_attempt": "NUMBER"}}).replace('"NUMBER"', number)
        answer = await served.http.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code < 500, (path, number, answer.text[:300])


@pytest.mark.parametrize("name", [name for name in ODD if name != "zero" and name != "over the most"])
async def test_invalid_numbers_in_a_query_are_client_errors(served: Served, name: str) -> None:
    assert (await served.ask(headers={"x-job-id": "n1"})).status_code == 200
    for path in ("/api/v1/jobs", "/api/v1/jobs/n1/events", "/api/v1/budgets"):
        answer = await served.http.get(path, params={"limit": ODD[name]})
        assert answer.status_code == 400, (path, answer.text[:300])
    if ODD[name].isascii():
        live = {"accept": "text/event-stream", "last-event-id": ODD[name].strip()}
        await served.http.post("/api/v1/jobs/n1/complete", json={})
        assert (await served.http.get("/api/v1/jobs/n1/events", headers=live)).status_code == 200


async def test_length_with_leading_zeros_is_parsed(served: Served) -> None:
    body = json.dumps({"model": "auto", "messages": HELLO}).encode()
    host, port = served.url.removeprefix("http://").split(":")
    client = Client(*await asyncio.open_connection(host, int(port)))
    client.say(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")
    client.say(b"content-length: " + b"0" * 5000 + b"%d\r\n\r\n%b" % (len(body), body))
    assert (await client.answer())[0] == 200
    client.writer.close()


async def test_huge_provider_error_code_is_handled(store: Store) -> None:
    body = error_of("chat", "no", "server_error", "4" * 5000)
    act = says(head(200, "application/json", f"content-length: {len(body)}") + body)
    async with faulty_upstream({"m": act}) as upstream:
        prices = "prices: {m: {input_usd_per_mtok: 1, output_usd_per_mtok: 1}}\n"
        house = f"providers: {{house: {{base_url: '{upstream.base_url}', models: [m]}}}}\n"
        async with serving(store, upstream, routed(prices + house)) as served:  # type: ignore[arg-type]
            answer = await served.ask(model="m")
            assert (answer.status_code, "internal" in answer.text) == (502, False)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("0", 0),
        (b"10", 10),
        ("10", 10),
        (7, 7),
        ("11", None),
        (11, None),
        (-1, None),
        (True, None),
        (1.0, None),
        (None, None),
    ],
)
def test_parse_whole_accepts_bounded_ascii_digits(value: object, number: int | None) -> None:
    assert parse_whole(value, 10) == number
