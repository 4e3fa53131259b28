"""The signal to an external program that its job waits for a person or a budget."""

from typing import Any


class JobParked(BaseException):
    """The job waits for a decision, or for room in a budget. The program should end, and be restarted afterwards.

    It is no Exception, so that an agent framework does not pass it to the model as a tool error.
    """

    def __init__(self, message: str, review_id: str, wait: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.review_id = review_id
        self.wait = wait or {"for": "quarantine", "review_id": review_id}
