"""`/reviews/{token}`: the pages of one-time links. GET shows a review, and only POST decides it.

The token in the path is the key. It is unguessable, so that no other site can send the form; the origin of the form is compared
too. The guard of loopback does not apply: it is for requests without a key, and links have the address that clients use.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from overnight.domain import BadInput, Conflict, Forbidden, NotFound, OvernightError
from overnight.gateway import HttpResponse
from overnight.http_server import Headers
from overnight.ledger import Ledger
from overnight.notifications import LinkAnswer, ReviewLinks, link_page, problem_page
from overnight.notifications.link_pages import HEADERS
from overnight.notifications.links import MAX_NOTE

from .body_memory import BodyMemory
from .requests import Request, read_body

PREFIX = "/reviews/"
MAX_BODY = 32 * 1024
_FORM = b"application/x-www-form-urlencoded"
_UNKNOWN = "This link is unknown. It may have been copied in part, or its address was removed."


class ReviewLinksApi:
    """Serves the pages. `public_url` is where people reach them."""

    def __init__(self, ledger: Ledger, public_url: str, memory: BodyMemory) -> None:
        self._links, self._memory = ReviewLinks(ledger.store), memory
        parts = urlsplit(public_url)
        self._origin = f"{parts.scheme}://{parts.netloc}".lower().encode() if public_url else b""

    async def answer(self, request: Request) -> HttpResponse:
        """The page of the link. Raises StoreUnavailable, BodyTooLarge, ClientLeft."""
        token = request.names[0]
        try:
            if request.method == "POST":
                return await self._decide(request, token)
            return _html(200, link_page(await self._links.view(token)))
        except NotFound:
            return _html(404, problem_page("Link not found", _UNKNOWN))

    async def _decide(self, request: Request, token: str) -> HttpResponse:
        problem = self._foreign_form(request.headers)
        if problem is not None:
            return _html(403, problem_page("Refused", problem))
        with self._memory.holding(None) as count:
            body = await read_body(request.receive, MAX_BODY, request.headers, count)
        try:
            view = await self._links.decide(token, _answer_of(body))
        except NotFound:
            raise
        except BadInput as error:
            return _html(400, link_page(await self._links.view(token), notice=str(error)))
        except (Conflict, Forbidden) as error:
            return _html(409, link_page(await self._links.view(token), notice=str(error)))
        return _html(200, link_page(view))

    def _foreign_form(self, headers: Headers) -> str | None:
        """The reason why a form is not that of our page; None if it is."""
        host = next((value.lower() for name, value in headers if name == b"host"), b"")
        for name, value in headers:
            if name == b"content-type" and value.partition(b";")[0].strip().lower() != _FORM:
                return "The form has another content type than that of the page."
            if name == b"origin" and value.lower() != self._origin and value.lower().partition(b"://")[2] != host:
                return "The form was sent from another site. Open the link itself."
            if name == b"sec-fetch-site" and value not in (b"same-origin", b"none"):
                return "The form was sent from another site. Open the link itself."
        return None


def is_link_path(path: str) -> bool:
    return path.startswith(PREFIX)


def link_problem(error: OvernightError) -> HttpResponse:
    """The page for an error of Overnight."""
    status = 413 if "exceeds" in str(error) else 503
    return _html(status, problem_page("Not available", str(error)))


def _answer_of(body: bytes) -> LinkAnswer:
    """The fields of the form. Raises BadInput."""
    try:
        fields = dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, strict_parsing=True, max_num_fields=8))
    except (ValueError, UnicodeDecodeError):
        raise BadInput("the form could not be read; send it again") from None
    note, text = fields.get("note", "").strip(), fields.get("text", "").strip()
    for value in (note, text):
        if len(value) > MAX_NOTE or "\0" in value:
            raise BadInput(f"note and text: at most {MAX_NOTE} characters, without NUL")
    answer = fields.get("answer", "")
    if answer == "answer" and not text:
        raise BadInput("text: the answer needs one")
    return LinkAnswer(answer=answer, digest=fields.get("digest", ""), note=note or None, text=text or None)


def _html(status: int, page: bytes) -> HttpResponse:
    return HttpResponse(status, list(HEADERS), page)
