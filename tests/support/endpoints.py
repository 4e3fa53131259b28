"""The endpoints for model calls, and every pair of a client's and a provider's format."""

from typing import Any

from overnight.wire_formats import _WIRES

# client format: path, body
ENDPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
    "responses": ("/v1/responses", {"input": "hello"}),
    "messages": ("/v1/messages", {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 100}),
    "embeddings": ("/v1/embeddings", {"input": "hello"}),
}


PAIRS = sorted(_WIRES)


MODES = [(client, spoken, streamed) for client, spoken in PAIRS for streamed in (False, True)]


MODES = [mode for mode in MODES if mode[0] != "embeddings" or not mode[2]]
