"""What: reviews: questions that people answer, such as approvals and quarantine.
Owns: the table review.
Depends on: ledger, store, domain.
Never: wakes a job; it stores the question and the decision.
"""

from .rows import REVIEW, Boundary, ReviewRow, decide_review, digest_of, list_reviews, read_review, request_review

__all__ = [
    "REVIEW",
    "Boundary",
    "ReviewRow",
    "decide_review",
    "digest_of",
    "list_reviews",
    "read_review",
    "request_review",
]
