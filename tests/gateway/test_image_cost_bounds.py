"""Images and tools count in the cost bound, however the JSON spells their names."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.wire_formats import CODECS

URL = "https://example.com/a.png"
PDF = "data:application/pdf;base64,AAAA"
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat picture": (
        "chat",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URL}}]}]},
    ),
    "chat file": ("chat", {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]}),
    "chat sound": (
        "chat",
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "mp3"}}]}]},
    ),
    "responses picture": (
        "responses",
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": URL}]}]},
    ),
    "responses file": (
        "responses",
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": URL}]}]},
    ),
    "messages picture": (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": URL}}]}]},
    ),
    "messages file": (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "file", "file_id": "f"}}]}]},
    ),
    "chat file inside": ("chat", {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": PDF}}]}]}),
    "responses file inside": (
        "responses",
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_data": PDF}]}]},
    ),
    "messages picture inside": (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": "AAAA"}}]}]},
    ),
    "gemini file": ("gemini", {"contents": [{"role": "user", "parts": [{"fileData": {"fileUri": URL}}]}]}),
    "gemini picture inside": (
        "gemini",
        {"contents": [{"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]}]},
    ),
    "gemini embedded picture": (
        "gemini_embeddings",
        {"requests": [{"content": {"parts": [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]}}]},
    ),
    "messages search": (
        "messages",
        {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    ),
}  # fmt: skip
TEXTS = ["{0}", " {0}", "\n{0}\t", "  {0}  "]


def beyond(form: str, body: str) -> int:
    """What the bound counts beyond the bytes."""
    sent = body.encode()
    return CODECS[form].read(sent).prompt_bytes - len(sent)


def spelled(value: Any, escaped: Any, space: str) -> str:
    """JSON with characters of its texts written as escapes, and space around its marks."""
    if isinstance(value, dict):
        pairs = (
            f"{spelled(name, escaped, space)}{space}:{space}{spelled(each, escaped, space)}"
            for name, each in value.items()
        )
        return f"{{{space}{','.join(pairs)}{space}}}"
    if isinstance(value, list):
        return f"[{','.join(spelled(each, escaped, space) for each in value)}]"
    return '"' + "".join(f"\\u{ord(each):04{'xX'[escaped() - 1]}}" if escaped() else each for each in value) + '"'


@pytest.mark.parametrize("name", BODIES)
@given(st.data())
def test_escaped_names_do_not_lower_the_bound(name: str, data: st.DataObject) -> None:
    form, body = BODIES[name]
    plain = json.dumps(body)
    assert beyond(form, plain) >= 16_384
    often = data.draw(st.sampled_from([0, 1, 2]), label="escapes: none, all, some")
    ways = data.draw(st.integers(0, 3**600)) if often == 2 else 0

    def escaped() -> int:
        nonlocal ways
        ways, way = divmod(ways, 3)
        return way if often == 2 else often

    space = data.draw(st.sampled_from(["", " ", "  ", "\n\t "]))
    hidden = spelled(body, escaped, space)
    assert json.loads(hidden) == body
    assert beyond(form, hidden) == beyond(form, plain)


@pytest.mark.parametrize("form", ["chat", "messages"])
@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "caf\u00e9 \u4e2d\u6587 \U0001f600",
        "a \\u005f that is text: \\u0022image\\u005furl\\u0022",
        '"image_url"',
    ],
)
def test_text_that_mentions_images_is_no_image(form: str, text: str) -> None:
    body = {"messages": [{"role": "user", "content": text}]}
    for ascii_only in (True, False):
        assert beyond(form, json.dumps(body, ensure_ascii=ascii_only)) == 0


@pytest.mark.parametrize("form", ["chat", "messages"])
def test_escaped_quotes_in_text_are_handled(form: str) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "the ?file_id?, and: ?type?: ?url?"}]})
    assert beyond(form, body.replace("?", "\\u0022")) == 0
