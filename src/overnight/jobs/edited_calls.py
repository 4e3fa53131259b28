"""Arguments that a person edited: checked by the schema of the tool and by the rules, before the decision is written."""

from collections.abc import Callable
from typing import Any

from overnight.domain import BadInput, Forbidden
from overnight.domain.json_text import decode_for_display
from overnight.domain.tools import Denied, NeedsApproval, ToolCallFacts
from overnight.ledger import JobRow
from overnight.reviews import ReviewRow
from overnight.tools import ToolPolicy

from .encoding import fingerprint

FindPolicy = Callable[[], ToolPolicy | None]


class EditedCall:
    """A call of the tool of a review with other arguments. `sha256`: the digest of these, as effects record it."""

    def __init__(self, review: ReviewRow, job: JobRow, arguments: bytes) -> None:
        detail: dict[str, Any] = decode_for_display(review.detail.encode())
        self._tool, self._job = str(detail.get("tool")), job
        self._arguments = decode_for_display(arguments)
        if not isinstance(self._arguments, dict):
            raise BadInput("arguments: expected a JSON object with all arguments of the effect")
        self.sha256 = fingerprint(self._arguments)

    def check(self, policy: ToolPolicy, may_approve: Callable[[tuple[str, ...]], bool]) -> None:
        """Raise Forbidden if a rule denies the arguments, or wants the approval of others. `may_approve`: whether the caller is
        among the names of a rule."""
        contract = policy.contract(self._tool)
        facts = ToolCallFacts(
            tool=self._tool,
            tenant_id=self._job.tenant_id,
            agent_id=self._job.agent_id,
            workflow=self._job.workflow,
            arguments=self._arguments,
            **({} if contract is None else {"tool_class": contract.tool_class}),
        )
        verdict = policy.decide(facts)
        if isinstance(verdict, Denied):
            raise Forbidden(f"the edited arguments are denied by the rule {verdict.rule_name}: {verdict.why}")
        if isinstance(verdict, NeedsApproval) and not may_approve(verdict.by):
            named = ", ".join(verdict.by)
            raise Forbidden(f"the rule {verdict.rule_name} wants the edited arguments to be approved by {named}")
