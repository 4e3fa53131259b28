"""The admission of an effect: whether it may be executed now, by its state, the rules of the brain, and the budgets.

It is decided in the transaction that writes the claim, so that the rules are asked again when an approved effect begins.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import msgspec

from overnight import effects
from overnight.budgets import Limit, count_tool_call, stop_facts
from overnight.domain import BudgetStopped, ErrorFacts, Event
from overnight.domain.json_text import decode_json
from overnight.domain.tools import (
    DEFAULT_EXPIRES_MS,
    WRITE,
    Allowed,
    Denied,
    NeedsApproval,
    ToolCallFacts,
    Verdict,
    digest_of,
)
from overnight.ledger import JobRow, append
from overnight.reviews import REVIEW, Boundary, edited_arguments, request_review
from overnight.store import Unit

from .policy import ToolPolicy
from .validation import check_arguments

HUMAN_ASK = "human.ask"
"""The tool that nobody executes: a person gives its result, a text. Rules may deny it, and say who answers and until when."""
ASKS = NeedsApproval(HUMAN_ASK, "a question to a person", (), DEFAULT_EXPIRES_MS, digest_of([HUMAN_ASK]))


class ToolRules(Protocol):
    """The rules about tool calls that are in force."""

    def decide(self, facts: ToolCallFacts) -> Verdict: ...


class Refused(msgspec.Struct, frozen=True):
    """A rule denies the effect. `seq`: its event `tool_refused`."""

    seq: int
    error: ErrorFacts


Admission = effects.ClaimResult | BudgetStopped | Refused
FindRules = Callable[[], ToolRules | None]
"""Finds the rules that are in force now; None: there are none."""


def no_rules() -> ToolRules | None:
    """Without a brain there are no rules."""
    return None


class EffectAdmission:
    """Decides whether one effect may be executed now.

    - `claim`: the request. `asked`: its arguments by name. `position`: None for external programs.
    - `rules`: the rules in force; they return None without any, which costs nothing.
    - `asks_again`: an approval that expired is asked again.
    """

    def __init__(
        self,
        claim: effects.EffectClaim,
        asked: Mapping[str, Any],
        position: effects.EffectPosition | None,
        rules: FindRules,
    ) -> None:
        self._claim, self._asked, self._position, self._rules = claim, asked, position, rules
        self.done_arguments: bytes | None = None
        """The arguments of a person who edited them, as the last decision found them."""

    def decide(self, unit: Unit, job: JobRow, limits: Sequence[Limit], *, asks_again: bool, settles: bool) -> Admission:
        """Claim the effect, let it wait for a person, or refuse it. With `settles`, only an effect that has begun."""
        wanted = self._claim
        row = unit.get(effects.EFFECT, (job.tenant_id, wanted.effect_key))
        if row is not None and effects.is_outdated(row, wanted.arguments_sha256):
            self._supersede(unit, job, row, "its arguments have changed")
        self.done_arguments = self._edited(unit, row)
        wanted = msgspec.structs.replace(wanted, done_arguments=self.done_arguments, asks_again=asks_again)
        if effects.begins(job, row, asks_again=asks_again):
            if settles and (row is None or row.state in {"approved", "expired"}):
                return Refused(0, ErrorFacts("cancelled", "its branch was cancelled before it began"))
            rules = self._rules()
            if rules is not None and wanted.contract is None:  # a caller over HTTP has been checked
                wanted, unfit = _by_contract(rules, wanted)
                if unfit:
                    error = ErrorFacts("arguments_invalid", unfit)
                    seq = effects.refuse(unit, job, row, wanted, error, {"why": unfit}, self._position)
                    return Refused(seq, error)
            if rules is not None or wanted.tool == HUMAN_ASK:
                stopped = self._ask_rules(unit, job, row, wanted, rules)
                if stopped is not None:
                    return stopped
            if limits:
                try:
                    count_tool_call(unit, job.tenant_id, limits)
                except BudgetStopped as stop:
                    event = Event("budget_stopped", kind="effect", name=wanted.tool, step=wanted.step)
                    event.attempt, event.decision, event.about = job.attempt, stop_facts(stop), wanted.about
                    append(unit, job, event)
                    return stop
        return effects.claim(unit, job, wanted, self._position)

    def _edited(self, unit: Unit, row: effects.EffectRow | None) -> bytes | None:
        if row is None or row.done_sha256 is None or row.approval_id is None:
            return None
        unit.lock([(REVIEW, row.approval_id)])
        review = unit.get(REVIEW, row.approval_id)
        return None if review is None else edited_arguments(review)

    # ── rules ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ask_rules(
        self,
        unit: Unit,
        job: JobRow,
        row: effects.EffectRow | None,
        wanted: effects.EffectClaim,
        rules: ToolRules | None,
    ) -> effects.ClaimResult | Refused | None:
        """Ask the rules about the arguments that would be used. None: they permit it."""
        done = wanted.done_arguments
        facts = ToolCallFacts(
            tool=wanted.tool,
            tool_class=wanted.tool_class or WRITE,
            tenant_id=job.tenant_id,
            agent_id=job.agent_id,
            workflow=job.workflow,
            arguments=self._asked if done is None else msgspec.json.decode(done),
            # The rules of a brain say whether they need it: it costs a query.
            first_use=effects.is_first_use(unit, job.tenant_id, wanted) if _needs_first_use(rules) else None,
        )
        verdict = Allowed() if rules is None else rules.decide(facts)
        if wanted.tool == HUMAN_ASK and isinstance(verdict, Allowed):
            verdict = ASKS
        if isinstance(verdict, Denied):
            self._supersede(unit, job, row, "a rule denies it now")
            error = ErrorFacts("denied", verdict.why)
            decision = {"why": verdict.why, "rule": verdict.rule_name}
            return Refused(effects.refuse(unit, job, row, wanted, error, decision, self._position), error)
        if not isinstance(verdict, NeedsApproval) or self._is_approved(unit, row, wanted, verdict):
            return None
        self._supersede(unit, job, row, "another rule asks for approval now")
        return effects.ClaimResult("waiting", self._request_approval(unit, job, row, wanted, verdict))

    def _is_approved(
        self, unit: Unit, row: effects.EffectRow | None, wanted: effects.EffectClaim, verdict: NeedsApproval
    ) -> bool:
        """Whether a person approved these arguments under this rule. It holds until the effect is done."""
        if row is None or row.approval_id is None or row.arguments_sha256 != wanted.arguments_sha256:
            return False
        unit.lock([(REVIEW, row.approval_id)])
        review = unit.get(REVIEW, row.approval_id)
        return review is not None and review.state == "approved" and review.rule_digest == verdict.rule_digest

    def _supersede(self, unit: Unit, job: JobRow, row: effects.EffectRow | None, why: str) -> None:
        if row is None or row.state not in {"waiting", "approved"}:
            return
        effects.end_review(unit, job, row, why, approved_too=True)
        effects.supersede(unit, job, row)

    def _request_approval(
        self,
        unit: Unit,
        job: JobRow,
        row: effects.EffectRow | None,
        wanted: effects.EffectClaim,
        verdict: NeedsApproval,
    ) -> effects.EffectRow:
        detail: dict[str, Any] = {
            "effect_key": wanted.effect_key,
            "tool": wanted.tool,
            "arguments": self._asked,
            "why": verdict.why,
            "rule": verdict.rule_name,
        }
        if wanted.contract is not None:
            detail["contract"] = wanted.contract
        if row is not None:
            detail["effect_id"] = row.effect_id
        question = f"Execute {wanted.tool}? {verdict.why}".strip()
        if wanted.tool == HUMAN_ASK:
            question = _asked_question(self._asked, detail)
        review = request_review(
            unit,
            job,
            "approval",
            question,
            detail,
            boundary_of(wanted.tool, self._position),
            wanted.about,
            effect_key=wanted.effect_key,
            arguments_sha256=wanted.arguments_sha256,
            rule_digest=verdict.rule_digest,
            expires_at=unit.now + verdict.expires_ms * 1000 if verdict.expires_ms else None,
            deciders=verdict.by,
            key_id=wanted.key_id,
        )
        return effects.wait(unit, job, row, wanted, review.review_id)


def _by_contract(rules: ToolRules, wanted: effects.EffectClaim) -> tuple[effects.EffectClaim, str]:
    """The claim with the contract of its tool, and why its arguments do not fit; "" if they do."""
    contract = rules.contract(wanted.tool) if isinstance(rules, ToolPolicy) else None
    if contract is None:
        return wanted, ""
    arguments = decode_json(wanted.done_arguments or wanted.arguments)
    unfit = "; ".join(map(str, check_arguments(contract, arguments)))
    return msgspec.structs.replace(wanted, contract=contract.label, tool_class=contract.tool_class), unfit


def _needs_first_use(rules: ToolRules | None) -> bool:
    return rules is not None and bool(getattr(rules, "needs_first_use", True))


def _asked_question(asked: Mapping[str, Any], detail: dict[str, Any]) -> str:
    """The question of `human.ask`; the detail gets the answers that it permits."""
    detail["answers"] = ["answer", "reject"]
    choices = asked.get("choices")
    if isinstance(choices, list) and all(isinstance(each, str) for each in cast("list[Any]", choices)):
        detail["choices"] = choices
    question = asked.get("question")
    return (
        question if isinstance(question, str) and question.strip() else "A question without a text: see its arguments."
    )


def boundary_of(tool: str, position: effects.EffectPosition | None) -> Boundary | None:
    """The boundary in job code that waits for the effect; external programs have none."""
    return None if position is None else Boundary("effect", tool, position.path, position.ordinal, position.fingerprint)
