"""One-time links: reading decides nothing, a form decides once, and the page shows texts as texts."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from machine_parts import UnderJob
from overnight.jobs import Operations
from overnight.ledger import Ledger
from overnight.reviews import Decision, read_review, supersede_review
from overnight.store import Store
from overnight.testing import SpawnedProvider
from receivers import PUBLIC_URL, add, addresses_of, ask, ended, receiver, sending
from serving import Served, serving

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'><form action=https://evil.example>\u202e"
FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture
async def served(store: Store, provider: SpawnedProvider) -> AsyncIterator[Served]:
    async with serving(store, provider, public_url=PUBLIC_URL) as running:
        yield running


async def link_of(store: Store, folder: Path, review: Any = None, **address: Any) -> tuple[str, Any]:
    """The path of the link that an address got for a review."""
    async with receiver() as hook:
        await add(store, folder, **{"name": "ops", "kind": "webhook", "url": hook.url, **address})
        review = await ask(store, **(review or {}))
        async with sending(store, folder, public_url=PUBLIC_URL):
            await ended(store, folder)
    return hook.arrivals[0].json["data"]["link"].removeprefix(PUBLIC_URL), review


async def post(served: Served, path: str, headers: dict[str, str] | None = None, **fields: str) -> Any:
    return await served.http.post(path, data=fields, headers=headers)


async def test_only_the_form_decides_and_only_once(served: Served, tmp_path: Path) -> None:
    path, review = await link_of(served.store, tmp_path)
    for _ in range(3):  # programs that check mails open links, more than once
        assert (await served.http.head(path)).status_code == 200
        page = await served.http.get(path)
        assert (page.status_code, "Refund pay_8?" in page.text) == (200, True)
    assert (await read_review(served.store, review.review_id)).state == "open"
    assert "checked" not in page.text, "no answer is selected before"
    [digest] = re.findall(r'name=digest value="(\w+)"', page.text)

    assert (await post(served, path, answer="approve", digest="another")).status_code == 409
    assert (await post(served, path, answer="maybe", digest=digest)).status_code == 400
    assert (await post(served, path, digest=digest)).status_code == 400
    assert (await read_review(served.store, review.review_id)).state == "open"
    own = {"origin": PUBLIC_URL, "sec-fetch-site": "same-origin", **FORM}
    assert (await post(served, path, own, answer="approve", digest=digest, note="fine\r\nby me")).status_code == 200
    decided = await read_review(served.store, review.review_id)
    assert (decided.state, decided.decided_by, decided.note) == ("approved", "link:ops", "fine\r\nby me")
    assert (await post(served, path, answer="approve", digest=digest)).status_code == 200
    other = await post(served, path, answer="reject", digest=digest)
    assert (other.status_code, "already answered" in other.text) == (409, True)
    after = await served.http.get(path)
    assert "link:ops" in after.text
    assert "Refund pay_8?" not in after.text, "the card is shown only while it is open"
    events = [each.facts for each in await Ledger(served.store).events(review.job_id)]
    assert [each.actor for each in events if each.event == "review_decided"] == ["link:ops"]


async def test_page_is_plain_and_kept_nowhere(served: Served, tmp_path: Path) -> None:
    path, _ = await link_of(served.store, tmp_path, {"question": HOSTILE, "detail": {HOSTILE: HOSTILE}})
    page = await served.http.get(path)
    assert "<script" not in page.text
    assert "<img" not in page.text
    assert page.text.count("<form") == 1
    assert "\u202e" not in page.text
    assert "&lt;script&gt;" in page.text
    headers = page.headers
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "same-origin"
    assert "noindex" in headers["x-robots-tag"]
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"content-type": "text/plain"},
        {"content-type": "application/json"},
    ],
)
async def test_forms_of_other_sites_are_refused(served: Served, tmp_path: Path, headers: dict[str, str]) -> None:
    path, review = await link_of(served.store, tmp_path)
    answer = await post(served, path, {**FORM, **headers}, answer="approve", digest=review.digest)
    assert answer.status_code == 403
    assert (await read_review(served.store, review.review_id)).state == "open"


@pytest.mark.parametrize("token", ["A" * 43, "x", "%00", "A" * 5000, "a%2Fb", "é"])
async def test_unknown_links_are_not_found(served: Served, token: str) -> None:
    for answer in (
        await served.http.get(f"/reviews/{token}"),
        await post(served, f"/reviews/{token}", answer="approve"),
    ):
        assert answer.status_code in (400, 404)
    assert (await served.http.delete("/reviews/" + "A" * 43)).status_code == 405


async def test_link_shows_only_where_address_or_rule_says_so(served: Served, tmp_path: Path) -> None:
    path, review = await link_of(served.store, tmp_path, links="show")
    page = await served.http.get(path)
    assert ("<form" in page.text, "reviews.decide" in page.text) == (False, True)
    assert (await post(served, path, answer="approve", digest=review.digest)).status_code == 409
    assert (await read_review(served.store, review.review_id)).state == "open"


async def test_link_does_not_decide_what_its_rule_leaves_to_others(served: Served, tmp_path: Path) -> None:
    path, review = await link_of(served.store, tmp_path, {"deciders": ["cfo"]})
    assert "<form" not in (await served.http.get(path)).text
    assert (await post(served, path, answer="approve", digest=review.digest)).status_code == 409
    assert (await read_review(served.store, review.review_id)).state == "open"


async def test_link_ends_with_its_review_and_its_address(served: Served, tmp_path: Path) -> None:
    path, review = await link_of(served.store, tmp_path)
    store = served.store
    row = await read_review(store, review.review_id)

    def supersede(unit: Any, job: Any) -> None:
        supersede_review(unit, job, row, "arguments changed")

    await store.commit(UnderJob(review.job_id, supersede))
    assert "does not apply any more" in (await served.http.get(path)).text
    assert (await post(served, path, answer="approve", digest=review.digest)).status_code == 409
    await addresses_of(store, tmp_path).remove("ops", "default", "ann")
    assert (await served.http.get(path)).status_code == 404


async def test_decision_elsewhere_is_shown(served: Served, tmp_path: Path) -> None:
    path, review = await link_of(served.store, tmp_path)
    await Operations(served.store).decide(review.review_id, Decision("reject", "mia"))
    assert "by mia" in (await served.http.get(path)).text
    assert (await post(served, path, answer="approve", digest=review.digest)).status_code == 409


async def test_question_is_answered_with_a_text(served: Served, tmp_path: Path) -> None:
    asked = {"question": "Which?", "detail": {"answers": ["answer"], "choices": ["blue", "<red>"]}}
    path, review = await link_of(served.store, tmp_path, asked)
    page = await served.http.get(path)
    assert 'value="&lt;red&gt;"' in page.text
    assert (await post(served, path, answer="answer", digest=review.digest)).status_code == 400
    assert (await post(served, path, answer="answer", digest=review.digest, text="green")).status_code == 400
    assert (await post(served, path, answer="answer", digest=review.digest, text="<red>")).status_code == 200


async def test_link_without_form_of_an_edit(served: Served, tmp_path: Path) -> None:
    """An edit needs checked arguments: the form does not offer it."""
    path, review = await link_of(served.store, tmp_path, {"effect_key": "k"})
    assert 'value="edit"' not in (await served.http.get(path)).text
    assert (await post(served, path, answer="edit", digest=review.digest)).status_code == 400
