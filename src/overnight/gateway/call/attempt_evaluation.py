"""Evaluation of attempts: their results, and the updates of their targets' circuit breakers."""

from __future__ import annotations

from overnight.circuit_breakers import RecordBreakerUpdate

from ..admission.attempt_result import AttemptResult
from ..admission.metering import reported_beyond_bound, result_of_failure, result_of_reply
from ..admission.services import AdmissionServices
from ..attempt import Attempt, AttemptFailure, Reply
from ..call_context import CallContext, call_event
from ..call_deadlines import MIN_STORE_S, CallDeadlines
from .gateway_failures import is_of_target
from .target_selection import TargetSelection


class AttemptEvaluation:
    """Evaluates the attempts of one call: their results, the circuits of their targets, and reports beyond the bound."""

    __slots__ = ("_deadlines", "_selection", "_services")

    def __init__(self, services: AdmissionServices, selection: TargetSelection, deadlines: CallDeadlines) -> None:
        self._services, self._selection, self._deadlines = services, selection, deadlines

    def answered(self, context: CallContext, attempt: Attempt, reply: Reply) -> AttemptResult:
        """The result of an answered attempt."""
        update = self._selection.record_answer()
        result = result_of_reply(context, attempt, reply, self._services.fees, update)
        self._warn(context, attempt, result)
        return result

    def failed(self, context: CallContext, attempt: Attempt, failed: AttemptFailure) -> AttemptResult:
        """The result of a failed attempt."""
        failure, update = failed.failure, None
        if is_of_target(failure) and not self._deadlines.is_inconclusive(failure, attempt.seconds):
            update = self._selection.record_failure(failure)
        result = result_of_failure(context, attempt, failed, self._services.fees, update)
        self._warn(context, attempt, result)
        return result

    async def confirm_target(self, context: CallContext, attempt: Attempt) -> None:
        """Close the circuit of a stream's target once it answers, without waiting for the end of the stream."""
        if self._selection.probe_id is None or (update := self._selection.record_answer()) is None:
            return
        event = call_event(context, attempt.target, "model_called", attempt.call_id)
        note = RecordBreakerUpdate(context.subject.job_id, update, event)
        await self._services.settlements.note(note, self._deadlines.loop.time() + MIN_STORE_S)
        self._services.breakers_written()

    def _warn(self, context: CallContext, attempt: Attempt, result: AttemptResult) -> None:
        reported = reported_beyond_bound(result)
        if reported is not None:
            booked = attempt.grant.amount_microusd if result.cost_microusd is None else result.cost_microusd
            where = f"{attempt.target.provider}/{attempt.target.model}"
            self._services.usage_warnings.warn(where, context.subject.job_id, reported, booked)
