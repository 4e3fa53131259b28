"""The boundaries `chat` and `approval`: calls to a model and questions to a person."""

from collections.abc import Sequence
from typing import Any

import msgspec

from overnight.domain import BadInput, BudgetStopped, Event, LoopStopped, Recorded, booked
from overnight.domain.json_text import decode_json
from overnight.ledger import JOB, JobRow, locked_job
from overnight.reviews import Boundary, request_review
from overnight.store import Unit, crash_point

from .encoding import encode, fingerprint
from .execution import BoundaryRequest, Execution, in_job
from .positions import Position, Scope
from .services import ModelRequest
from .waiting_for_budget import wait_for_budget, wait_for_decision

MAX_CHOICES, MAX_CHOICE, MAX_EXPIRY_S = 50, 200, 366 * 86_400


class ModelFailed(Exception):
    """Every target of the route failed. `error_class` as in the events: rate_limited, timeout, server_error, …"""

    def __init__(self, message: str, error_class: str) -> None:
        super().__init__(message)
        self.error_class = error_class


class Approval(msgspec.Struct, frozen=True):
    """The decision of a person: whether they approved, who they are, and their note."""

    approved: bool
    by: str | None = None
    note: str | None = None


class HumanAnswer(msgspec.Struct, frozen=True):
    """The answer of a person to a question: their text, who they are, and their note."""

    text: str
    by: str | None = None
    note: str | None = None


class ChatAnswer:
    """A model's answer.

    `raw` is the complete chat completion of the provider. `cost_microusd` is its known cost in micro-dollars;
    `bound_microusd` is the maximum cost beyond that, if the provider reported no usage.
    """

    def __init__(self, raw: dict[str, Any], cost_microusd: int, model: str | None, bound_microusd: int = 0) -> None:
        self.raw, self.cost_microusd, self.model, self.bound_microusd = raw, cost_microusd, model, bound_microusd

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message, ready to be appended to the conversation."""
        choices: list[dict[str, Any]] = self.raw.get("choices") or [{}]
        return choices[0].get("message") or {}

    @property
    def text(self) -> str:
        """The text of the message; empty if it has none."""
        return self.message.get("content") or ""

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The tool calls of the message."""
        return self.message.get("tool_calls") or []


async def chat(
    messages: list[dict[str, Any]] | str, *, task: str | None = None, model: str | None = None, **params: Any
) -> ChatAnswer:
    """Call a model as this job: routed through the brain, reserved, recorded, and replayed after a crash.

    - `messages`, `params`: those of OpenAI chat completions. A text is one user message.
    - `task`: the task for the routing rules. `model`: a model or a route instead; default `auto`.

    Raises ModelFailed when every target failed, BadInput for `stream=True`. When a budget or the loop guard stops the
    call, the job parks until the budget has room or a person decides.
    """
    execution, scope = in_job("chat()")
    conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    if params.pop("stream", False):
        raise BadInput("chat(stream=True): a job receives the complete answer; only clients of the gateway can stream")
    body: dict[str, Any] = {"model": model or "auto", "messages": conversation, **params}
    # Before the boundary is reached, so that every replay raises the same error.
    encode(body, "chat()", largest=None)
    # The same label as in the gateway: "auto" is not a model.
    label = task or (model if model != "auto" else None) or "default"
    digest = fingerprint(label, body)

    async def live(position: Position) -> Recorded:
        request = ModelRequest(
            body=body,
            job=execution.job,
            task=task,
            step=scope.name,
            path=position[0],
            ordinal=position[1],
            fingerprint=digest,
            check=execution.log.check_lease,
            about=scope.about,
            prompts=execution.rendered_prompts.names_in(conversation),
        )
        return await _call_model(execution, scope, position, request)

    answer = await execution.resolve(scope, BoundaryRequest("model", label, digest, live))
    if answer.facts.event == "model_failed":
        error = answer.facts.error
        raise ModelFailed(error.message if error else "the model call failed", error.error_class if error else "failed")
    content = await execution.read_content(answer)
    cost, bound = booked(answer.facts)
    return ChatAnswer(decode_json(content or b"{}"), cost or 0, answer.facts.model, bound or 0)


async def _call_model(execution: Execution, scope: Scope, position: Position, request: ModelRequest) -> Recorded:
    """The durable answer to a model call. It waits while a budget or the loop guard stops the call."""
    log, services = execution.log, execution.services
    while True:
        try:
            answer = await execution.tasks.protect(scope, lambda: log.or_evict(services.model.call(request)))
        except BudgetStopped as stop:
            await wait_for_budget(execution, scope, position, stop)
        except LoopStopped as stop:
            if stop.rejected:
                raise ModelFailed(str(stop), "loop_stopped") from None
            await wait_for_decision(execution, scope, position, stop)
        else:
            crash_point("model_recorded")
            return await execution.scheduler.deliver(scope, answer)


async def approval(question: str, **detail: Any) -> Approval:
    """Request a decision, and park until a person decides (`overnight reviews`). `detail`: facts for them, as JSON values."""
    execution, scope = in_job("approval()")
    encode(detail, "approval()")
    answer = await _decided(execution, scope, question, detail, fingerprint(question, detail))
    decision = answer.facts.decision or {}
    return Approval(bool(decision.get("approved")), answer.facts.actor, decision.get("note"))


async def ask(question: str, *, choices: Sequence[str] = (), expires_s: float | None = None) -> HumanAnswer:
    """Ask a person, and park until somebody answers with a text (`overnight reviews answer`).

    - `choices`: the texts that are accepted; default: any text.
    - `expires_s`: how long the question can be answered. An expired question is not answered: the job stays parked until
      somebody renews it. To continue without an answer, use `timeout`.

    Raises BadInput for invalid arguments.
    """
    execution, scope = in_job("ask()")
    if not question.strip():
        raise BadInput("ask(): the question must not be empty")
    if len(choices) > MAX_CHOICES or len(set(choices)) != len(choices):
        raise BadInput(f"ask(choices=…): at most {MAX_CHOICES} different texts")
    if any(not each.strip() or not each.isprintable() or len(each) > MAX_CHOICE for each in choices):
        raise BadInput(f"ask(choices=…): each one is a line of 1 to {MAX_CHOICE} printable characters")
    if expires_s is not None and not 0 < expires_s <= MAX_EXPIRY_S:
        raise BadInput(f"ask(expires_s=…): expected more than 0, and at most {MAX_EXPIRY_S} seconds")
    detail: dict[str, Any] = {"answers": ["answer"]}
    if choices:
        detail["choices"] = list(choices)
    encode([question, detail], "ask()")
    digest = fingerprint("ask", [question, list(choices)])
    lasts_us = None if expires_s is None else round(expires_s * 1_000_000)
    answer = await _decided(execution, scope, question, detail, digest, lasts_us, lists_answers=True)
    content = decode_json(await execution.read_content(answer) or b"{}")
    decision = answer.facts.decision or {}
    return HumanAnswer(content.get("text") or "", answer.facts.actor, decision.get("note"))


async def _decided(
    execution: Execution,
    scope: Scope,
    question: str,
    detail: dict[str, Any],
    digest: str,
    lasts_us: int | None = None,
    *,
    lists_answers: bool = False,
) -> Recorded:
    """The decision of a person on a question, live or replayed. `lists_answers`: `detail.answers` are the permitted verbs."""
    log, scheduler = execution.log, execution.scheduler

    async def live(position: Position) -> Recorded:
        entry = log.find_entry(scope, position)
        if entry is None:
            with scheduler.in_progress():
                entry = await log.commit(
                    _RequestApproval(
                        held=execution.job,
                        question=question,
                        detail=detail,
                        position=position,
                        fingerprint=digest,
                        about=scope.about,
                        lasts_us=lasts_us,
                    )
                )
            log.add_entry(position, entry)
        wait: dict[str, Any] = {"for": "approval", "review_id": (entry.facts.detail or {})["review_id"]}
        if lists_answers:
            wait["answers"] = detail["answers"]
        answer = await scheduler.wait_outside(scope, position, wait)
        return await scheduler.deliver(scope, answer)

    return await execution.resolve(scope, BoundaryRequest("approval", question[:200], digest, live))


class _RequestApproval(msgspec.Struct):
    held: JobRow
    question: str
    detail: dict[str, Any]
    position: Position
    fingerprint: str
    about: str | None
    lasts_us: int | None = None

    def locks(self) -> list[tuple[Any, Any]]:
        return [(JOB, self.held.job_id)]

    def decide(self, unit: Unit) -> Recorded:
        job = locked_job(unit, self.held.job_id, lease_epoch=self.held.lease_epoch)
        boundary = Boundary("approval", self.question[:200], *self.position, self.fingerprint)
        expires_at = None if self.lasts_us is None else unit.now + self.lasts_us
        review = request_review(
            unit, job, "approval", self.question, self.detail, boundary, self.about, expires_at=expires_at
        )
        asked = Event("review_requested", kind="approval", name=boundary.name, detail={"review_id": review.review_id})
        return Recorded(
            job_id=job.job_id,
            seq=job.last_seq,
            at=unit.now,
            facts=asked,
            path=self.position[0],
            ordinal=self.position[1],
            fingerprint=self.fingerprint,
        )
