"""Encoded answers and errors: decoded whole and streamed; an unknown name of an encoding is harmless where the body is plain."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import brotli
import zstandard

from quirk_rows import DONE, ROLE, TOKENS, Gets, Quirk, Reply, body, chunk, completion, sse, usage_chunk

_SOURCE = "https://www.rfc-editor.org/rfc/rfc9110#name-content-codings"


def _raw_deflate(data: bytes) -> bytes:
    made = zlib.compressobj(wbits=-15)
    return made.compress(data) + made.flush()


_CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "raw-deflate": ("deflate", _raw_deflate),
    "br": ("br", brotli.compress),
    "zstd": ("zstd", zstandard.ZstdCompressor().compress),
    "two": ("gzip, br", lambda data: brotli.compress(gzip.compress(data))),
    "utf-8": ("utf-8", bytes),
    "identity": ("identity", bytes),
    "unknown": ("aws-chunked", bytes),
}
_STREAM = sse(ROLE, chunk("hello"), chunk(finish="stop"), usage_chunk(), DONE)
_WHOLE = body(completion("hello"))
_LIMITED = {"error": {"message": "your plan has no room", "type": "rate_limit_error", "code": "too_fast"}}


def _encoded(reply: Reply, coding: str) -> Reply:
    label, encode = _CODINGS[coding]
    return reply._replace(body=encode(reply.body), headers={**reply.headers, "content-encoding": label})


ROWS = [
    Quirk(
        name=f"encoded-answer-{coding}",
        source=_SOURCE,
        gets=Gets(text="hello", finish="stop", usage=TOKENS),
        stream=[_encoded(_STREAM, coding)],
        whole=[_encoded(_WHOLE, coding)],
    )
    for coding in _CODINGS
]
ROWS += [
    Quirk(
        name=f"encoded-error-{coding}",
        source=_SOURCE,
        gets=Gets(status=429, error="your plan has no room", code="too_fast", headers={"retry-after": "1"}),
        stream=[(limited := _encoded(body(_LIMITED, status=429, retry_after="0.001"), coding))],
        whole=[limited],
        model="chat-alone",
        asked=("chat-alone", "chat-alone"),
        failures=("rate_limited", "rate_limited"),
    )
    for coding in _CODINGS
]
