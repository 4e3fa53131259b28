"""The answers to reviews: which kinds permit which, what each does, and the decision of a person as data."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from overnight.domain import BadInput

from .rows import ReviewRow

Verb = Literal[
    "approve",
    "edit",
    "reject",
    "answer",
    "done",
    "not_done",
    "ack",
    "accept",
    "retry",
    "cancel",
    "continue",
    "stop",
    "good",
    "bad",
]
VERBS: tuple[str, ...] = get_args(Verb)

ANSWERS: dict[str, dict[str, str]] = {
    "approval": {
        "approve": "the effect is executed with these arguments",
        "edit": "the effect is executed with the arguments that you give; schema and rules are checked again",
        "reject": "the effect is not executed; the agent reads your note as the reason",
        "answer": "the effect is not executed; the agent receives your text as its result",
    },
    "question": {
        "approve": "the job continues, with a yes",
        "reject": "the job continues, with a no and your note",
    },
    "quarantine": {
        "done": "the effect is recorded as done, with the provider's id and the result that you give",
        "not_done": "the effect is recorded as not done, and may be executed again",
        "reject": "the effect is not executed again; the agent reads your note as the reason",
    },
    "duplicate": {"ack": "the second execution is acknowledged; nothing is undone"},
    "drift": {
        "accept": "the agent receives the result as it is",
        "reject": "the agent receives an error; the effect stays done",
    },
    "manifest": {
        "accept": "the changed tools may be used",
        "reject": "the changed tools stay held",
    },
    "divergence": {
        "retry": "the job runs again, after its code was corrected",
        "cancel": "the job and its child jobs are cancelled",
    },
    "code": {
        "retry": "the job runs again, after its cause was repaired",
        "cancel": "the job and its child jobs are cancelled",
    },
    "budget": {
        "continue": "the job checks its budget again; amounts that you give are added to it before",
        "stop": "the job and its child jobs are cancelled",
    },
    "loop": {
        "continue": "the job continues, and its calls are counted from zero",
        "stop": "further model calls of this attempt fail",
    },
    "sample": {"good": "recorded as good", "bad": "recorded as bad"},
}
"""What each answer does, by kind of review. An approval without an effect has the answers of `question`."""

_ASKED = {"answer": "the job continues, with your text"}
"""Of a question whose answer is a text."""

KINDS = tuple(kind for kind in ANSWERS if kind != "question")
NO = frozenset({"reject", "cancel", "stop"})
"""Answers that are kept even if they come late: they permit nothing."""

_YES = frozenset({"approve", "edit", "done", "not_done", "accept", "retry", "continue"})
_SYNONYMS: dict[str, dict[str, str]] = {
    "divergence": {"approve": "retry", "reject": "cancel"},
    "code": {"approve": "retry", "reject": "cancel"},
    "budget": {"approve": "continue", "reject": "stop"},
    "loop": {"approve": "continue", "reject": "stop"},
    "drift": {"approve": "accept"},
    "manifest": {"approve": "accept"},
    "duplicate": {"approve": "ack"},
    "sample": {"approve": "good", "reject": "bad"},
}
"""`approve` and `reject` on the command line, for the answers of these kinds."""

PublicState = Literal["pending", "decided", "expired", "superseded"]
_PUBLIC: dict[str, PublicState] = {
    "open": "pending",
    "approved": "decided",
    "rejected": "decided",
    "answered": "decided",
    "expired": "expired",
    "superseded": "superseded",
    "withdrawn": "superseded",
}
STORED: dict[str, tuple[str, ...]] = {
    shown: tuple(stored for stored, each in _PUBLIC.items() if each == shown)
    for shown in dict.fromkeys(_PUBLIC.values())
}
"""The stored states of each public one."""


class Amounts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What `continue` adds to the budget of a review. Money is in micro-dollars."""

    microusd: int = 0
    tokens: int = 0
    calls: int = 0
    tool_calls: int = 0
    seconds: int = 0


class Decision(msgspec.Struct, frozen=True):
    """The decision of a person on a review.

    Fields:
        answer: the verb. by: who decides. note: the reason, which agents and timelines show.
        arguments: of `edit`, JSON. text: of `answer`.
        provider_id, result (JSON): of `done`.
        amounts: of `continue`, for a budget.
        digest: that of the card which was shown; another one is stale. None: not compared.
        tenant_id: reviews of other tenants are not found. key_id: the API key of the request.
    """

    answer: str
    by: str
    note: str | None = None
    arguments: bytes | None = None
    text: str | None = None
    provider_id: str | None = None
    result: bytes | None = None
    amounts: Amounts | None = None
    digest: str | None = None
    tenant_id: str = ""
    key_id: str | None = None


class GivenAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer as the row keeps it, in `ReviewRow.answer`."""

    answer: str
    arguments: msgspec.Raw = msgspec.Raw(b"")
    text: str | None = None
    provider_id: str | None = None
    result: msgspec.Raw = msgspec.Raw(b"")
    amounts: Amounts | None = None
    key_id: str | None = None


def public_state(row: ReviewRow) -> PublicState:
    """The state as JSON and the command line show it."""
    return _PUBLIC.get(row.state, "superseded")


def answers_of(row: ReviewRow) -> dict[str, str]:
    """The answers that a review permits, and what each does."""
    question = row.kind == "approval" and row.effect_key is None
    known = ANSWERS.get("question" if question else row.kind, {})
    listed = msgspec.json.decode(row.detail).get("answers") if row.detail else None
    if not isinstance(listed, list):
        return known
    every = {**ANSWERS["question"], **ANSWERS["approval"], **known, **(_ASKED if question else {})}
    return {verb: every[verb] for verb in listed if verb in every} or known  # job code may use the name for its facts


def choices_of(row: ReviewRow) -> list[str]:
    """The texts that a question accepts; empty for any text, and for other reviews."""
    if row.kind != "approval" or row.effect_key is not None or "answer" not in answers_of(row):
        return []
    return [str(each) for each in msgspec.json.decode(row.detail).get("choices") or ()]


def given_answer(row: ReviewRow) -> GivenAnswer | None:
    """The answer of a decided review. Of a review that an earlier version decided, only yes or no is known."""
    if row.answer is not None:
        return msgspec.json.decode(row.answer, type=GivenAnswer)
    if row.state == "approved":
        return GivenAnswer("approve")
    return GivenAnswer("reject") if row.state == "rejected" else None


def edited_arguments(row: ReviewRow) -> bytes | None:
    """The arguments of an `edit` as JSON; None for other answers."""
    given = given_answer(row)
    return bytes(given.arguments) if given is not None and bytes(given.arguments) else None


def stored_state(verb: str) -> str:
    """The state of a row that was decided with this answer."""
    return "rejected" if verb in NO else "approved" if verb in _YES else "answered"


def check_answer(row: ReviewRow, decision: Decision) -> Decision:
    """The decision with the answer that its review uses. Raises BadInput for an answer that does not fit the question."""
    allowed = answers_of(row)
    verb = decision.answer
    if verb not in allowed:
        verb = _SYNONYMS.get(row.kind, {}).get(verb, verb)
    if verb not in allowed:
        raise BadInput(_unfit(row, decision.answer, allowed))
    given = {
        "arguments": (decision.arguments, {"edit"}),
        "text": (decision.text, {"answer"}),
        "provider_id": (decision.provider_id, {"done"}),
        "result": (decision.result, {"done"}),
        "amounts": (decision.amounts, {"continue"}),
    }
    for name, (value, verbs) in given.items():
        if value is not None and verb not in verbs:
            raise BadInput(f"{name}: only the answer {' or '.join(sorted(verbs))} takes it, not {verb}")
    if decision.amounts is not None and row.kind != "budget":
        raise BadInput(f"amounts: {row.review_id} is no review of a budget")
    if verb == "edit" and decision.arguments is None:
        raise BadInput("arguments: the answer edit requires them, as a JSON object")
    if verb == "answer" and decision.text is None:
        raise BadInput("text: the answer `answer` requires it")
    choices = choices_of(row)
    if verb == "answer" and choices and decision.text not in choices:
        raise BadInput(f"text: expected one of {', '.join(map(repr, choices))}")
    return msgspec.structs.replace(decision, answer=verb)


def _unfit(row: ReviewRow, verb: str, allowed: dict[str, str]) -> str:
    if row.kind == "quarantine":
        tool = msgspec.json.decode(row.detail).get("tool")
        return (
            f"{row.review_id} is about the outcome of effect {tool}: answer `done` (with the provider's id, if known),"
            f" `not_done` (the effect may be executed again) or `reject`, not {verb!r}"
        )
    return (
        f"{row.review_id} is a review of kind {row.kind}: {verb!r} is not one of {', '.join(allowed) or 'its answers'}"
    )


def kept_answer(decision: Decision) -> bytes:
    """The answer of a decision, for the row."""
    none = msgspec.Raw(b"")
    kept = GivenAnswer(
        answer=decision.answer,
        arguments=none if decision.arguments is None else msgspec.Raw(decision.arguments),
        text=decision.text,
        provider_id=decision.provider_id,
        result=none if decision.result is None else msgspec.Raw(decision.result),
        amounts=decision.amounts,
        key_id=decision.key_id,
    )
    fields: dict[str, Any] = {
        name: value for name, value in msgspec.structs.asdict(kept).items() if value not in (None, none)
    }
    return msgspec.json.encode(fields)


def is_same_answer(row: ReviewRow, decision: Decision) -> bool:
    """Whether a decided review has the answer of this decision: its verb, and what it carries. Notes may differ."""
    given = given_answer(row)
    if given is None:
        return False
    if row.answer is None:  # an earlier version decided it, and kept only yes or no
        return row.state == stored_state(decision.answer)
    wanted = msgspec.json.decode(kept_answer(decision), type=GivenAnswer)
    return _compared(given) == _compared(wanted)


def _compared(given: GivenAnswer) -> tuple[Any, ...]:
    bodies = tuple(msgspec.json.decode(body) if bytes(body) else None for body in (given.arguments, given.result))
    return (given.answer, given.text, given.provider_id, given.amounts, *bodies)
