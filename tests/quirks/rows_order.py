"""The order of text, reasoning and calls: blocks and items come one after another, as the model wrote them."""

from typing import Any

from quirk_rows import (
    DONE,
    ROLE,
    TOKENS,
    Gets,
    Quirk,
    block,
    chunk,
    message_end,
    message_start,
    part,
    sse,
    text_block,
    tool_block,
    usage_chunk,
)

_SOURCE = "https://github.com/vllm-project/vllm/issues/9693"
_OSLO, _ROME = ("get_weather", {"city": "Oslo"}), ("get_weather", {"city": "Rome"})


def _thought(text: str) -> dict[str, Any]:
    return chunk({"reasoning_content": text})


def _call(index: int, arguments: str, *, begins: bool = False) -> dict[str, Any]:
    if begins:
        return chunk(part(arguments, "get_weather", index=index, id=f"call_{index}"))
    return chunk(part(arguments, index=index))


def _row(name: str, gets: Gets, *events: Any, finish: str = "stop") -> Quirk:
    return Quirk(
        name=f"order-{name}",
        source=_SOURCE,
        gets=gets,
        stream=[sse(ROLE, *events, chunk(finish=finish), usage_chunk(), DONE)],
    )


ROWS = [
    _row(
        "text-after-call",
        Gets(text="one two", calls=(_OSLO,), usage=TOKENS, order=("text", "call", "text")),
        chunk("one"),
        _call(0, '{"city": "Oslo"}', begins=True),
        chunk(" two"),
        finish="tool_calls",
    ),
    _row(
        "thinking-after-text",
        Gets(text="onetwo", reasoning="hmhm", usage=TOKENS, order=("thinking", "text", "thinking", "text")),
        _thought("hm"),
        chunk("one"),
        _thought("hm"),
        chunk("two"),
    ),
    _row(
        "thinking-between-calls",
        Gets(reasoning="ab", calls=(_OSLO, _ROME), usage=TOKENS, order=("thinking", "call", "thinking", "call")),
        _thought("a"),
        _call(0, '{"city": "Oslo"}', begins=True),
        _thought("b"),
        _call(1, '{"city": "Rome"}', begins=True),
        finish="tool_calls",
    ),
    _row(
        "two-calls",
        Gets(calls=(_OSLO, _ROME), call_ids=("call_0", "call_1"), usage=TOKENS, order=("call", "call")),
        _call(0, "", begins=True),
        _call(0, '{"city": "Oslo"}'),
        _call(1, "", begins=True),
        _call(1, '{"city": "Rome"}'),
        finish="tool_calls",
    ),
    _row(
        "two-calls-in-turns",
        Gets(calls=(_OSLO, _ROME), call_ids=("call_0", "call_1"), usage=TOKENS, order=("call", "call")),
        _call(0, "", begins=True),
        _call(1, "", begins=True),
        _call(0, '{"city":'),
        _call(1, '{"city":'),
        _call(0, ' "Oslo"}'),
        _call(1, ' "Rome"}'),
        finish="tool_calls",
    ),
    _row(
        "two-calls-in-one-piece",
        Gets(calls=(_OSLO, _ROME), usage=TOKENS, order=("call", "call")),
        chunk(
            {
                "tool_calls": [
                    {"index": n, "id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": text}}
                    for n, (name, text) in enumerate(
                        [("get_weather", '{"city": "Oslo"}'), ("get_weather", '{"city": "Rome"}')]
                    )
                ]
            }
        ),
        finish="tool_calls",
    ),
    _row(
        "text-inside-of-call",
        Gets(text="one", calls=(_OSLO,), usage=TOKENS, order=("call", "text")),
        _call(0, '{"city":', begins=True),
        chunk("one"),
        _call(0, ' "Oslo"}'),
        finish="tool_calls",
    ),
    _row(
        "space-between-calls",
        Gets(calls=(_OSLO, _ROME), usage=TOKENS),
        _call(0, '{"city": "Oslo"}', begins=True),
        chunk("\n"),
        _call(1, '{"city": "Rome"}', begins=True),
        finish="tool_calls",
    ),
    _row(
        "call-without-arguments",
        Gets(calls=(("now", {}),), usage=TOKENS, order=("call",)),
        chunk(part("{}", "now", id="call_1")),
        finish="tool_calls",
    ),
    Quirk(
        name="order-call-with-empty-arguments",
        source="https://github.com/vllm-project/vllm/issues/9693",
        gets=Gets(calls=(("now", {}),), finish="calls", usage=TOKENS, order=("call",)),
        each={"chat": Gets(calls=(("now", ""),), finish="calls", usage=TOKENS)},
        stream=[sse(ROLE, chunk(part("", "now", id="call_1")), chunk(finish="tool_calls"), usage_chunk(), DONE)],
    ),
    Quirk(
        name="order-of-messages-interleaved",
        source="https://docs.claude.com/en/docs/build-with-claude/extended-thinking#interleaved-thinking",
        target="messages",
        gets=Gets(
            text="onetwo",
            reasoning="ab",
            calls=(_OSLO,),
            finish="calls",
            usage=TOKENS,
            order=("thinking", "text", "thinking", "call", "text"),
        ),
        stream=[
            sse(
                message_start(),
                *block(
                    0,
                    {"type": "thinking", "thinking": "", "signature": ""},
                    {"type": "thinking_delta", "thinking": "a"},
                    {"type": "signature_delta", "signature": "sig-a"},
                ),
                *text_block(1, "one"),
                *block(
                    2,
                    {"type": "thinking", "thinking": "", "signature": ""},
                    {"type": "thinking_delta", "thinking": "b"},
                    {"type": "signature_delta", "signature": "sig-b"},
                ),
                *tool_block(3, "get_weather", '{"city": "Oslo"}'),
                *text_block(4, "two"),
                *message_end("tool_use"),
            )
        ],
    ),
]
