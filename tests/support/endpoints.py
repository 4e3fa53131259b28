"""The endpoints for model calls, and every pair of a client's and a provider's format."""

from typing import Any

from overnight.wire_formats import _WIRES

# client format: path, body
ENDPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
    "responses": ("/v1/responses", {"input": "hello"}),
    "messages": ("/v1/messages", {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 100}),
    "embeddings": ("/v1/embeddings", {"input": "hello"}),
    "compact": ("/v1/responses/compact", {"input": "hello"}),
    "gemini": (
        "/v1beta/models/{model}:generateContent",
        {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]},
    ),
    "gemini_embeddings": ("/v1beta/models/{model}:embedContent", {"content": {"parts": [{"text": "hello"}]}}),
}
WITHOUT_STREAMS = ("embeddings", "gemini_embeddings", "compact")


def request_of(client: str, model: str, streamed: bool) -> tuple[str, dict[str, Any]]:
    """The path and the body of a call in a client format."""
    path, body = ENDPOINTS[client]
    if "{model}" in path:
        method = "streamGenerateContent?alt=sse" if streamed else "generateContent"
        return path.replace("{model}", model).replace("generateContent", method), dict(body)
    return path, {"model": model, **body, **({"stream": True} if streamed else {})}


PAIRS = sorted(_WIRES)


MODES = [(client, spoken, streamed) for client, spoken in PAIRS for streamed in (False, True)]


MODES = [mode for mode in MODES if mode[0] not in WITHOUT_STREAMS or not mode[2]]
