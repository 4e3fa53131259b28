"""200, and then an error before any output: nothing was told, so the call is tried again and exactly one start is seen."""

from typing import Any

from quirk_rows import DONE, ROLE, TOKENS, Gets, Quirk, chunk, message_start, response, sse, usage_chunk

_SPARE = Gets(text="from the spare", finish="stop", usage=TOKENS)
_AGAIN = Gets(text="hello", finish="stop", usage=TOKENS)
_GOOD = sse(ROLE, chunk("hello"), chunk(finish="stop"), usage_chunk(), DONE)
_SOURCE = "https://openrouter.ai/docs/api/reference/errors-and-debugging"

_PREAMBLES: dict[str, tuple[Any, ...]] = {
    "nothing": (),
    "role": (ROLE,),
    "empty-chunk": ({**chunk(), "choices": []}, chunk(""), chunk({"role": "assistant", "content": None})),
    "comment": (b": OPENROUTER PROCESSING\n\n",),
}
_ERRORS: dict[str, Any] = {
    "object": {"error": {"message": "no capacity", "type": "overloaded_error", "code": 503}},
    "event": b'event: error\ndata: {"status": 503, "reason": "no capacity"}\n\n',
    "event-text": b"event: error\ndata: no capacity\n\n",
    "bare": {"message": "no capacity", "code": 503},
    "detail": {"detail": "no capacity"},
    "vllm": {"object": "error", "message": "no capacity", "type": "InternalServerError", "param": None, "code": 503},
    "string": {"error": "no capacity"},
    "only-done": DONE,
}
ROWS = [
    Quirk(
        name=f"error-first-{before}-{error}",
        source="https://github.com/diegosouzapw/OmniRoute/pull/8210" if error == "object" else _SOURCE,
        gets=_SPARE,
        stream=[sse(*preamble, event)],
        asked=("chat", "chat", "spare"),
    )
    for before, preamble in _PREAMBLES.items()
    for error, event in _ERRORS.items()
]
ROWS += [
    Quirk(
        name=f"error-first-then-good-{before}",
        source=_SOURCE,
        gets=_AGAIN,
        stream=[sse(*preamble, _ERRORS["object"]), _GOOD],
        asked=("chat", "chat"),
        failures=("overloaded",),
    )
    for before, preamble in _PREAMBLES.items()
]
ROWS += [
    Quirk(
        name="error-first-cut-after-role",
        source=_SOURCE,
        gets=_AGAIN,
        stream=[sse(ROLE, cut=True), _GOOD],
        asked=("chat", "chat"),
        failures=("cut",),
    ),
    *[
        Quirk(
            name=f"error-first-messages-{name}",
            source="https://docs.claude.com/en/api/errors",
            target="messages",
            gets=_SPARE,
            stream=[sse(*preamble, error)],
            asked=("messages", "messages", "spare"),
            failures=("overloaded", "overloaded"),
        )
        for name, preamble in (
            ("nothing", ()),
            ("start", (message_start(),)),
            ("ping", (message_start(), {"type": "ping"})),
            (
                "block",
                (
                    message_start(),
                    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
                    {"type": "ping"},
                ),
            ),
        )
        for error in [{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}]
    ],
    *[
        Quirk(
            name=f"error-first-responses-{name}",
            source="https://platform.openai.com/docs/api-reference/responses-streaming/error",
            target="responses",
            clients=("responses",),
            gets=_SPARE,
            stream=[
                sse(
                    {"type": "response.created", "sequence_number": 0, "response": response(status="in_progress")},
                    {"type": "response.in_progress", "sequence_number": 1, "response": response(status="in_progress")},
                    error,
                )
            ],
            asked=("responses", "responses", "spare"),
            failures=("server_error", "server_error"),
        )
        for name, error in (
            ("error", {"type": "error", "code": "server_error", "message": "oops", "sequence_number": 2}),
            (
                "failed",
                {
                    "type": "response.failed",
                    "sequence_number": 2,
                    "response": response(status="failed", error={"code": "server_error", "message": "oops"}),
                },
            ),
        )
    ],
]
