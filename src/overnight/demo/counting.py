"""The demo's proof: counts from the receiving mailbox and the provider, independent of Overnight's records."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from overnight.domain import Recorded

from .maildir import count_by_message_id
from .triage import message_id_of


class Mailbox(msgspec.Struct, frozen=True):
    """Counts of the receiving mailbox: all replies, and duplicate, missing and unexpected ones."""

    sent: int
    duplicates: int
    missing: int
    unexpected: int


def count_mailbox(received: Path, expected: Collection[str]) -> Mailbox:
    """Count the replies per mail. `expected` are the keys of the mails that must have exactly one reply."""
    per_mail: Counter[str] = Counter()
    for message_id, count in count_by_message_id(received).items():
        per_mail[message_id.split(".")[1] if message_id.startswith("<reply.") else message_id] += count
    wanted = {message_id_of(key, "").split(".")[1] for key in expected}
    return Mailbox(
        sent=sum(per_mail.values()),
        duplicates=sum(count - 1 for count in per_mail.values()),
        missing=len(wanted - set(per_mail)),
        unexpected=len(set(per_mail) - wanted),
    )


class Calls(msgspec.Struct, frozen=True):
    """Model calls: paid at the provider; repeated after a kill during the first; replayed from the log."""

    paid: int
    lost: int
    replayed: int


def count_calls(provider_calls: Iterable[Mapping[str, Any]] | None, events: list[Recorded]) -> Calls:
    """Count model calls. `provider_calls` are the counts of the scripted provider; None: count in the ledger."""
    replayed = recorded = paid_here = lost_here = 0
    for event in events:
        name = event.facts.event
        recorded += name == "model_succeeded"
        paid_here += name == "model_succeeded"
        lost_here += name == "model_lost"
        if name == "resumed":
            replayed += recorded
    if provider_calls is None:
        return Calls(paid_here + lost_here, lost_here, replayed)
    paid = [int(call["paid"]) for call in provider_calls]
    return Calls(sum(paid), sum(count - 1 for count in paid if count > 1), replayed)
