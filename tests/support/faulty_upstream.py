"""A provider on raw sockets with scripted faults: refuse, stall, trickle, lie, disconnect.

`plan` says per model what is done with a request, its last act again and again; a model without one answers. Every request
is counted before anything is done with it, as a provider would bill it.
"""

import asyncio
import json
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

from overnight.wire_formats import CODECS

Json = dict[str, Any]
TEXT = "one two three"
WHOLE: dict[str, Json] = {
    "chat": {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    },
    "messages": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": TEXT}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 3},
    },
    "responses": {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": "m",
        "output": [
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": TEXT, "annotations": []}],
            }
        ],
        "usage": {"input_tokens": 5, "output_tokens": 3, "total_tokens": 8},
    },
    "compact": {
        "id": "resp_1",
        "object": "response.compaction",
        "created_at": 1,
        "output": [{"id": "cmp_1", "type": "compaction", "encrypted_content": "opaque"}],
        "usage": {"input_tokens": 5, "output_tokens": 3, "total_tokens": 8},
    },
    "embeddings": {
        "object": "list",
        "model": "m",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.5]}],
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    },
    "gemini": {
        "candidates": [{"content": {"parts": [{"text": TEXT}], "role": "model"}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 3, "totalTokenCount": 8},
        "modelVersion": "m",
    },
    "gemini_embeddings": {"embedding": {"values": [0.5, 0.5]}, "usageMetadata": {"promptTokenCount": 5}},
}


class Asked(NamedTuple):
    """One request: the wire format it is in, and its body."""

    form: str
    body: Json

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))


Act = Callable[[Asked, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""What is done with a request. The connection is closed after it, unless it answered whole."""


class HangUp(Exception):
    """The act wants the connection closed."""


def head(status: int, content_type: str, *further: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}", *further, "", ""]
    return "\r\n".join(lines).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM = head(200, "text/event-stream", "transfer-encoding: chunked")


def pieces_of(asked: Asked) -> list[bytes]:
    """The good answer as events of its format."""
    return list(CODECS[asked.form].stream_events(json.dumps(WHOLE[asked.form]).encode(), None))


def error_of(form: str, message: str, kind: str, code: str | None) -> bytes:
    """An error as a provider of the format words it."""
    if form == "messages":
        return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()
    if form.startswith("gemini"):
        status = {"api_error": 500, "overloaded_error": 503, "rate_limit_error": 429}.get(kind, 400)
        error = {"code": status, "message": message, "status": kind.upper(), "details": [{"reason": code or ""}]}
        return json.dumps({"error": error}).encode()
    return json.dumps({"error": {"message": message, "type": kind, "code": code, "param": None}}).encode()


# ── acts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def answers(asked: Asked, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The good answer."""
    if asked.streamed:
        writer.write(STREAM + b"".join(chunk(piece) for piece in pieces_of(asked)) + b"0\r\n\r\n")
    else:
        body = json.dumps(WHOLE[asked.form]).encode()
        writer.write(head(200, "application/json", f"content-length: {len(body)}") + body)
    await writer.drain()


def refuses(status: int, kind: str, message: str = "no", code: str | None = None, *headers: str) -> Act:
    """An error with a status."""

    async def act(asked: Asked, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = error_of(asked.form, message, kind, code)
        writer.write(head(status, "application/json", f"content-length: {len(body)}", *headers) + body)
        await writer.drain()

    return act


def says(raw: bytes, *, then_waits: bool = False) -> Act:
    """These bytes, and then nothing more: the connection closes, or waits until the client has gone."""

    async def act(_asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        if then_waits:
            await reader.read()
        raise HangUp

    return act


async def stalls(_asked: Asked, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Takes the request and never says a word."""
    await reader.read()
    raise HangUp


async def closes(_asked: Asked, _reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Takes the request and closes."""
    raise HangUp


async def resets(_asked: Asked, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes the request and resets the connection."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    raise HangUp


def breaks_off(kept: float = 0.5) -> Act:
    """A part of the good answer, then the end of the connection."""

    async def act(asked: Asked, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if asked.streamed:
            pieces = pieces_of(asked)
            writer.write(STREAM + b"".join(chunk(piece) for piece in pieces[: int(len(pieces) * kept)]))
        else:
            body = json.dumps(WHOLE[asked.form]).encode()
            writer.write(head(200, "application/json", f"content-length: {len(body)}") + body[: int(len(body) * kept)])
        await writer.drain()
        raise HangUp

    return act


def begins(then: bytes | None, kept: float = 0.5) -> Act:
    """A stream that begins well, then says something else; None: nothing more."""

    async def act(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pieces = pieces_of(asked)
        for piece in pieces[: max(1, int(len(pieces) * kept))]:
            writer.write((STREAM if piece is pieces[0] else b"") + chunk(piece))
            await writer.drain()
        await asyncio.sleep(0.02)  # the first pieces are with the client by then
        if then is None:
            await reader.read()
        else:
            writer.write(chunk(then))
            await writer.drain()
        raise HangUp

    return act


def trickles(pause_s: float, size: int = 8) -> Act:
    """The good answer, a few bytes at a time."""

    async def act(asked: Asked, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if asked.streamed:
            raw = STREAM + b"".join(chunk(piece) for piece in pieces_of(asked)) + b"0\r\n\r\n"
        else:
            body = json.dumps(WHOLE[asked.form]).encode()
            raw = head(200, "application/json", f"content-length: {len(body)}") + body
        for start in range(0, len(raw), size):
            writer.write(raw[start : start + size])
            await writer.drain()
            await asyncio.sleep(pause_s)

    return act


# ── the server ──────────────────────────────────────────────────────────────────────────────────────────────────────

_PATHS = {f"/v1{codec.path}": codec.name for codec in CODECS.values() if codec.path}


class FaultyUpstream:
    """`plan` says what becomes of requests, `asked` counts them by model and `answered` those answered whole, `bodies` keeps
    them. `down` and `up` take it away and back."""

    def __init__(self) -> None:
        self.plan: dict[str, Act | Sequence[Act]] = {}
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[Json] = []
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def up(self) -> None:
        """Listen; after `down`, on the same port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """Nobody listens any more, and what was open is reset."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    def _act(self, model: str) -> Act:
        planned = self.plan.get(model, answers)
        if isinstance(planned, Sequence):
            return planned[min(self.asked[model], len(planned)) - 1]
        return planned

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                asked = await _request(reader)
                model = str(asked.body.get("model"))
                self.asked[model] += 1
                self.bodies.append(asked.body)
                act = self._act(model)
                await act(asked, reader, writer)
                self.answered[model] += 1
        except (HangUp, ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            self._writers.discard(writer)
            with suppress(ConnectionError):
                writer.close()


async def _request(reader: asyncio.StreamReader) -> Asked:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    length = next(int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:"))
    body = await reader.readexactly(length)
    path, _, query = lines[0].split(" ")[1].partition("?")
    if path in _PATHS:
        return Asked(_PATHS[path], json.loads(body))
    for codec in CODECS.values():
        if codec.client_paths and (called := codec.client_paths.address(path.partition("/models/")[2], query.encode())):
            return Asked(called.form, json.loads(called.complete(body)))
    raise AssertionError(f"an unknown path was asked: {path}")


@asynccontextmanager
async def faulty_upstream(plan: dict[str, Act | Sequence[Act]] | None = None) -> AsyncIterator[FaultyUpstream]:
    upstream = FaultyUpstream()
    upstream.plan = plan or {}
    await upstream.up()
    try:
        yield upstream
    finally:
        await upstream.down()


def closed_port() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
