"""What: questions that a person must answer: approvals and quarantine.
Owns: review.
Depends on: ledger, store, domain.
Never: wakes a job; it only keeps the question and the answer.
"""

from .rows import REVIEW, Boundary, ReviewRow, decide_review, list_reviews, read_review, request_review

__all__ = ["REVIEW", "Boundary", "ReviewRow", "decide_review", "list_reviews", "read_review", "request_review"]
