"""Embeddings of Gemini: `embedContent` and `batchEmbedContents`, https://ai.google.dev/api/embeddings

The body of a batch is also that of a single content, with one request and `single` beside it.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator
from struct import error as StructError
from struct import pack, unpack
from typing import Annotated, Any

import msgspec

from overnight.ledger import address_chain
from overnight.pricing.usage import Cost, Usage, openai_usage

from .contract import AnswerContext, Json, Losses, StreamTranslator
from .embeddings import Assembly
from .gemini import encode, error_body, error_event, in_camel_case, model_path
from .lenient_json import dict_of, dicts_of, list_of, text_of
from .recorded_answers import ReadAnswer
from .request import (
    NOT_FINGERPRINTED,
    REFERENCED_FILE_BYTES,
    InvalidBody,
    Request,
    canonical,
    invalid_body,
    unescaped_for_search,
)

__all__ = [
    "Assembly",
    "addressed",
    "dispatched",
    "encode",
    "error_body",
    "error_event",
    "is_answer",
    "read",
    "usage_of",
]

MAX_REQUESTS = 2048
MEDIA_BYTES = 65_536
"""Added for each file of a request: its tokens may exceed its bytes."""
_SINGLE, _BATCH = "embedContent", "batchEmbedContents"
_EXAMPLE = 'a list such as [{"content": {"parts": [{"text": "hello"}]}}]'
_CONFIG = "embedContentConfig"
_HANDLED = frozenset({"model", "content", "outputDimensionality", _CONFIG})


class _Known(msgspec.Struct):
    """The fields of the body that the gateway reads."""

    requests: Annotated[list[Json], msgspec.Meta(min_length=1, max_length=MAX_REQUESTS)]
    model: str | None = None
    single: bool = False


_known = msgspec.json.Decoder(_Known).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_any = msgspec.json.Decoder().decode


def addressed(body: bytes, model: str, *, single: bool) -> bytes:
    """The client's body with what its path said."""
    trimmed = body.strip()
    if trimmed[:1] != b"{" or trimmed[-1:] != b"}":
        return body  # `read` reports it
    named = _encode({"model": model.removeprefix("models/"), "single": single})[1:]
    if single:
        return b'{"requests":[%b],%b' % (trimmed, named)
    return trimmed[:-1] + (b"," if trimmed[1:-1].strip() else b"") + named


def dispatched(body: Json) -> tuple[str, bytes]:
    """The path and the body for a target. Each request names the model again."""
    whole: Json = _any(_encode(body))
    path = model_path(whole)
    asked = [{**each, "model": path.removeprefix("/")} for each in dicts_of(whole.get("requests"))]
    if whole.get("single") and len(asked) == 1:
        return f"{path}:{_SINGLE}", _encode(asked[0])
    return f"{path}:{_BATCH}", _encode({"requests": asked})


def read(body: bytes) -> Request:
    """Decode a request body that `addressed` has made.

    Raises:
        InvalidBody: a field is invalid; the error names the field and the expected value.
    """
    try:
        body = in_camel_case(body)
        known = _known(body)
        fields = _fields(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_body(error, conversation_field="requests", example=_EXAMPLE, api_name="Gemini") from None
    for at, each in enumerate(known.requests):
        if not dicts_of(dict_of(each.get("content")).get("parts")):
            raise InvalidBody(f"requests[{at}].content: has no parts; send {_EXAMPLE}", f"requests[{at}].content")
    bare = [{name: value for name, value in each.items() if name != "model"} for each in known.requests]
    params = {name: _any(raw) for name, raw in fields.items() if name != "requests"}
    unescaped = unescaped_for_search(body)
    files = unescaped.count(b'"inlineData"') + unescaped.count(b'"fileData"')
    return Request(
        format="gemini_embeddings",
        fields=fields,
        model=known.model or "",
        links=tuple(address_chain([canonical(bare)])),
        tools=None,
        tools_sha256="",
        params=canonical(params),
        stable_params=canonical({name: value for name, value in params.items() if name not in NOT_FINGERPRINTED}),
        stream=False,
        prompt_bytes=len(body) + files * (MEDIA_BYTES + REFERENCED_FILE_BYTES),
        open_ended=files > 0,
    )


def usage_of(answer: Json) -> Usage | None:
    report = dict_of(answer.get("usageMetadata") or answer.get("usage"))
    return openai_usage({"prompt_tokens": report.get("promptTokenCount"), "completion_tokens": 0})


def is_answer(answer: Json) -> bool:
    return bool(answer.get("embeddings") or answer.get("embedding")) and not answer.get("error")


def read_answer(answer: Json) -> ReadAnswer | None:
    return ReadAnswer("", False) if is_answer(answer) else None


def stream_events(body: bytes, cost_usd: Cost | None) -> Iterator[bytes]:  # noqa: ARG001 - the form of all formats
    """The answer unchanged, since embeddings do not support streaming."""
    yield body


def no_stream(_context: AnswerContext) -> StreamTranslator:
    raise ValueError("embeddings do not support streaming")


# ── this format over OpenAI's ───────────────────────────────────────────────────────────────────────────────────────


def to_openai(body: Json, losses: Losses) -> Json:
    """The request for a target of OpenAI's format. Raises InvalidBody for contents that are no text."""
    inputs: list[str] = []
    sizes: list[Any] = []
    for at, each in enumerate(dicts_of(body.get("requests"))):
        parts = dicts_of(dict_of(each.get("content")).get("parts"))
        if not all(isinstance(part.get("text"), str) for part in parts):
            place = f"requests[{at}].content"
            raise InvalidBody(f"{place}: the target's API takes only text", place)
        inputs.append("\n".join(part["text"] for part in parts))
        config = {**dict_of(each.get(_CONFIG)), **{name: value for name, value in each.items() if name != _CONFIG}}
        sizes.append(config.get("outputDimensionality"))
        losses += [f"requests[{at}].{name}" for name in config if name not in _HANDLED and config[name] is not None]
    if any(size != sizes[0] for size in sizes):
        raise InvalidBody("requests: the target's API takes one outputDimensionality for all", "requests")
    out: Json = {"model": body.get("model"), "input": inputs}
    if sizes[0] is not None:
        out["dimensions"] = sizes[0]
    return out


def from_openai(answer: Json, context: AnswerContext) -> Json:
    vectors = sorted(dicts_of(answer["data"]), key=lambda each: int(each.get("index") or 0))
    made = [{"values": _numbers(each["embedding"])} for each in vectors]
    out: Json = {"embedding": made[0]} if context.body.get("single") else {"embeddings": made}
    usage = dict_of(answer.get("usage"))
    if (count := usage.get("prompt_tokens", usage.get("total_tokens"))) is not None:
        out["usageMetadata"] = {"promptTokenCount": count}
    return out


def _numbers(vector: Any) -> list[float]:
    if isinstance(vector, str):
        raw = b64decode(vector)
        return list(unpack(f"<{len(raw) // 4}f", raw[: len(raw) // 4 * 4]))
    return list_of(vector)


# ── OpenAI's format over this one ───────────────────────────────────────────────────────────────────────────────────


def over_gemini(body: Json, losses: Losses) -> Json:
    """OpenAI's request for a target of this format. Raises InvalidBody for inputs that are tokens."""
    given: Any = body.get("input")
    inputs: list[Any] = [given] if isinstance(given, str) else list_of(given)
    if not all(isinstance(each, str) for each in inputs):
        raise InvalidBody("input: the target's API takes text, not tokens", "input")
    known = ("model", "input", "dimensions", "encoding_format", "metadata")
    losses += [name for name, value in body.items() if name not in known and value is not None]
    size: Json = {} if body.get("dimensions") is None else {"outputDimensionality": body["dimensions"]}
    requests = [{"content": {"parts": [{"text": each}]}, **size} for each in inputs]
    return {"model": body.get("model"), "requests": requests}


def answer_over_gemini(answer: Json, context: AnswerContext) -> Json:
    vectors = dicts_of(answer.get("embeddings")) or [dict_of(answer.get("embedding"))]
    as_text = text_of(context.body.get("encoding_format")) == "base64"
    data: list[Json] = []
    for at, each in enumerate(vectors):
        values = list_of(each["values"])
        vector = _as_base64(values) if as_text else values
        data.append({"object": "embedding", "index": at, "embedding": vector})
    out: Json = {"object": "list", "data": data, "model": context.model}
    if (usage := usage_of(answer)) is not None:
        out["usage"] = {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens}
    return out


def _as_base64(values: list[Any]) -> str:
    """The numbers as OpenAI's clients decode them. Raises ValueError for others."""
    try:
        return b64encode(pack(f"<{len(values)}f", *values)).decode()
    except (StructError, OverflowError) as error:
        raise ValueError(f"a vector that is no list of numbers: {error}") from None
