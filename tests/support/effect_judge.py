"""The rules of the effect storm. Each yields its violations as sentences; the vendor's record is the truth."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Found = Iterator[str]
SETTLED = frozenset({"committed", "failed", "rejected"})


@dataclass
class EffectRecord:
    """An effect as the product knows it. `vendor_key`: the key that the vendor received. `events`: its own, in order."""

    effect_id: str
    effect_key: str
    job_id: str
    tool: str
    subject: str
    state: str
    provider_id: str | None
    over_http: bool
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def vendor_key(self) -> str:
        return self.effect_id if self.over_http else self.effect_key


@dataclass
class EffectEvidence:
    """`subjects`: everything that was wanted. `ended`: what each program or job said of each of them, as a word; "" if it never
    ended. `inbox`: the pending cards before anybody decided, as the command line shows them; `unknown_then`: the ids of the
    effects that were unknown at that moment. `receipts`: the entries of all receipts. `stopped`: processes that stood still.
    """

    subjects: list[str]
    effects: list[EffectRecord]
    arrivals: list[dict[str, Any]]
    deeds: list[dict[str, Any]]
    ended: dict[str, str]
    inbox: list[dict[str, Any]]
    unknown_then: set[str]
    receipts: list[dict[str, Any]]
    stopped: set[int] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)


def _account(subject: str) -> str:
    return subject.rpartition("/")[2]


def _by_subject(evidence: EffectEvidence) -> dict[str, list[EffectRecord]]:
    found: dict[str, list[EffectRecord]] = defaultdict(list)
    for effect in evidence.effects:
        found[effect.subject].append(effect)
    return found


def nothing_went_wrong_on_the_way(evidence: EffectEvidence) -> Found:
    yield from evidence.faults


def nothing_is_done_twice(evidence: EffectEvidence) -> Found:
    """A second deed is excused only by a process that stood still between its claim and its call, and only if it is told."""
    deeds = Counter(deed["subject"] for deed in evidence.deeds)
    by_subject = _by_subject(evidence)
    for subject, count in deeds.items():
        if count < 2:
            continue
        callers = {deed["caller"] for deed in evidence.deeds if deed["subject"] == subject}
        effects = by_subject[subject]
        told = any(name == "tool_duplicated" for effect in effects for name, _ in effect.events)
        in_process = not any(effect.over_http for effect in effects)
        if not (in_process and callers & evidence.stopped):
            yield f"{subject} was done {count} times, by {callers}"
        elif not told and len(callers & evidence.stopped) < len(callers):
            yield f"{subject} was done {count} times by {callers}, and nobody was told"


def nothing_is_repeated_blindly(evidence: EffectEvidence) -> Found:
    """A call follows another one only if that one was found not to be done, or if the vendor ignores a repeated key."""
    for effect in evidence.effects:
        is_open = False
        for name, facts in effect.events:
            if name == "tool_called":
                if is_open and effect.tool != "keyed":
                    yield f"{effect.subject} was called again while its outcome was unknown"
                is_open = True
            elif name == "tool_failed" or (
                name == "tool_succeeded" and not (facts.get("detail") or {}).get("replayed")
            ):
                is_open = False
    calls = Counter[str]()
    for effect in evidence.effects:
        calls[effect.vendor_key] += sum(name == "tool_called" for name, _ in effect.events)
    arrived = Counter(arrival["key"] for arrival in evidence.arrivals if _account(arrival["subject"]) != "keyed")
    for key, count in arrived.items():
        if count > calls[key]:
            yield f"the vendor was asked {count} times under {key}, of {calls[key]} recorded calls"


def every_arrival_has_a_claim(evidence: EffectEvidence) -> Found:
    known = {effect.vendor_key for effect in evidence.effects}
    for arrival in evidence.arrivals:
        if arrival["key"] not in known:
            yield f"{arrival['subject']} reached the vendor under {arrival['key']}, which nobody claimed"


def one_intention_is_one_effect(evidence: EffectEvidence) -> Found:
    by_subject = _by_subject(evidence)
    for subject in evidence.subjects:
        if len(by_subject[subject]) != 1:
            yield f"{subject} is {len(by_subject[subject])} effects"


def every_unknown_is_in_the_inbox(evidence: EffectEvidence) -> Found:
    """At the moment when all processes rested, and nobody had decided anything. A job that killed one worker after the other is
    a card of its own: its status checks run once it runs again."""
    asked = {card["effect_id"] for card in evidence.inbox}
    held = {card["job_id"] for card in evidence.inbox if card["kind"] == "code"}
    for effect in evidence.effects:
        if effect.effect_id in evidence.unknown_then - asked and effect.job_id not in held:
            yield f"{effect.subject} was unknown, and the inbox had no card for it"
    cards = Counter(card["effect_id"] for card in evidence.inbox if card["kind"] == "quarantine")
    for effect_id, count in cards.items():
        if count > 1:
            yield f"{effect_id} has {count} cards"
        if effect_id not in evidence.unknown_then:
            yield f"{effect_id} has a card, and its outcome is known"


def every_effect_is_settled(evidence: EffectEvidence) -> Found:
    """Nothing is lost: at the end each is committed, failed or rejected, and its program has ended."""
    for effect in evidence.effects:
        if effect.state not in SETTLED:
            yield f"{effect.subject} is {effect.state} at the end"
    for subject in evidence.subjects:
        if not evidence.ended.get(subject):
            yield f"{subject}: its program never came to an end"


def states_agree_with_the_vendor(evidence: EffectEvidence) -> Found:
    """What is committed was done, or the vendor lied; what is not committed was not done."""
    ids: dict[str, set[str]] = defaultdict(set)
    for deed in evidence.deeds:
        ids[deed["key"]].add(deed["id"])
    said: dict[str, set[str]] = defaultdict(set)
    for arrival in evidence.arrivals:
        said[arrival["key"]].add(str(arrival["said"]))
    for effect in evidence.effects:
        key = effect.vendor_key
        if effect.state == "committed" and effect.provider_id not in ids[key] | said[key]:
            yield f"{effect.subject} is committed as {effect.provider_id}; the vendor knows {ids[key] or 'nothing'}"
        if effect.state != "committed" and ids[key]:
            yield f"{effect.subject} is {effect.state}, and was done as {ids[key]}"
        word = evidence.ended.get(effect.subject)
        if word and (word == "done") != (effect.state == "committed"):
            yield f"{effect.subject} is {effect.state}, and its program was told {word!r}"


def receipts_agree(evidence: EffectEvidence) -> Found:
    """The receipt shows every effect once, in its state, and says how it is known."""
    shown: dict[str, list[dict[str, object]]] = defaultdict(list)
    for entry in evidence.receipts:
        shown[str(entry["effect_id"])].append(entry)
    for effect in evidence.effects:
        entries = shown[effect.effect_id]
        if len(entries) != 1:
            yield f"{effect.subject} stands {len(entries)} times in receipts"
            continue
        (entry,) = entries
        if (entry["state"], entry["provider_id"]) != (effect.state, effect.provider_id):
            yield f"the receipt says {entry['state']} {entry['provider_id']} of {effect.subject}: {effect.state}"
        expected = {"reported", "confirmed"} if effect.over_http else {"executed", "confirmed"}
        if effect.state == "committed" and entry["found_by"] not in expected:
            yield f"the receipt says {entry['found_by']} of {effect.subject}"


RULES: list[Callable[[EffectEvidence], Found]] = [
    nothing_went_wrong_on_the_way,
    nothing_is_done_twice,
    nothing_is_repeated_blindly,
    every_arrival_has_a_claim,
    one_intention_is_one_effect,
    every_unknown_is_in_the_inbox,
    every_effect_is_settled,
    states_agree_with_the_vendor,
    receipts_agree,
]


def broken_rules(evidence: EffectEvidence) -> list[str]:
    """Everything that is wrong, each with the name of its rule."""
    return [f"{rule.__name__}: {what}" for rule in RULES for what in rule(evidence)]
