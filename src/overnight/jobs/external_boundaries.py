"""Boundaries that somebody else answers: a model, a person, a child job."""

from typing import Any

import msgspec

from overnight.domain import BadInput, BudgetStopped, Event, LoopStopped, Recorded, booked, new_id
from overnight.ledger import JOB, JobRow, NewJob, locked_job
from overnight.reviews import Boundary, request_review
from overnight.store import Unit, crash_point

from .children import StartChild, take_up
from .definitions import JobFunction, input_of
from .encoding import decode, encode, fingerprint
from .execution import Asked
from .positions import Position, Scope, here
from .waiting_for_budget import room_in_budget, word_from_a_person


class NotInJob(RuntimeError):
    """This function needs a running job: run it with `overnight run` or `overnight.run(job, …)`."""


class ModelFailed(Exception):
    """Every target of the route failed. `error_class` as in the events: rate_limited, timeout, server_error, …"""

    def __init__(self, message: str, error_class: str) -> None:
        super().__init__(message)
        self.error_class = error_class


class JobFailed(Exception):
    """A child job failed or was cancelled."""

    def __init__(self, message: str, state: str) -> None:
        super().__init__(message)
        self.state = state


class Approval(msgspec.Struct, frozen=True):
    """What a person decided."""

    approved: bool
    by: str | None = None
    note: str | None = None


class ChatAnswer:
    """A model's answer. `raw` is the whole chat completion as the provider sent it. `cost_microusd` is its known cost;
    `bound_microusd` what it may have cost beyond that at most, where the provider told no usage."""

    def __init__(self, raw: dict[str, Any], cost_microusd: int, model: str | None, bound_microusd: int = 0) -> None:
        self.raw, self.cost_microusd, self.model, self.bound_microusd = raw, cost_microusd, model, bound_microusd

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message, ready to be appended to the conversation."""
        choices: list[dict[str, Any]] = self.raw.get("choices") or [{}]
        return choices[0].get("message") or {}

    @property
    def text(self) -> str:
        return self.message.get("content") or ""

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        return self.message.get("tool_calls") or []


def in_job(what: str) -> Scope:
    """The scope of the running job. Raises NotInJob."""
    scope = here.get()
    if scope is None:
        raise NotInJob(
            f"{what} needs a running job: start it with `overnight run module:job`, or overnight.run(job, …)"
        )
    return scope


async def chat(
    messages: list[dict[str, Any]] | str, *, task: str | None = None, model: str | None = None, **params: Any
) -> ChatAnswer:
    """Call a model as this job: routed by `task` through the brain, reserved, recorded, and replayed after a crash.

    `messages` and `params` are those of OpenAI chat completions (a text stands for one user message). Raises ModelFailed
    when every target failed. A budget stop parks the job, and so does a loop, until a person says that it goes on.
    """
    scope = in_job("chat()")
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    if params.pop("stream", False):
        raise BadInput("chat(stream=True): a job gets the whole answer; streams are for clients of the gateway")
    body: dict[str, Any] = {"model": model or "auto", "messages": said, **params}
    # Before the boundary is asked for: what is refused here is refused in every replay.
    encode(body, "chat()", largest=None)
    # As the gateway names it: "auto" is no model of its own.
    label = task or (model if model != "auto" else None) or "default"
    print_ = fingerprint(label, body)
    execution = scope.execution

    async def live(position: Position) -> Recorded:
        from .services import ModelRequest

        place = (position[0], position[1], print_)
        request = ModelRequest(body, execution.job, task, scope.name, *place, execution.check_lease)
        while True:
            try:
                answer = await execution.branches.protect(
                    scope, lambda: execution.unless_gone(execution.services.model.call(request))
                )
            except BudgetStopped as stop:
                await room_in_budget(scope, position, stop)
            except LoopStopped as stop:
                if stop.rejected:
                    raise ModelFailed(str(stop), "loop_stopped") from None
                await word_from_a_person(scope, position, stop)
            else:
                crash_point("model_recorded")
                await execution.turn(answer.seq)
                execution.remember(scope, answer)
                return answer

    answer = await execution.ask(scope, Asked("model", label, print_, live))
    if answer.facts.event == "model_failed":
        error = answer.facts.error
        raise ModelFailed(error.message if error else "the model call failed", error.error_class if error else "failed")
    content = await execution.content(answer)
    cost, bound = booked(answer.facts)
    return ChatAnswer(msgspec.json.decode(content or b"{}"), cost or 0, answer.facts.model, bound or 0)


async def approval(question: str, **detail: Any) -> Approval:
    """Ask a person and park until they decide (`overnight reviews`)."""
    scope = in_job("approval()")
    execution = scope.execution
    encode(detail, "approval()")
    print_ = fingerprint(question, detail)

    async def live(position: Position) -> Recorded:
        entry = execution.begun(scope, position)
        if entry is None:
            with execution.flight():
                entry = await execution.commit(_Request(execution.job, question, detail, position, print_))
            execution.begin(position, entry)
        wait = {"for": "approval", "review_id": (entry.facts.detail or {})["review_id"]}
        answer = await execution.wait_outside(scope, position, wait)
        await execution.turn(answer.seq)
        execution.remember(scope, answer)
        return answer

    answer = await execution.ask(scope, Asked("approval", question[:200], print_, live))
    facts = answer.facts.decision or {}
    return Approval(bool(facts.get("approved")), answer.facts.actor, facts.get("note"))


class _Request(msgspec.Struct):
    held: JobRow
    question: str
    detail: dict[str, Any]
    position: Position
    print_: str

    def locks(self) -> list[tuple[Any, Any]]:
        return [(JOB, self.held.job_id)]

    def decide(self, unit: Unit) -> Recorded:
        job = locked_job(unit, self.held.job_id, lease_epoch=self.held.lease_epoch)
        boundary = Boundary("approval", self.question[:200], *self.position, self.print_)
        review = request_review(unit, job, "approval", self.question, self.detail, boundary)
        asked = Event("review_requested", kind="approval", name=boundary.name, detail={"review_id": review.review_id})
        return Recorded(job.job_id, job.last_seq, unit.now, asked, *self.position, self.print_)


async def run_child(function: JobFunction[..., Any], args: Any, kwargs: Any) -> Any:
    """Run a job function as a child of the running job and wait for its result. Raises JobFailed."""
    scope = in_job(f"calling job {function.name}")
    execution = scope.execution
    payload = input_of(function, args, kwargs)
    print_ = fingerprint(function.name, msgspec.Raw(payload))

    async def live(position: Position) -> Recorded:
        if position in execution.history.aside:
            with execution.flight():
                answered = await take_up(execution, scope, position)
            if answered is not None:
                return await execution.keeping.give(scope, position, answered)
        entry = execution.history.entries.get(position)
        if entry is None:
            with execution.flight():
                entry = await execution.commit(_child(scope, function, position, payload, print_))
            execution.begin(position, entry)
            crash_point("child_started")
        execution.services.nudge()
        wait = {"for": "child", "child_job_id": (entry.facts.detail or {})["child_job_id"]}
        answer = await execution.wait_outside(scope, position, wait)
        await execution.turn(answer.seq)
        execution.remember(scope, answer)
        return answer

    answer = await execution.ask(scope, Asked("child", function.name, print_, live))
    state = (answer.facts.detail or {}).get("state")
    if state != "succeeded":
        error = answer.facts.error
        raise JobFailed(
            f"child job {function.name} {state}: {error.message if error else 'no reason given'}", str(state)
        )
    return decode(answer.content, function.function)


def _child(
    scope: Scope, function: JobFunction[..., Any], position: Position, payload: bytes, print_: str
) -> StartChild:
    parent = scope.execution.job
    new = NewJob(
        new_id("job"),
        parent.tenant_id,
        "python",
        function.name,
        parent_job_id=parent.job_id,
        root_job_id=parent.root_job_id,
        parent_path=position[0],
        parent_ordinal=position[1],
        agent_id=function.agent or parent.agent_id,
        workflow=parent.workflow,
        session_id=parent.session_id,
        code_ref=function.code_ref,
        brain_version=parent.brain_version,
        input=payload,
    )
    return StartChild(new, parent.lease_epoch, print_, scope.name)
