"""The pages of one-time links: plain HTML without scripts, every text escaped."""

from __future__ import annotations

import base64
import hashlib
from html import escape

from overnight.domain import iso_utc
from overnight.reviews import choices_of, given_answer

from .links import MAX_NOTE, LinkView
from .messages import readable_detail
from .texts import one_line, plain

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
    "pre{background:#f4f4f4;padding:.8rem;overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere}"
    "dt{font-weight:600}dd{margin:0 0 .5rem}label{display:block;margin:.4rem 0}textarea{width:100%}"
    "button{font:inherit;padding:.4rem 1.2rem;margin-top:.8rem}"
)
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS: list[tuple[bytes, bytes]] = [
    (b"content-type", b"text/html; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # Not `no-referrer`, with which browsers send forms with `Origin: null`. It tells other sites nothing either.
    (b"referrer-policy", b"same-origin"),
    (b"x-robots-tag", b"noindex, nofollow, noarchive"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (
        b"content-security-policy",
        f"default-src 'none'; style-src 'sha256-{_DIGEST}'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'".encode(),
    ),
]
_ENDED = {
    "expired": "This link or its review has expired. An expired review is no rejection: it can be renewed.",
    "superseded": "This review does not apply any more: its job ended, or another review replaced it.",
    "stale": "The review has changed since this link was made. Look for a newer message.",
}


def link_page(view: LinkView, *, notice: str = "") -> bytes:
    """The card of a review. An open one has a form; of an ended one only its end is shown.

    `notice`: a problem of the last answer.
    """
    review = view.review
    parts = [f"<p role=alert><strong>{_text(notice)}</strong></p>"] if notice else []
    if view.state in _ENDED:
        return _page("Review closed", [*parts, f"<p>{_ENDED[view.state]}</p>"])
    if view.state == "decided":
        return _page("Review decided", [*parts, _decided(view)])
    detail = readable_detail(review.detail)
    parts.append(f"<p>{_text(review.question).replace(chr(10), '<br>')}</p>")
    if detail:
        parts.append(f"<pre>{_text(detail)}</pre>")
    facts = [("Kind", review.kind), ("Job", review.job_id), ("Review", review.review_id)]
    facts.append(("Requested", iso_utc(review.requested_at)))
    if review.expires_at is not None:
        facts.append(("Answer until", iso_utc(review.expires_at)))
    parts.append("<dl>" + "".join(f"<dt>{name}</dt><dd>{_text(value)}</dd>" for name, value in facts) + "</dl>")
    parts.append(_form(view) if view.state == "open" else _key_needed(view))
    return _page("Review", parts)


def problem_page(title: str, text: str) -> bytes:
    """A page without a review."""
    return _page(title, [f"<p>{_text(text)}</p>"])


def _form(view: LinkView) -> str:
    # No answer is selected before: a program that presses the button of each form sends nothing.
    choices = "".join(
        f"<label><input type=radio name=answer value={_quoted(verb)} required> "
        f"<strong>{_text(verb)}</strong>: {_text(what)}</label>"
        for verb, what in view.answers.items()
    )
    text = _text_field(view) if "answer" in view.answers else ""
    return (
        '<form method=post action="" autocomplete=off>'
        f"<input type=hidden name=digest value={_quoted(view.review.digest)}>"
        f"<fieldset><legend>Your answer</legend>{choices}</fieldset>{text}"
        "<label>Note (optional), which the job's timeline shows"
        f"<textarea name=note rows=2 maxlength={MAX_NOTE}></textarea></label>"
        "<button type=submit>Send the answer</button></form>"
    )


def _text_field(view: LinkView) -> str:
    if not (choices := choices_of(view.review)):
        return f"<label>Text of the answer<textarea name=text rows=4 maxlength={MAX_NOTE}></textarea></label>"
    options = "".join(f'<option value="{escape(each)}">{_text(each)}</option>' for each in choices)
    return f'<label>Text of the answer <select name=text><option value="">choose…</option>{options}</select></label>'


def _key_needed(view: LinkView) -> str:
    review_id = _text(view.review.review_id)
    return (
        "<p>This link shows the review; it cannot decide it. To answer, use an API key with the scope reviews.decide:</p>"
        f"<pre>POST /api/v1/reviews/{review_id}/decide</pre>"
        "<p>or run <code>overnight reviews</code> on the machine of the ledger.</p>"
    )


def _decided(view: LinkView) -> str:
    review = view.review
    at = f" at {iso_utc(review.decided_at)}" if review.decided_at is not None else ""
    given = given_answer(review)
    verb = given.answer if given is not None else review.state
    return f"<p>Answered: <strong>{_text(verb)}</strong> by {_text(review.decided_by or 'the job')}{at}.</p>"


def _page(title: str, parts: list[str]) -> bytes:
    head = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<meta name=robots content=noindex><title>{title} · Overnight</title><style>{_STYLE}</style>"
    )
    return f"{head}<body><main><h1>{title}</h1>{''.join(parts)}</main></body></html>".encode("utf-8", "replace")


def _text(value: str) -> str:
    return escape(plain(value))


def _quoted(value: str) -> str:
    return f'"{escape(one_line(value, 200))}"'
