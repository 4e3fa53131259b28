"""The OpenAI embeddings wire format with computed vectors.

Equal texts have equal vectors. Texts that share most of their words and letters are similar; a paraphrase is not.
"""

from __future__ import annotations

import re
from array import array
from base64 import b64encode
from collections.abc import Iterator
from hashlib import blake2b
from math import sqrt
from typing import Any

import msgspec

from .scripted_rules import Call, ChatRequest
from .scripted_wire import FINGERPRINT, NOT_JSON, Headers, Refused, Reply, Wire, error_response, response

DEFAULT_DIMENSIONS = 256
MAX_DIMENSIONS = 8_192
MAX_INPUTS = 2_048
_word = re.compile(r"\w+")
_encode = msgspec.json.encode


class EmbeddingsRequest(msgspec.Struct):
    model: str
    input: str | list[str | int | list[int]]
    encoding_format: str | None = None
    dimensions: int | None = None


class EmbeddingsCall(Call):
    """An embeddings request. For rule matching, each input is a user message."""

    def __init__(self, request: EmbeddingsRequest, headers: Headers) -> None:
        self.inputs = _texts(request.input)
        self.as_base64 = request.encoding_format == "base64"
        self.dimensions = request.dimensions or DEFAULT_DIMENSIONS
        messages: list[dict[str, Any]] = [{"role": "user", "content": text} for text in self.inputs]
        super().__init__(ChatRequest(request.model, messages), headers)


_decode = msgspec.json.Decoder(EmbeddingsRequest).decode


def read(body: bytes, headers: Headers) -> Call:
    """Decode a request. Raises Refused."""
    try:
        request = _decode(body)
    except NOT_JSON as problem:
        raise Refused(f"The JSON body cannot be used: {problem}.") from None
    if not request.input or len(request.input) > MAX_INPUTS or not all(_texts(request.input)):
        raise Refused(f"`input` must be a string or up to {MAX_INPUTS} of them, none empty.")
    if not 1 <= (request.dimensions or 1) <= MAX_DIMENSIONS:
        raise Refused(f"`dimensions` must be from 1 to {MAX_DIMENSIONS}.")
    return EmbeddingsCall(request, headers)


def _texts(given: str | list[str | int | list[int]]) -> list[str]:
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        return [_of_tokens(given)]
    return [each if isinstance(each, str) else _of_tokens(each if isinstance(each, list) else [each]) for each in given]


def _of_tokens(tokens: list[Any]) -> str:
    return " ".join(map(str, tokens))


def vector(text: str, dimensions: int = DEFAULT_DIMENSIONS) -> array[float]:
    """The unit vector of a text: words and trigrams, each hashed to a position and a sign."""
    words = [word.lower() for word in _word.findall(text)] or [text]
    values = [0.0] * dimensions
    for word in words:
        padded = f" {word} "
        for gram in (word, *(padded[at : at + 3] for at in range(len(padded) - 2))):
            hashed = int.from_bytes(blake2b(gram.encode(), digest_size=8).digest(), "big")
            values[(hashed >> 1) % dimensions] += 1.0 if hashed & 1 else -1.0
    if not any(values):  # all components cancelled out
        values[0] = 1.0
    size = sqrt(sum(value * value for value in values))
    return array("f", [value / size for value in values])


def whole(reply: Reply, call: Call) -> bytes:
    assert isinstance(call, EmbeddingsCall)
    data: list[dict[str, Any]] = []
    for index, text in enumerate(call.inputs):
        made = vector(text, call.dimensions)
        encoded = b64encode(made.tobytes()).decode() if call.as_base64 else list(made)
        data.append({"object": "embedding", "index": index, "embedding": encoded})
    used = reply.usage["prompt_tokens"]
    usage = {"prompt_tokens": used, "total_tokens": used}
    body = {"object": "list", "data": data, "model": reply.model, "usage": usage}
    return _encode({**body, "system_fingerprint": FINGERPRINT})


def events(reply: Reply, call: Call) -> Iterator[bytes]:
    """Unused, since embeddings do not support streaming."""
    yield response(200, whole(reply, call))


EMBEDDINGS = Wire(read, whole, events, b"", error_response)
