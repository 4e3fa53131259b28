"""An OpenAI-shaped model provider that answers every request with the same completion, as fast as one process can.

    python bench/upstream_mock.py --port 0          prints {"port": ...} once it listens, and serves until SIGTERM

POST anything: a chat completion, or with `"stream": true` the same text as server-sent events in `--chunks` pieces.
GET /count: how many completions were asked for, so that a benchmark can show that its requests really came this far.
Speed comes from looking at as little of a request as possible: the end of the head, its content-length, `"stream"`.
"""

import argparse
import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvloop

TEXT = "The night was quiet. " * 8
STREAM = re.compile(rb'"stream"\s*:\s*true')
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)
USAGE = {"prompt_tokens": 75, "completion_tokens": 40, "total_tokens": 115}
HEAD = {"id": "chatcmpl-mock", "created": 1763700000, "model": "gpt-5.4-mini"}


def completion() -> bytes:
    message = {"role": "assistant", "content": TEXT}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = json.dumps(HEAD | {"object": "chat.completion", "choices": [choice], "usage": USAGE}).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def stream(chunks: int) -> list[bytes]:
    """The pieces of a streamed answer, HTTP chunk framing included; the first carries the response head."""

    def event(delta: dict[str, str], finish: str | None = None, **more: object) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return json.dumps(HEAD | {"object": "chat.completion.chunk", "choices": [choice]} | more).encode()

    size = -(-len(TEXT) // chunks)
    texts = [TEXT[start : start + size] for start in range(0, len(TEXT), size)]
    events = [event({"role": "assistant", "content": texts[0]}), *(event({"content": text}) for text in texts[1:])]
    events += [
        event({}, "stop"),
        json.dumps(HEAD | {"object": "chat.completion.chunk", "choices": [], "usage": USAGE}).encode(),
    ]
    pieces = [b"data: %b\n\n" % each for each in [*events, b"[DONE]"]]
    framed = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return [head + framed[0], *framed[1:-1], framed[-1] + b"0\r\n\r\n"]


@dataclass
class Behaviour:
    plain: bytes
    pieces: list[bytes]
    latency_s: float
    between_s: float
    asked: int = 0


class Upstream(asyncio.Protocol):
    """One connection; requests on it are answered in order (pipelining only without latency)."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer + data if self.buffer else data
        while buffer:
            end = buffer.find(b"\r\n\r\n") + 4
            if end == 3:
                break
            head = buffer[:end]
            length = LENGTH.search(head)
            if length is None and CHUNKED.search(head):
                self.transport.write(b"HTTP/1.1 411 Length Required\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                return self.transport.close()
            total = end + (int(length[1]) if length else 0)
            if len(buffer) < total:
                break
            self.answer(head, buffer[end:total])
            buffer = buffer[total:]
        self.buffer = buffer
        return None

    def answer(self, head: bytes, body: bytes) -> None:
        behaviour = self.behaviour
        if head.startswith(b"GET"):
            count = b"%d" % behaviour.asked
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(count), count))
            return
        behaviour.asked += 1
        pieces = behaviour.pieces if STREAM.search(body) else None
        if behaviour.latency_s:
            asyncio.get_running_loop().call_later(behaviour.latency_s, self.send, pieces)
        else:
            self.send(pieces)

    def send(self, pieces: list[bytes] | None, position: int = 0) -> None:
        if self.transport.is_closing():  # the client left while it waited
            return
        if pieces is None:
            self.transport.write(self.behaviour.plain)
            return
        loop, between = asyncio.get_running_loop(), self.behaviour.between_s
        self.transport.write(pieces[position])
        if position + 1 < len(pieces):
            # A piece is a turn of the loop of its own: pieces that leave in one packet would not be a stream.
            if between:
                loop.call_later(between, self.send, pieces, position + 1)
            else:
                loop.call_soon(self.send, pieces, position + 1)


async def serve(port: int, behaviour: Behaviour) -> None:
    loop = asyncio.get_running_loop()
    stop = loop.create_future()
    loop.add_signal_handler(signal.SIGTERM, stop.set_result, None)
    server = await loop.create_server(lambda: Upstream(behaviour), "127.0.0.1", port, family=socket.AF_INET)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await stop
    server.close()


@contextmanager
def running(**options: float) -> Iterator[str]:
    """Start the mock as a process, give its base URL (`http://127.0.0.1:<port>`), stop it at the end.

    Options are those of the command line: chunks, latency_ms, between_ms.
    """
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    process = subprocess.Popen([sys.executable, __file__, *flags], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
    finally:
        process.terminate()
        process.wait()


def count(base_url: str) -> int:
    """How many completions a running mock was asked for."""
    with urllib.request.urlopen(f"{base_url}/count") as answer:
        return int(answer.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--chunks", type=int, default=20, help="pieces of text in a streamed answer")
    parser.add_argument("--latency-ms", type=float, default=0, help="before an answer or the first piece")
    parser.add_argument("--between-ms", type=float, default=0, help="between the pieces of a stream")
    options = parser.parse_args()
    behaviour = Behaviour(completion(), stream(options.chunks), options.latency_ms / 1e3, options.between_ms / 1e3)
    uvloop.run(serve(options.port, behaviour))


if __name__ == "__main__":
    main()
