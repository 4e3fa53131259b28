"""Encoded requests: decoded after authentication, within bounds, on `/v1` and on `/api/v1`; refused with the way out."""

import gzip
import json
import re
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard

from asgi_calls import asgi_call
from overnight.api import Application, application
from overnight.brain import Brain
from overnight.gateway import Gateway, PriceBook
from overnight.keys import Keyring, Keys, MasterKeys, NewKey
from overnight.ledger import Ledger
from overnight.store import open_store
from overnight.testing import SpawnedProvider

CALL = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "hello"}]}
PATHS: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/chat/completions": (CALL, "choices"),
    "/v1/messages": ({**CALL, "max_tokens": 50}, "content"),
    "/v1/messages/count_tokens": (CALL, "input_tokens"),
    "/v1/responses": ({"model": "gpt-5.4-mini", "input": "hello"}, "output"),
    "/v1/embeddings": ({"model": "text-embedding-3-small", "input": "hello"}, "data"),
    "/api/v1/jobs/nightly/attempts": ({}, "attempt"),
}


def raw_deflate(data: bytes) -> bytes:
    made = zlib.compressobj(wbits=-15)
    return made.compress(data) + made.flush()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


ENCODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-GZip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "br": ("br", brotli.compress),
    "zstd": ("zstd", zstd),
    "two": ("gzip, zstd", lambda data: zstd(gzip.compress(data))),
    "identity": ("identity", bytes),
    "utf-8": ("utf-8", bytes),
}


class House:
    """An application that requires keys, and a key."""

    def __init__(self, app: Application, secret: str) -> None:
        self.app, self.secret = app, secret

    async def post(self, path: str, body: bytes, encoding: str, key: bool = True) -> Any:
        headers = {"content-type": "application/json", "content-encoding": encoding, "content-length": str(len(body))}
        headers |= {"authorization": f"Bearer {self.secret}"} if key else {}
        return await asgi_call(self.app, "POST", path, headers, body)


@pytest.fixture
async def house(tmp_path: Path, provider: SpawnedProvider) -> AsyncIterator[House]:
    brain, masters = Brain.from_files({}), MasterKeys("11" * 32)
    with open_store(str(tmp_path / "ledger.db")) as store:
        gateway = Gateway(
            store, brain.routing, PriceBook(), offline_base_url=provider.base_url, keys=Keyring(store, masters)
        )
        await gateway.start()
        _, secret = await Keys(store, masters).create("acme", NewKey(name="k", scopes=("calls", "jobs.operate")), "ann")
        try:
            yield House(application(gateway, Ledger(store), hosts=None), secret)
        finally:
            await gateway.close()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ENCODINGS)
async def test_encoded_request_is_served(house: House, name: str, path: str) -> None:
    encoding, encode = ENCODINGS[name]
    fields, expected = PATHS[path]
    answer = await house.post(path, encode(json.dumps(fields).encode()), encoding)
    assert answer.status in (200, 201), answer.body
    assert expected in answer.json()


@pytest.mark.parametrize("path", PATHS)
async def test_encoded_request_without_a_key_is_not_read(house: House, path: str) -> None:
    answer = await house.post(path, zstd(b"{}"), "zstd", key=False)
    assert (answer.status, answer.reads) == (401, 0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("encoding", ["compress", "lzma, gzip", "aws-chunked", "gzip, gzip, gzip, gzip"])
async def test_unknown_encoding_is_415_with_the_known_ones(house: House, path: str, encoding: str) -> None:
    answer = await house.post(path, json.dumps(CALL).encode(), encoding)
    assert answer.status == 415
    assert answer.headers["accept-encoding"] == "gzip, deflate, br, zstd"
    assert re.search(rb"content-encoding.*gzip, deflate, br.*zstd", answer.body)
    assert answer.reads == 0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
async def test_body_in_another_encoding_is_400(house: House, path: str, encoding: str) -> None:
    for body in (b"[1, 2]" * 9, ENCODINGS[encoding][1](b'{"model": "x"}')[:-3], ENCODINGS[encoding][1](b"x" * 999)[:9]):
        answer = await house.post(path, body, encoding)
        assert answer.status == 400, answer.body
        assert b"content-encoding" in answer.body
        assert encoding.encode() in answer.body


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
async def test_bomb_is_413(house: House, path: str, encoding: str) -> None:
    body = ENCODINGS[encoding][1](b'{"model": "' + b" " * (6 << 20) + b'"}')
    assert len(body) < 1 << 15
    answer = await house.post(path, body, encoding)
    assert answer.status == 413, answer.body
    assert b"times as large" in answer.body


async def test_decoded_size_is_bounded_by_max_body_bytes(tmp_path: Path, provider: SpawnedProvider) -> None:
    brain = Brain.from_files({"routing.yaml": b"limits: {max_body_bytes: 100000}"})
    with open_store(str(tmp_path / "ledger.db")) as store:
        gateway = Gateway(store, brain.routing, PriceBook(), offline_base_url=provider.base_url)
        await gateway.start()
        try:
            app = application(gateway, Ledger(store), auth="off")
            words = " ".join(map(str, range(30_000)))
            body = zstd(json.dumps({**CALL, "messages": [{"role": "user", "content": words}]}).encode())
            assert len(body) < 100_000
            headers = {"host": "127.0.0.1", "content-type": "application/json", "content-encoding": "zstd"}
            answer = await asgi_call(app, "POST", "/v1/chat/completions", headers, body)
            assert (answer.status, b"limits.max_body_bytes" in answer.body) == (413, True), answer.body
        finally:
            await gateway.close()


async def test_empty_encoded_body_is_as_an_empty_one(house: House) -> None:
    answer = await house.post("/api/v1/jobs/nightly/attempts", b"", "gzip")
    assert answer.status in (200, 201), answer.body
