"""The facts of a request that its answer repeats."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from overnight.wire_formats import AnswerContext, client_body

from ..attempt import Attempt
from ..call_context import CallContext


def asked_by(context: CallContext, attempt: Attempt) -> Callable[[], AnswerContext]:
    """The facts of the request that the answer must repeat, created on demand."""
    return partial(_asked, context, attempt)


def _asked(context: CallContext, attempt: Attempt) -> AnswerContext:
    answer_id = context.answer_id(attempt.call_id)
    return AnswerContext(
        answer_id, attempt.target.model, client_body(context.request, attempt.grant.tokens), int(time.time())
    )
