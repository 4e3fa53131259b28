"""Finish reasons and usage as the most used providers and servers document them."""

from typing import Any

from quirk_rows import (
    DONE,
    ROLE,
    Gets,
    Json,
    Quirk,
    body,
    chunk,
    completion,
    message,
    message_end,
    message_start,
    response,
    response_events,
    sse,
    text_block,
    text_item,
    usage_chunk,
)

_OPENAI = "https://platform.openai.com/docs/api-reference/chat/object"
_AZURE = "https://learn.microsoft.com/azure/ai-services/openai/reference"
_ANTHROPIC = "https://docs.claude.com/en/api/messages"
_GEMINI = "https://ai.google.dev/gemini-api/docs/openai"
_OPENROUTER = "https://openrouter.ai/docs/api/reference/overview"
_DEEPSEEK = "https://api-docs.deepseek.com/api/create-chat-completion"
_MISTRAL = "https://docs.mistral.ai/api/"
_GROQ = "https://console.groq.com/docs/api-reference"
_VLLM = "https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html"
_LLAMA = "https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md"
_OLLAMA = "https://docs.ollama.com/api/openai-compatibility"
_SGLANG = "https://docs.sglang.ai/basic_usage/openai_api_completions.html"


def _counts(sent: int, made: int, **more: Any) -> Json:
    return {"prompt_tokens": sent, "completion_tokens": made, "total_tokens": sent + made, **more}


# provider: source, usage, billed tokens, reason, meaning, further fields of each chunk
_CHAT: dict[str, tuple[str, Json, tuple[int, int], str, str, Json]] = {
    "openai": (
        _OPENAI,
        _counts(
            30,
            20,
            prompt_tokens_details={"cached_tokens": 0, "audio_tokens": 0},
            completion_tokens_details={
                "reasoning_tokens": 12,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        ),
        (30, 20),
        "stop",
        "stop",
        {"service_tier": "default", "system_fingerprint": "fp_1"},
    ),
    "azure": (_AZURE, _counts(30, 20), (30, 20), "content_filter", "filter", {"system_fingerprint": "fp_1"}),
    # Thinking is part of the total only.
    "gemini": (
        _GEMINI,
        {"prompt_tokens": 30, "completion_tokens": 5, "total_tokens": 50},
        (30, 20),
        "length",
        "length",
        {},
    ),
    "openrouter": (
        _OPENROUTER,
        _counts(30, 20, cost=0.0001, is_byok=False, cost_details={"upstream_inference_cost": None}),
        (30, 20),
        "length",
        "length",
        {"provider": "Anthropic"},
    ),
    "deepseek": (
        _DEEPSEEK,
        _counts(30, 20, prompt_cache_hit_tokens=0, prompt_cache_miss_tokens=30),
        (30, 20),
        "content_filter",
        "filter",
        {},
    ),
    "mistral": (_MISTRAL, _counts(30, 20, prompt_audio_seconds={}), (30, 20), "model_length", "length", {}),
    "groq": (
        _GROQ,
        _counts(30, 20, queue_time=0.01, prompt_time=0.002, completion_time=0.1, total_time=0.102),
        (30, 20),
        "stop",
        "stop",
        {"x_groq": {"id": "req_1"}, "service_tier": "on_demand"},
    ),
    "vllm": (
        _VLLM,
        _counts(30, 20, prompt_tokens_details=None),
        (30, 20),
        "length",
        "length",
        {"prompt_logprobs": None},
    ),
    "llamacpp": (
        _LLAMA,
        _counts(30, 20),
        (30, 20),
        "length",
        "length",
        {"timings": {"prompt_n": 30, "predicted_n": 20}},
    ),
    "ollama": (_OLLAMA, _counts(30, 20), (30, 20), "stop", "stop", {"system_fingerprint": "fp_ollama"}),
    "sglang": (
        _SGLANG,
        _counts(30, 20, reasoning_tokens=0),
        (30, 20),
        "stop",
        "stop",
        {"metadata": {"weight_version": "1"}},
    ),
}
# How each server ends its stream: with a usage chunk, with usage on the last piece, or with usage in a field of its own.
_ON_LAST_PIECE = frozenset({"gemini", "mistral", "deepseek"})


def _stream(name: str, usage: Json, reason: str, more: Json) -> list[Any]:
    first: list[Any] = [{**ROLE, **more}]
    if name == "azure":
        results = [{"prompt_index": 0, "content_filter_results": {}}]
        first = [{**chunk(), "choices": [], "prompt_filter_results": results}, ROLE]
    text = {**chunk("hello"), **more}
    if name in _ON_LAST_PIECE:
        return [sse(*first, text, chunk("", reason, usage=usage, **more), DONE)]
    return [sse(*first, text, chunk(finish=reason, **more), {**usage_chunk(usage), **more}, DONE)]


ROWS = [
    Quirk(
        name=f"provider-{name}",
        source=source,
        gets=Gets(text="hello", finish=meaning),
        billed=billed,
        stream=_stream(name, usage, reason, more),
        whole=[body(completion("hello", reason, usage, **more))],
        valid=name != "groq",  # whose service tiers are its own
    )
    for name, (source, usage, billed, reason, meaning, more) in _CHAT.items()
]
ROWS += [
    Quirk(
        name="provider-vllm-usage-on-every-piece",
        source=_VLLM,
        gets=Gets(text="hello", finish="stop", usage=(30, 20)),
        stream=[
            sse(
                {**ROLE, "usage": _counts(30, 0)},
                chunk("hello", usage=_counts(30, 20)),
                chunk("", "stop", usage=_counts(30, 20), stop_reason=None),
                usage_chunk(_counts(30, 20)),
                DONE,
            )
        ],
    ),
    Quirk(
        name="provider-vllm-stop-token",
        source=_VLLM,
        gets=Gets(text="hello", finish="stop", usage=(30, 20)),
        whole=[
            body(
                {
                    **completion("hello", usage=_counts(30, 20)),
                    "choices": [
                        {
                            "index": 0,
                            "message": {
                                "role": "assistant",
                                "content": "hello",
                                "reasoning_content": None,
                                "tool_calls": [],
                            },
                            "logprobs": None,
                            "finish_reason": "stop",
                            "stop_reason": 128009,
                        }
                    ],
                }
            )
        ],
    ),
    Quirk(
        name="provider-sglang-matched-stop",
        source=_SGLANG,
        gets=Gets(text="hello", finish="stop", usage=(30, 20)),
        stream=[
            sse(
                ROLE,
                chunk("hello"),
                {
                    **chunk(),
                    "choices": [
                        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop", "matched_stop": 151645}
                    ],
                },
                usage_chunk(_counts(30, 20)),
                DONE,
            )
        ],
    ),
    Quirk(
        name="provider-groq-usage-in-own-field",
        source=_GROQ,
        gets=Gets(text="hello", finish="stop"),
        stream=[
            sse(ROLE, chunk("hello"), chunk(finish="stop", x_groq={"id": "req_1", "usage": _counts(30, 20)}), DONE)
        ],
        billed=(30, 20),
    ),
    Quirk(
        name="provider-openrouter-claude",
        source=_OPENROUTER,
        gets=Gets(text="hello", reasoning="hm", finish="stop", usage=(30, 20)),
        stream=[
            sse(
                b": OPENROUTER PROCESSING\n\n",
                chunk(
                    {
                        "role": "assistant",
                        "content": "",
                        "reasoning": "hm",
                        "reasoning_details": [{"type": "reasoning.text"}],
                    }
                ),
                chunk({"role": "assistant", "content": "hello"}),
                {
                    **chunk(),
                    "choices": [
                        {
                            "index": 0,
                            "delta": {"role": "assistant", "content": ""},
                            "finish_reason": "stop",
                            "native_finish_reason": "end_turn",
                        }
                    ],
                },
                usage_chunk(_counts(30, 20, cost=0.001)),
                DONE,
            )
        ],
    ),
    Quirk(
        name="provider-anthropic",
        source=_ANTHROPIC,
        target="messages",
        gets=Gets(text="hello", finish="stop"),
        billed=(30, 20),
        stream=[
            sse(
                message_start(
                    usage={
                        "input_tokens": 30,
                        "cache_creation_input_tokens": 0,
                        "cache_read_input_tokens": 0,
                        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
                        "output_tokens": 1,
                        "service_tier": "standard",
                    }
                ),
                {"type": "ping"},
                *text_block(0, "hello"),
                {**message_end()[0], "usage": {"input_tokens": 30, "output_tokens": 20}},
                message_end()[1],
            )
        ],
        whole=[
            body(
                message(
                    {"type": "text", "text": "hello"},
                    usage={"input_tokens": 30, "output_tokens": 20, "service_tier": "standard"},
                )
            )
        ],
    ),
    Quirk(
        name="provider-openai-responses",
        source="https://platform.openai.com/docs/api-reference/responses/object",
        target="responses",
        clients=("responses",),
        gets=Gets(text="hello", finish="stop", usage=(30, 20)),
        stream=[
            sse(
                *response_events(
                    text_item("hello"),
                    final=response(
                        text_item("hello"),
                        usage={
                            "input_tokens": 30,
                            "input_tokens_details": {"cached_tokens": 0},
                            "output_tokens": 20,
                            "output_tokens_details": {"reasoning_tokens": 0},
                            "total_tokens": 50,
                        },
                    ),
                )
            )
        ],
    ),
]
