"""What: reviews: questions that people answer, such as approvals and quarantine.
Owns: the table review.
Depends on: ledger, store, domain.
Never: wakes a job or moves an effect; it stores the question and the decision.
"""

from .answers import (
    ANSWERS,
    KINDS,
    NO,
    VERBS,
    Amounts,
    Decision,
    GivenAnswer,
    PublicState,
    answers_of,
    check_answer,
    choices_of,
    edited_arguments,
    given_answer,
    public_state,
)
from .decisions import (
    ENDED_WITH_JOB,
    WAITS,
    DecisionOutcome,
    decide_review,
    expire_review,
    record_decision,
    supersede_ended,
    supersede_review,
    supersede_reviews,
    supersede_waits,
)
from .queries import ReviewFilter, find_reviews, list_expired, list_reviews, public_review, read_review
from .requests import renew_review, request_review
from .rows import OPEN_REVIEWS, REVIEW, Boundary, ReviewRow, digest_of, open_reviews

__all__ = [
    "ANSWERS",
    "ENDED_WITH_JOB",
    "KINDS",
    "NO",
    "OPEN_REVIEWS",
    "REVIEW",
    "VERBS",
    "WAITS",
    "Amounts",
    "Boundary",
    "Decision",
    "DecisionOutcome",
    "GivenAnswer",
    "PublicState",
    "ReviewFilter",
    "ReviewRow",
    "answers_of",
    "check_answer",
    "choices_of",
    "decide_review",
    "digest_of",
    "edited_arguments",
    "expire_review",
    "find_reviews",
    "given_answer",
    "list_expired",
    "list_reviews",
    "open_reviews",
    "public_review",
    "public_state",
    "read_review",
    "record_decision",
    "renew_review",
    "request_review",
    "supersede_ended",
    "supersede_review",
    "supersede_reviews",
    "supersede_waits",
]
