"""Providers that speak neither wire format, through a library that knows many: LiteLLM, an optional extra.

It stands where a connection to a provider stands, and answers in chat completions; so all that costs or records goes the
same way as with any other target. Nothing is retried and nothing is recorded in there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Self, cast

import msgspec

from overnight.domain import OvernightError
from overnight.outgoing import (
    Check,
    Headers,
    NeverSent,
    ResponseLost,
    UpstreamResponse,
    UpstreamTimeout,
    no_connection,
)

INSTALL = "pip install 'overnight[providers]'"
_QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "DO_NOT_TRACK": "1",
    "LITELLM_MODE": "PRODUCTION",
}
"""In its other mode the library reads a file `.env` of the folders around it into the environment of this process."""
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_TAKEN = frozenset({
    "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens",
    "max_tokens", "messages", "metadata", "min_p", "modalities", "model", "n", "parallel_tool_calls", "prediction",
    "presence_penalty", "prompt_cache_key", "reasoning", "reasoning_effort", "repetition_penalty", "response_format",
    "safety_identifier", "seed", "service_tier", "stop", "store", "stream", "stream_options", "temperature",
    "thinking", "tool_choice", "tools", "top_k", "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
})  # fmt: skip
"""What a client may say to the library. Everything else there is the house's: where to call, whose key, whom else to ask."""
_JSON = {b"content-type": b"application/json"}
_EVENTS = {b"content-type": b"text/event-stream"}


class LibraryStream:
    """A streamed answer of the library, as the bytes of server-sent events. Iterating raises UpstreamError."""

    def __init__(
        self, origin: str, status: int, headers: Mapping[bytes, bytes], pieces: AsyncIterator[bytes], deadline: float
    ) -> None:
        self.status, self.headers = status, headers
        self._origin, self._pieces, self._deadline = origin, pieces, deadline

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await anext(self._pieces)
        except TimeoutError:
            raise UpstreamTimeout(self._origin, "body", "the deadline passed in mid-stream") from None
        except StopAsyncIteration:
            raise
        except Exception as error:
            raise ResponseLost(self._origin, f"the stream broke off: {type(error).__name__}") from None

    async def follow(self, take: Callable[[bytes], bool]) -> bool:
        """As `UpstreamStream.follow`."""
        async for piece in self:
            if take(piece):
                return True
        return False

    def extend(self, deadline: float) -> None:
        """Another deadline (a time of the running loop), in place of the one before."""
        self._deadline = deadline

    def close(self) -> None:
        """Let go of the answer; what the library holds of it goes with the iterator."""
        self._pieces = _nothing()


class LibraryPool:
    """Calls of one provider through the library. `base_url` is handed on where one is set."""

    def __init__(self, provider: str, base_url: str) -> None:
        self.origin, self._base_url = provider, base_url
        self._library: Any = None

    async def request(
        self, method: str, path: str, headers: Headers, body: bytes, deadline: float, check: Check = None
    ) -> UpstreamResponse:
        """As `UpstreamPool.request`; a refusal of the provider is an answer with its status."""
        answer = await self._ask(method, path, headers, body, deadline, check)
        if isinstance(answer, UpstreamResponse):
            return answer
        return UpstreamResponse(200, _JSON, answer.model_dump_json(exclude_none=True).encode())

    async def stream(self, method: str, path: str, headers: Headers, body: bytes, deadline: float) -> LibraryStream:
        """As `UpstreamPool.stream`."""
        answer = await self._ask(method, path, headers, body, deadline)
        if isinstance(answer, UpstreamResponse):
            return LibraryStream(self.origin, answer.status, answer.headers, _once(answer.body), deadline)
        return LibraryStream(self.origin, 200, _EVENTS, _events(answer), deadline)

    async def close(self) -> None:
        """Nothing is held open here."""

    async def _ask(
        self, _method: str, _path: str, headers: Headers, body: bytes, deadline: float, check: Check = None
    ) -> Any:
        """The library's answer, or the provider's refusal. Raises UpstreamError."""
        library = self._library = self._library or await asyncio.to_thread(_load, self.origin)
        fields = cast("dict[str, Any]", _decode(body))
        if more := sorted(fields.keys() - _TAKEN):
            message = f"{', '.join(more)[:500]}: not taken by this model's API; leave it out"
            said = {"message": message, "type": "invalid_request_error", "param": more[0][:100]}
            return UpstreamResponse(400, _JSON, _encode({"error": said}))
        key = next((value[7:].decode() for name, value in headers if name == b"authorization"), None)
        try:
            async with asyncio.timeout_at(deadline):
                if check is not None:
                    check()
                return await library.acompletion(
                    **fields, api_key=key, api_base=self._base_url or None, num_retries=0, max_retries=0
                )
        except TimeoutError:
            raise UpstreamTimeout(self.origin, "first_byte", "no answer in time") from None
        except library.exceptions.Timeout:
            raise UpstreamTimeout(self.origin, "first_byte", "no answer in time") from None
        except library.exceptions.APIConnectionError as error:
            # Its faults of its own come under this name too; such a call never left.
            if isinstance(error.__context__, ImportError):
                raise NeverSent(self.origin, f"the library lacks a package: {error.__context__}") from None
            if (cause := _unconnected(error)) is not None:
                raise no_connection(self.origin, cause) from None
            raise ResponseLost(self.origin, "the connection was lost, or never made") from None
        except OvernightError:
            raise
        except Exception as error:
            status = getattr(error, "status_code", None)
            if not isinstance(status, int) or status < 400:
                raise NeverSent(self.origin, f"the library refused the call: {type(error).__name__}") from None
            # The provider's words; keys and the like are taken out of them where failures are read.
            said = {"message": str(getattr(error, "message", error)), "type": type(error).__name__}
            return UpstreamResponse(status, _JSON, _encode({"error": said}))


_NO_CONNECTION = frozenset({
    "ConnectError", "ConnectTimeout", "ClientConnectorError", "ClientConnectorCertificateError",
    "ClientConnectorDNSError", "ClientConnectorSSLError",
})  # fmt: skip
"""What the HTTP clients under the library raise before anything was sent."""


def _unconnected(error: BaseException) -> OSError | None:
    """The reason for which no connection was made; None where one was, or may have been."""
    cause: BaseException | None = error
    before_sending = False
    for _ in range(10):
        cause = cause and (cause.__cause__ or cause.__context__)
        if cause is None:
            break
        before_sending = before_sending or type(cause).__name__ in _NO_CONNECTION
        if before_sending and isinstance(cause, OSError) and type(cause).__name__ not in _NO_CONNECTION:
            return cause
    return OSError("no connection was made") if before_sending else None


def installed() -> bool:
    """Is the extra there? Looked up without importing it."""
    return find_spec("litellm") is not None


def _load(provider: str) -> Any:
    """The library, imported on first use: it takes seconds."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        library: Any = import_module("litellm")
    except ImportError:
        raise NeverSent(provider, f"providers of kind library need an extra: {INSTALL}") from None
    library.telemetry, library.suppress_debug_info, library.drop_params = False, True, False
    return library


async def _events(answer: Any) -> AsyncIterator[bytes]:
    async for piece in answer:
        yield b"data: %b\n\n" % piece.model_dump_json(exclude_none=True).encode()
    yield b"data: [DONE]\n\n"


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
