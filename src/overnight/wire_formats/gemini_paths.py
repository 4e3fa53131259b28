"""The paths at which Gemini's clients send requests: `/v1beta/models/{model}:method`, and the same below `/v1`."""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import parse_qs

import msgspec

from . import gemini, gemini_embeddings
from .contract import AddressedCall, ClientPaths, Json
from .lenient_json import dict_of, list_of

_encode = msgspec.json.Encoder().encode
_any = msgspec.json.Decoder().decode
_VERSION, _STABLE = "/v1beta/", "/v1/models/"
_RETRY = "type.googleapis.com/google.rpc.RetryInfo"
_ACTIONS = ("generateContent", "streamGenerateContent", "countTokens", "embedContent", "batchEmbedContents")


def address(name: str, query: bytes) -> AddressedCall | None:
    """Read `model:method` and the query."""
    model, colon, method = name.rpartition(":")
    if not colon or not model:
        return None
    match method:
        case "generateContent":
            return AddressedCall("gemini", partial(gemini.addressed, model=model, stream=False))
        case "streamGenerateContent":
            is_array = b"sse" not in parse_qs(query).get(b"alt", [])
            return AddressedCall("gemini", partial(gemini.addressed, model=model, stream=True), is_array=is_array)
        case "countTokens":
            return AddressedCall("gemini", partial(_counted, model=model), _count_answer)
        case "embedContent" | "batchEmbedContents":
            single = method == "embedContent"
            return AddressedCall("gemini_embeddings", partial(gemini_embeddings.addressed, model=model, single=single))
        case _:
            return None


def _counted(body: bytes, model: str) -> bytes:
    """The body of a request to count tokens, which may hold the whole request for an answer."""
    try:
        inner: Any = dict_of(_any(gemini.in_camel_case(body))).get("generateContentRequest")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        inner = None
    return gemini.addressed(_encode(inner) if isinstance(inner, dict) else body, model, stream=False)


def _count_answer(tokens: int) -> Json:
    return {"totalTokens": tokens}


def _model_card(model: str) -> Json:
    return {"name": f"models/{model}", "displayName": model, "supportedGenerationMethods": list(_ACTIONS)}


def _model_list(cards: list[Json]) -> Json:
    return {"models": cards}


def _covers(method: str, path: str) -> bool:
    return path.startswith(_VERSION) or (method == "POST" and path.startswith(_STABLE))


def _with_retry(body: bytes, seconds: int) -> bytes:
    """The error with the wait where Google's clients look for it."""
    whole = dict_of(_any(body))
    error = dict_of(whole.get("error"))
    details = [each for each in list_of(error.get("details")) if dict_of(each).get("@type") != _RETRY]
    error["details"] = [*details, {"@type": _RETRY, "retryDelay": f"{seconds}s"}]
    return _encode({**whole, "error": error})


PATHS = ClientPaths(
    templates=("/v1beta/models/{model}", "/v1/models/{model}"),
    address=address,
    models_path="/v1beta/models",
    model_path="/v1beta/models/{model}",
    model_card=_model_card,
    model_list=_model_list,
    key_parameter=b"key",
    covers=_covers,
    with_retry=_with_retry,
)
