"""The demo's job: read a mailbox, classify each mail with a cheap model, draft replies with a strong one, send and file them.

This is ordinary job code that survives `kill -9`. After a crash, recorded results of steps and model calls are replayed.
`send_reply` and `refund` are effects, so no customer receives two replies or two refunds.
"""

import asyncio
import hashlib
import re
from datetime import datetime
from pathlib import Path

import msgspec

import overnight

from .incoming import IncomingMail
from .maildir import file_into, find_by_message_id, read_maildir
from .payments import pay_back
from .reply import SHOP_ADDRESS, compose_reply, unanswerable
from .smtp_send import NotSent, SendDeferred, SendRefused, send_mail

LANES = 4
APPROVED_FROM_GBP = 100.0
ORDER = re.compile(r"TT-\d{4,8}")
MAX_TEXT = 6_000


class Desk(msgspec.Struct, frozen=True):
    """The inbox, the mail server, the mailbox for the status check, and the file of the payment provider."""

    maildir: str
    smtp_host: str
    smtp_port: int
    received: str
    payments: str
    limit: int = 500


class Verdict(msgspec.Struct, frozen=True):
    """The classification of a mail by the cheap model."""

    category: str = "other"
    answer: bool = False
    reason: str = ""
    order: str = ""
    refund_gbp: float = 0.0


class Outcome(msgspec.Struct, frozen=True):
    """The outcome for a mail."""

    key: str
    category: str
    answered: bool
    why: str


@overnight.step
async def read_prompts() -> dict[str, str]:
    from overnight.brain import load_brain

    brain = load_brain(Path(__file__).with_name("brain"))
    return {name: prompt.text for name, prompt in brain.prompts.items()}


@overnight.step
async def read_inbox(maildir: str, limit: int) -> list[IncomingMail]:
    mails = await asyncio.to_thread(read_maildir, maildir, limit=limit)
    return [msgspec.structs.replace(mail, text=mail.text[:MAX_TEXT]) for mail in mails]


@overnight.step
async def file_away(maildir: str, key: str, folder: str) -> bool:
    return await asyncio.to_thread(file_into, maildir, key, folder)


def message_id_of(mail_key: str, idempotency_key: str) -> str:
    """The Message-ID of the reply to a mail. It is the same for every attempt, so the status check can search for it."""
    mail = hashlib.sha256(mail_key.encode()).hexdigest()[:16]
    return f"<reply.{mail}.{hashlib.sha256(idempotency_key.encode()).hexdigest()[:16]}@tallowandtide.test>"


@overnight.effect(not_done=(NotSent, SendDeferred, SendRefused), timeout_s=60, settle_after_s=1.0)
def send_reply(desk: Desk, mail: IncomingMail, body: str, sent_at: datetime, idempotency_key: str) -> overnight.Done:
    """Send over SMTP. A connection lost after the transfer leaves the outcome unknown; see the status check."""
    message_id = message_id_of(mail.key, idempotency_key)
    reply = compose_reply(mail, body, message_id, sent_at=sent_at)
    answer = send_mail(desk.smtp_host, desk.smtp_port, reply, SHOP_ADDRESS, [mail.sender])
    return overnight.Done(message_id, answer)


@send_reply.status_check
def find_reply(desk: Desk, mail: IncomingMail, idempotency_key: str, **_: object) -> object:
    """Look for the Message-ID in the receiving mailbox, in place of the API of a mail provider: SMTP has no status query."""
    message_id = message_id_of(mail.key, idempotency_key)
    found = find_by_message_id(desk.received, message_id)
    return overnight.Done(message_id, f"found as {found}") if found else overnight.NOT_DONE


@overnight.effect(timeout_s=30)
def refund(desk: Desk, order: str, gbp: float, idempotency_key: str) -> overnight.Done:
    """Pay back one payment. The provider has no status query, so a person decides about an unknown outcome."""
    refund_id = pay_back(Path(desk.payments), order, gbp, idempotency_key)
    return overnight.Done(refund_id, refund_id)


async def pay_twofold_payment_back(desk: Desk, verdict: Verdict) -> str:
    """Refund an order that was paid twice; a large one only with a person's approval. Returns what was done."""
    if verdict.refund_gbp > APPROVED_FROM_GBP:
        question = f"Refund order {verdict.order} with £{verdict.refund_gbp:.2f}?"
        if not (await overnight.approval(question, order=verdict.order, gbp=verdict.refund_gbp)).approved:
            return f"the refund of order {verdict.order} was not approved"
    await refund(desk, verdict.order, verdict.refund_gbp)
    return f"refunded order {verdict.order}"


def prompt_of(mail: IncomingMail) -> str:
    return f"Mail-Key: {mail.key}\nFrom: {mail.sender}\nSubject: {mail.subject}\n\n{mail.text}"


async def classify(prompts: dict[str, str], mail: IncomingMail) -> Verdict:
    said = [{"role": "system", "content": prompts["classify"]}, {"role": "user", "content": prompt_of(mail)}]
    answer = await overnight.chat(said, task="classify")
    text = answer.text.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
    try:
        return msgspec.json.decode(text, type=Verdict)
    except msgspec.DecodeError:
        return Verdict(reason="the response of the model was not the requested JSON")


async def draft(prompts: dict[str, str], mail: IncomingMail, verdict: Verdict) -> str:
    said = [
        {"role": "system", "content": prompts["draft"]},
        {"role": "user", "content": f"Category: {verdict.category}\n{prompt_of(mail)}"},
    ]
    return (await overnight.chat(said, task="draft")).text


async def handle(desk: Desk, prompts: dict[str, str], mail: IncomingMail) -> Outcome:
    overnight.about(mail.key)
    verdict = await classify(prompts, mail)
    forbidden = unanswerable(mail)
    answered, why = False, forbidden or verdict.reason
    if verdict.refund_gbp > 0 and ORDER.fullmatch(verdict.order) and not forbidden:
        why = await pay_twofold_payment_back(desk, verdict)
    if verdict.answer and not forbidden:
        body = await draft(prompts, mail, verdict)
        if body.strip():
            await send_reply(desk, mail, body, overnight.now())
            answered = True
        else:
            why = "the draft was empty"
    await file_away(desk.maildir, mail.key, "Answered" if answered else verdict.category.capitalize())
    return Outcome(mail.key, verdict.category, answered, why)


@overnight.job(name="inbox_triage", agent="inbox-triage")
async def triage(desk: Desk) -> list[Outcome]:
    """Handle every mail of the inbox with a few concurrent branches."""
    prompts = await read_prompts()
    mails = await read_inbox(desk.maildir, desk.limit)
    outcomes: list[Outcome] = []

    async def lane(number: int) -> None:
        for mail in mails[number::LANES]:
            outcomes.append(await handle(desk, prompts, mail))

    await asyncio.gather(*(lane(number) for number in range(LANES)))
    return sorted(outcomes, key=lambda outcome: outcome.key)
