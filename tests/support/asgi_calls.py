"""Requests to an ASGI application without a socket."""

from typing import Any

import msgspec


class AsgiAnswer:
    """The response, and how many times the application read from the body of the request."""

    def __init__(self, messages: list[dict[str, Any]], reads: int) -> None:
        self.status: int = messages[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
        self.body = b"".join(message.get("body", b"") for message in messages[1:])
        self.reads = reads

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


async def asgi_call(
    app: Any, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b"", **scope: Any
) -> AsgiAnswer:
    sent: list[dict[str, Any]] = []
    reads = 0
    path, _, query = path.partition("?")
    head = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    asked = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": head, **scope}

    async def receive() -> dict[str, Any]:
        nonlocal reads
        reads += 1
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(asked, receive, send)
    return AsgiAnswer(sent, reads)
