"""A provider that records the headers it receives, and rejects requests on demand."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from overnight.api import Server

CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
}


class RecordingProvider:
    """`seen` are the headers of its requests, `refusing` the status it answers all of them with, quoting the key,
    `streaming` whether it does so in an event."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []
        self.refusing = 0
        self.streaming = False
        self.base_url = ""

    async def __call__(self, scope: dict, receive: object, send: object) -> None:  # type: ignore[type-arg]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.seen.append(headers)
        while (await receive()).get("more_body"):  # type: ignore[operator]
            continue
        body: object = CHAT
        if self.refusing:
            body = {"error": {"message": f"you showed {headers.get('authorization')}", "code": "no", "type": "no"}}
        content, kind = msgspec.json.encode(body), b"application/json"
        if self.streaming:
            content, kind = b"data: " + content + b"\n\n", b"text/event-stream"
        start = {"type": "http.response.start", "status": self.refusing or 200}
        await send({**start, "headers": [(b"content-type", kind)]})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": content})  # type: ignore[operator]


@asynccontextmanager
async def recording_provider() -> AsyncIterator[RecordingProvider]:
    provider = RecordingProvider()
    server = Server(provider)  # type: ignore[arg-type]
    _, port = await server.start("127.0.0.1", 0)
    provider.base_url = f"http://127.0.0.1:{port}/v1"
    try:
        yield provider
    finally:
        await server.stop(0)
