"""The person of the demo: scripted answers to its reviews. They look at what a person would look at."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from overnight.domain import Conflict
from overnight.jobs import Decision, Operations
from overnight.reviews import ReviewRow, list_reviews
from overnight.store import Store

from .payments import refunds_in

NAME: Final = "shopkeeper (scripted)"
THINKS_S: Final = 0.3


async def answer_reviews(store: Store, job_id: str, payments: Path, say: Callable[[str], None]) -> None:
    """Answer the reviews of a job as they come, until cancelled."""
    operations = Operations(store)
    while True:
        for review in await list_reviews(store, job_id=job_id):
            decision, words = decided(review, payments)
            await asyncio.sleep(THINKS_S)
            try:
                await operations.decide(review.review_id, decision)
            except Conflict:
                continue  # it has ended meanwhile
            say(f"{NAME}: {words}")
        await asyncio.sleep(0.1)


def decided(review: ReviewRow, payments: Path) -> tuple[Decision, str]:
    """The answer, and what it is in words: approve what is asked for; of an unknown refund, look whether it was made."""
    detail: dict[str, Any] = msgspec.json.decode(review.detail)
    if review.kind != "quarantine":
        return Decision("approve", NAME, note="the bank shows two payments"), f"approves “{review.question}”"
    order = (detail.get("arguments") or {}).get("order", "")
    made = [refund for refund in refunds_in(payments) if refund["order"] == order]
    if not made:
        return Decision("not_done", NAME), f"finds no refund of {order} at the payment provider: not done"
    answer = Decision("done", NAME, provider_id=made[0]["id"], result=msgspec.json.encode(made[0]["id"]))
    return answer, f"finds refund {made[0]['id']} of {order} at the payment provider: done"
