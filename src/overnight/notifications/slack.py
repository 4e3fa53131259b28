"""Messages in the JSON of Slack's incoming webhooks, which Mattermost and others read too.

Texts of others stand in `plain_text` objects, in which Slack reads no mrkdwn, and `&<>` are escaped, so that a text cannot
mention a channel or show a link as another.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .messages import Message, readable_detail
from .texts import one_line, plain, shortened

MAX_TEXT, MAX_HEADER, MAX_URL = 3000, 150, 3000
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def slack_body(message: Message) -> bytes:
    """The payload: a header, the question, the arguments, and what to do."""
    blocks: list[dict[str, Any]] = [{"type": "header", "text": _plain_text(_header(message), MAX_HEADER)}]
    for text in (message.question, readable_detail(message.detail)):
        if text:
            blocks.append({"type": "section", "text": _plain_text(text, MAX_TEXT)})
    facts = "\n".join(f"{name}: {value}" for name, value in message.facts)
    blocks.append({"type": "section", "text": _plain_text(facts, MAX_TEXT)})
    if message.link:
        # The one mrkdwn text: it has no text of others.
        label = "Open the card to answer" if message.can_decide else "Open the card"
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": f"<{escape(message.link)}|{label}>"}})
    if not message.can_decide:
        blocks.append({"type": "section", "text": _plain_text(message.how_to_answer, MAX_TEXT)})
    payload = {
        "text": escape(_header(message)),  # for notifications and screen readers
        "mrkdwn": False,
        "blocks": blocks,
        "unfurl_links": False,  # a preview would open the link
        "unfurl_media": False,
    }
    return msgspec.json.encode(payload)


def escape(text: str) -> str:
    """Replace the characters with which Slack marks links and mentions."""
    return "".join(_ENTITIES.get(character, character) for character in text)


def _header(message: Message) -> str:
    return one_line(f"Overnight: {message.subject}", 140)


def _plain_text(text: str, most: int) -> dict[str, Any]:
    return {"type": "plain_text", "text": escape_within(plain(text), most), "emoji": False}


def escape_within(text: str, most: int) -> str:
    """The escaped text with at most `most` characters; no entity is cut."""
    escaped = escape(text)
    if len(escaped) <= most:
        return escaped
    note = "… (cut; the card has the rest)"
    room, pieces = most - len(note), list[str]()
    for character in shortened(text, most, ""):
        piece = _ENTITIES.get(character, character)
        room -= len(piece)
        if room < 0:
            break
        pieces.append(piece)
    return "".join(pieces) + note
