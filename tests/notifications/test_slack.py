"""Slack's JSON: texts of reviews mention nobody, show no link as another, and stay within the limits of blocks."""

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from machine_parts import examples
from overnight.notifications.messages import Message
from overnight.notifications.slack import MAX_HEADER, MAX_TEXT, slack_body
from overnight.store import Store
from receivers import PUBLIC_URL, add, ask, ended, receiver, sending

HOSTILE = "<!channel> <@U1> <https://evil.example|https://bank.example> *bold* `code` & \u202e"


def message(question: str, detail: Any = None, **more: Any) -> Message:
    fields: dict[str, Any] = {
        "message_id": "msg_1",
        "review_id": "rev_1",
        "tenant_id": "default",
        "job_id": "job_1",
        "kind": "approval",
        "question": question,
        "detail": json.dumps(detail or {}),
        "digest": "",
        "requested_at": 1_000_000,
        "expires_at": None,
        **more,
    }
    return Message(**fields)


async def test_review_is_posted_escaped(store: Store, tmp_path: Path) -> None:
    async with receiver() as hook:
        await add(store, tmp_path, name="night", kind="slack", url=hook.url)
        async with sending(store, tmp_path, public_url=PUBLIC_URL):
            await ask(store, HOSTILE, detail={"to": HOSTILE})
            await ended(store, tmp_path)
    [arrival] = hook.arrivals
    blocks = arrival.json["blocks"]
    plain = [each["text"]["text"] for each in blocks if each["text"]["type"] == "plain_text"]
    [link] = [each["text"]["text"] for each in blocks if each["text"]["type"] == "mrkdwn"]
    assert link.startswith(f"<{PUBLIC_URL}/reviews/")
    assert not any("<" in text or ">" in text for text in plain)
    assert "&lt;!channel&gt;" in plain[1]
    assert "<" not in arrival.json["text"]
    assert arrival.json["unfurl_links"] is False


@examples(60, 2000)
@given(st.text(max_size=5000), st.dictionaries(st.text(max_size=20), st.text(max_size=5000), max_size=3), st.booleans())
def test_blocks_stay_within_their_limits(question: str, detail: dict[str, str], has_link: bool) -> None:
    question = question.encode("utf-8", "replace").decode()
    payload = json.loads(slack_body(message(question, detail, link="https://o.example/reviews/x" if has_link else "")))
    assert 1 <= len(payload["blocks"]) <= 50
    for block in payload["blocks"]:
        text = block["text"]["text"]
        assert 1 <= len(text) <= (MAX_HEADER if block["type"] == "header" else MAX_TEXT)
        if block["text"]["type"] == "plain_text":
            rest = text.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "")
            assert not set(rest) & set("<>&"), "every entity is whole"


def test_long_texts_are_cut_with_a_note() -> None:
    payload = json.loads(slack_body(message("&" * 4000)))
    text = payload["blocks"][1]["text"]["text"]
    assert len(text) <= MAX_TEXT
    assert text.endswith("(cut; the card has the rest)")
