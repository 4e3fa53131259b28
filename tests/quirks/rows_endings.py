"""How an answer ends: without a finish reason, with one that is no end, and with the words of other providers."""

from quirk_rows import (
    DONE,
    ROLE,
    TOKENS,
    Gets,
    Quirk,
    body,
    called,
    chunk,
    completion,
    message,
    message_end,
    message_start,
    part,
    response,
    response_events,
    sse,
    text_block,
    text_item,
    tool_block,
    usage_chunk,
)

_TEXT = Gets(text="hello", calls=(), finish="stop", usage=TOKENS)
_CALL = Gets(text="", calls=(("get_weather", {"city": "Oslo"}),), finish="calls", usage=TOKENS)
_SPARE = Gets(text="from the spare", usage=TOKENS)
_AFTER_TWO = ("chat", "chat", "spare")
_NO_FINISH = "https://github.com/anomalyco/opencode/issues/43882"
_EMPTY_FINISH = "https://github.com/ollama/ollama/issues/4357"
_OPEN_FINISH = "https://github.com/alfredapp/openai-workflow/pull/52"
_STARTED = (chunk(part("", "get_weather", id="call_1")), chunk(part('{"city": "Oslo"}')))
_WORDS = "https://openrouter.ai/docs/api/reference/errors-and-debugging"


def _second(text: str, finish: str | None = None) -> dict[str, object]:
    """A chunk of the second choice."""
    choice = {"index": 1, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return {**chunk(), "choices": [choice]}


ENDINGS = [
    Quirk(name=f"end-{name}", source=source, gets=gets, stream=[sse(*events)])
    for name, source, gets, events in (
        ("done-only", _NO_FINISH, _TEXT, (ROLE, chunk("hello"), usage_chunk(), DONE)),
        ("usage-only", _NO_FINISH, _TEXT, (ROLE, chunk("hello"), usage_chunk())),
        ("usage-on-last-piece", _OPEN_FINISH, _TEXT, (ROLE, chunk("hello", usage=usage_chunk()["usage"]), DONE)),
        ("empty-reason", _EMPTY_FINISH, _TEXT, (chunk("hel", ""), chunk("lo", ""), usage_chunk(), DONE)),
        ("empty-reason-then-stop", _EMPTY_FINISH, _TEXT, (chunk("hello", ""), chunk(finish="stop"), usage_chunk(), DONE)),
        ("null-reason", _NO_FINISH, _TEXT, (chunk("hello"), chunk(finish=None), usage_chunk(), DONE)),
        ("done-after-call", _NO_FINISH, _CALL, (ROLE, *_STARTED, usage_chunk(), DONE)),
    )
]  # fmt: skip
ENDINGS += [
    Quirk(
        name="end-stop-after-call",
        source="https://github.com/ollama/ollama/issues/7881",
        gets=_CALL,
        each={
            "chat": Gets(text="", calls=_CALL.calls, finish="stop", usage=TOKENS)
        },  # as OpenAI itself with a named tool
        stream=[sse(ROLE, *_STARTED, chunk(finish="stop"), usage_chunk(), DONE)],
    ),
]
ENDINGS += [
    Quirk(
        name="end-one-of-two-choices-open",
        source=_NO_FINISH,
        clients=("chat",),
        request={"chat": {"n": 2}},
        gets=_TEXT,
        stream=[sse(chunk("hello"), _second("bye"), chunk(finish="stop"), usage_chunk(), DONE)],
        recorded={"chat": {"choices": [{"finish_reason": "stop"}, {"finish_reason": "stop"}]}},
    ),
    Quirk(
        name="end-missing-is-cut",
        source=_NO_FINISH,
        gets=Gets(text="hello", error="finish reason", code="stream_cut"),
        stream=[sse(ROLE, chunk("hello"))],
        estimated=True,
        bound=True,
    ),
    Quirk(
        name="end-done-inside-call-is-cut",
        source=_NO_FINISH,
        gets=Gets(error="finish reason", code="stream_cut"),
        stream=[
            sse(ROLE, chunk("hello"), chunk(part('{"city": "Os', "get_weather", id="call_1")), usage_chunk(), DONE)
        ],
        billed=TOKENS,
        bound=True,
    ),
    Quirk(
        name="end-messages-stop-without-reason",
        source="https://github.com/anomalyco/opencode/issues/43882",
        target="messages",
        gets=Gets(text="hello", finish="stop"),
        stream=[sse(message_start(), *text_block(0, "hello"), {"type": "message_stop"})],
        estimated=True,
        bound=True,
    ),
    Quirk(
        name="end-messages-null-reason",
        target="messages",
        gets=_TEXT,
        stream=[sse(message_start(), *text_block(0, "hello"), *message_end(None))],
    ),
    Quirk(
        name="end-messages-call-without-reason",
        target="messages",
        gets=_CALL,
        stream=[sse(message_start(), *tool_block(0, "get_weather", '{"city": "Oslo"}'), *message_end(None))],
    ),
]

# ── finish reasons that are no end ──────────────────────────────────────────────────────────────────────────────────

_NO_END = {
    "error": ("server_error", _WORDS),
    "abort": ("server_error", "https://docs.vllm.ai/en/latest/api/vllm/v1/engine/"),
    "network_error": ("server_error", "https://docs.bigmodel.cn/api-reference"),
    "insufficient_system_resource": ("overloaded", "https://api-docs.deepseek.com/api/create-chat-completion"),
    "MALFORMED_FUNCTION_CALL": ("malformed", "https://ai.google.dev/api/generate-content#FinishReason"),
    "function_call_filter: MALFORMED_FUNCTION_CALL": ("malformed", "https://ai.google.dev/gemini-api/docs/openai"),
}
NO_ENDS = [
    Quirk(
        name=f"no-end-{name.split()[-1].lower()}-{number}",
        source=source,
        gets=_SPARE,
        stream=[sse(ROLE, chunk(finish=name), usage_chunk(), DONE)],
        whole=[body(completion(None, name))],
        asked=_AFTER_TWO,
        failures=(kind, kind),
    )
    for number, (name, (kind, source)) in enumerate(_NO_END.items())
]
NO_ENDS += [
    Quirk(
        name="no-end-after-text",
        source=_WORDS,
        gets=Gets(text="hello", error="error"),
        stream=[sse(ROLE, chunk("hello"), chunk(finish="error"), usage_chunk(), DONE)],
        billed=TOKENS,
        estimated=True,
    ),
    Quirk(
        name="no-end-error-in-choice",
        source="https://github.com/genkit-ai/genkit/pull/6079",
        gets=_SPARE,
        stream=[
            sse(
                ROLE,
                {
                    **chunk(),
                    "choices": [
                        {
                            "index": 0,
                            "delta": {"content": ""},
                            "finish_reason": "error",
                            "error": {"code": 429, "message": "slow down"},
                        }
                    ],
                },
            )
        ],
        whole=[
            body(
                {
                    **completion("half"),
                    "choices": [
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": "half"},
                            "finish_reason": "error",
                            "error": {"code": 429, "message": "slow down"},
                        }
                    ],
                }
            )
        ],
        asked=_AFTER_TWO,
        failures=("rate_limited", "rate_limited"),
    ),
    Quirk(
        name="no-end-calls-without-call",
        source="https://github.com/vllm-project/vllm/issues/9693",
        gets=_SPARE,
        stream=[sse(ROLE, chunk(finish="tool_calls"), usage_chunk(), DONE)],
        whole=[body(completion(None, "tool_calls"))],
        asked=_AFTER_TWO,
        failures=("malformed", "malformed"),
    ),
    Quirk(
        name="no-end-tool-use-without-call",
        target="messages",
        gets=_SPARE,
        stream=[sse(message_start(), *message_end("tool_use"))],
        whole=[body(message(stop="tool_use"))],
        asked=("messages", "messages", "spare"),
        failures=("malformed", "malformed"),
    ),
    Quirk(
        name="no-end-messages-error",
        target="messages",
        gets=_SPARE,
        stream=[sse(message_start(), *message_end("error"))],
        whole=[body(message(stop="error"))],
        asked=("messages", "messages", "spare"),
        failures=("server_error", "server_error"),
    ),
]

# ── words of other providers ────────────────────────────────────────────────────────────────────────────────────────

_SYNONYMS = {
    "stop": "stop eos eos_token stop_sequence end_turn endturn STOP COMPLETE",
    "length": "length max_tokens MAX_TOKENS model_length model_context_window_exceeded max_output_tokens",
    "filter": "content_filter sensitive SAFETY refusal content_filter:_RECITATION PROHIBITED_CONTENT BLOCKLIST SPII",
}
WORDS = [
    Quirk(
        name=f"reason-{word.lower().replace(':_', '-').replace('_', '-')}{'-upper' if word.isupper() else ''}",
        source="https://ai.google.dev/api/generate-content#FinishReason" if word.isupper() else _WORDS,
        gets=Gets(text="hello", finish=meaning, usage=TOKENS),
        stream=[sse(ROLE, chunk("hello"), chunk(finish=word.replace(":_", ": ")), usage_chunk(), DONE)],
        whole=[body(completion("hello", word.replace(":_", ": ")))],
    )
    for meaning, words in _SYNONYMS.items()
    for word in words.split()
]
WORDS += [
    Quirk(
        name=f"reason-{word.replace('_', '-')}",
        gets=_CALL,
        stream=[sse(ROLE, *_STARTED, chunk(finish=word), usage_chunk(), DONE)],
        whole=[body(completion({"tool_calls": [called("get_weather", '{"city": "Oslo"}')]}, word))],
    )
    for word in ("tool_calls", "tool_use")
]
WORDS += [
    Quirk(
        name="reason-unknown",
        gets=Gets(text="hello", finish="moonphase", usage=TOKENS),
        each={"responses": Gets(text="hello", finish="incomplete: moonphase", usage=TOKENS)},
        stream=[sse(ROLE, chunk("hello"), chunk(finish="moonphase"), usage_chunk(), DONE)],
        whole=[body(completion("hello", "moonphase"))],
        valid=False,
    ),
    Quirk(
        name="reason-unknown-of-messages",
        target="messages",
        gets=Gets(text="hello", finish="moonphase", usage=TOKENS),
        each={"responses": Gets(text="hello", finish="incomplete: moonphase", usage=TOKENS)},
        stream=[sse(message_start(), *text_block(0, "hello"), *message_end("moonphase"))],
        whole=[body(message({"type": "text", "text": "hello"}, stop="moonphase"))],
        valid=False,
    ),
]
WORDS += [
    Quirk(
        name=f"reason-of-messages-{word.replace('_', '-')}",
        source="https://docs.claude.com/en/api/handling-stop-reasons",
        target="messages",
        gets=Gets(text="hello", finish=meaning, usage=TOKENS),
        each={"messages": Gets(text="hello", finish=word, usage=TOKENS)},
        stream=[sse(message_start(), *text_block(0, "hello"), *message_end(word))],
        whole=[body(message({"type": "text", "text": "hello"}, stop=word))],
    )
    for word, meaning in (
        ("max_tokens", "length"),
        ("stop_sequence", "stop"),
        ("refusal", "filter"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "stop"),
    )
]
WORDS += [
    Quirk(
        name=f"reason-of-responses-{reason.replace('_', '-')}",
        source="https://platform.openai.com/docs/api-reference/responses/object",
        target="responses",
        clients=("responses",),
        gets=Gets(text="hello", finish=f"incomplete: {reason}", usage=TOKENS),
        stream=[
            sse(
                *response_events(
                    text_item("hello"),
                    final=response(text_item("hello"), status="incomplete", incomplete_details={"reason": reason}),
                )
            )
        ],
        whole=[body(response(text_item("hello"), status="incomplete", incomplete_details={"reason": reason}))],
    )
    for reason in ("max_output_tokens", "content_filter", "moonphase")
]

ROWS = [*ENDINGS, *NO_ENDS, *WORDS]
