"""One-time links: a random token that shows one review, and may decide it, until the review or the link ends.

Who has the link decides, so the answer is recorded as that of the address: `link:NAME`. The store holds digests of tokens only.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Any, Literal

import msgspec

from overnight.domain import BadInput, Conflict, NotFound
from overnight.jobs import Operations
from overnight.reviews import VERBS, Decision, ReviewRow, answers_of, public_state, read_review
from overnight.store import Store, Unit, records_of

from .commands import Locks
from .rows import LINK, SQL, AddressRow, LinkRow, options_of

TOKEN_BYTES = 32
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
FORM_ANSWERS = frozenset(VERBS) - {"edit"}
"""Answers that a form can give. An edit needs arguments that are checked, so it needs the API or the command line."""
MAX_NOTE = 2000
LinkState = Literal["open", "shown", "decided", "expired", "superseded", "stale"]


class LinkView(msgspec.Struct, frozen=True):
    """What a link shows.

    Attributes:
        state: open (it may decide), shown (only with a key), decided, expired, superseded, or stale (the review changed).
        answers: the answers that the form offers, and what each does.
    """

    state: LinkState
    review: ReviewRow
    address: AddressRow
    answers: dict[str, str]


class LinkAnswer(msgspec.Struct, frozen=True):
    """What the form sent. `digest` is that of the card which was shown."""

    answer: str
    digest: str
    note: str | None = None
    text: str | None = None


def new_token() -> str:
    return secrets.token_urlsafe(TOKEN_BYTES)


def token_digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def link_actor(address: AddressRow) -> str:
    """The actor of decisions by links of an address."""
    return f"link:{address.name}"


def may_decide(review: ReviewRow, address: AddressRow) -> bool:
    """Whether a link of the address may decide: the address permits it, and so does the rule of the review."""
    if options_of(address).links != "decide":
        return False
    deciders: list[str] = msgspec.json.decode(review.deciders) if review.deciders else []
    return not deciders or link_actor(address) in deciders


class ReviewLinks:
    """The links of a store."""

    def __init__(self, store: Store) -> None:
        self._store, self._operations = store, Operations(store)

    async def view(self, token: str) -> LinkView:
        """What the link shows now. Reading changes nothing, since programs that check mails open every link.

        Raises NotFound, for an unknown token and for one of a removed address.
        """
        _, view = await self._find(token)
        return view

    async def decide(self, token: str, given: LinkAnswer) -> LinkView:
        """Decide the review as the link's address. The same answer again changes nothing.

        Raises NotFound; BadInput for an answer that the form does not offer; Conflict if the link may not decide, or the review
        has another answer or another digest.
        """
        link, view = await self._find(token)
        if view.state not in ("open", "decided"):
            raise Conflict(_refusal(view))
        if given.digest != link.review_digest:
            raise Conflict(f"{view.review.review_id} is not the review that was shown; open the link again")
        if given.answer not in view.answers:
            raise BadInput(f"answer: expected one of {', '.join(view.answers) or 'none'}")
        decision = Decision(
            answer=given.answer,
            by=link_actor(view.address),
            note=given.note or None,
            text=given.text if given.answer == "answer" else None,
            digest=given.digest,
            tenant_id=link.tenant_id,
        )
        await self._operations.decide(link.review_id, decision)
        await self._store.commit(MarkAnswered(link.token_digest))
        return await self.view(token)

    async def _find(self, token: str) -> tuple[LinkRow, LinkView]:
        if not _TOKEN.fullmatch(token):
            raise NotFound("this link")
        rows = await self._store.read(SQL["read_link"], {"token_digest": token_digest(token)})
        if not rows:
            raise NotFound("this link")
        [link] = records_of(LinkRow, rows)
        [address] = records_of(AddressRow, await self._store.read(SQL["read_address"], {"address_id": link.address_id}))
        if address.state == "removed":
            raise NotFound("this link")
        review = await read_review(self._store, link.review_id)
        state = self._state(link, review, address)
        offered = {verb: what for verb, what in answers_of(review).items() if verb in FORM_ANSWERS}
        return link, LinkView(state, review, address, offered)

    def _state(self, link: LinkRow, review: ReviewRow, address: AddressRow) -> LinkState:
        public = public_state(review)
        now = self._store.clock()
        if public != "pending":
            return public
        if review.digest != link.review_digest:
            return "stale"
        if link.expires_at <= now or (review.expires_at is not None and review.expires_at <= now):
            return "expired"
        return "open" if may_decide(review, address) else "shown"


class MarkAnswered(msgspec.Struct):
    """Command: note that a link was used."""

    token_digest: bytes

    def locks(self) -> Locks:
        return [(LINK, self.token_digest)]

    def decide(self, unit: Unit) -> None:
        row = unit.get(LINK, self.token_digest)
        if row is not None and row.answered_at is None:
            row.answered_at = unit.now
            unit.change(LINK, row)


def _refusal(view: LinkView) -> str:
    """The reason why a link does not decide."""
    reasons: dict[Any, str] = {
        "shown": "this link only shows the review; decide it with a key",
        "expired": "this link or its review has expired",
        "superseded": "this review does not apply any more",
        "stale": "the review has changed since this link was made",
    }
    return f"{view.review.review_id}: {reasons[view.state]}"
