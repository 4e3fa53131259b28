"""Arguments that a person edited: checked by the schema of the tool and by the rules, before the decision is written."""

from collections.abc import Callable
from typing import Any, cast

from overnight.domain import BadInput, Forbidden
from overnight.domain.json_text import decode_for_display
from overnight.domain.tools import Denied, NeedsApproval, ToolCallFacts
from overnight.ledger import JobRow
from overnight.reviews import ReviewRow
from overnight.tools import ToolPolicy, check_arguments

from .encoding import fingerprint

FindPolicy = Callable[[], ToolPolicy | None]


class EditedCall:
    """A call of the tool of a review with other arguments. `sha256`: the digest of these, as effects record it."""

    def __init__(self, review: ReviewRow, job: JobRow, arguments: bytes) -> None:
        detail: dict[str, Any] = decode_for_display(review.detail.encode())
        self._tool, self._job = str(detail.get("tool")), job
        # A job keeps the version of the contract that it began with, such as refund@3.
        version = str(detail.get("contract") or "").rpartition("@")[2]
        self._version = int(version) if version.isdecimal() else None
        edited: Any = decode_for_display(arguments)
        if not isinstance(edited, dict):
            raise BadInput("arguments: expected a JSON object with all arguments of the effect")
        self._arguments = cast("dict[str, Any]", edited)
        self.sha256 = fingerprint(self._arguments)

    def check(self, policy: ToolPolicy, may_approve: Callable[[tuple[str, ...]], bool]) -> str | None:
        """The digest of the rules that the arguments are approved under; None if none asks for approval.

        `may_approve`: whether the caller is among the names of a rule. Raises BadInput if the arguments do not fit the contract
        of the tool; Forbidden if a rule denies them, or wants the approval of others.
        """
        contract = policy.contract(self._tool, self._version)
        if contract is not None and (violations := check_arguments(contract, self._arguments)):
            raise BadInput(f"arguments: {'; '.join(map(str, violations))}")
        facts = ToolCallFacts(
            tool=self._tool,
            tenant_id=self._job.tenant_id,
            agent_id=self._job.agent_id,
            workflow=self._job.workflow,
            arguments=self._arguments,
            version=self._version,
        )
        verdict = policy.decide(facts)
        if isinstance(verdict, Denied):
            raise Forbidden(f"the edited arguments are denied by the rule {verdict.rule_name}: {verdict.why}")
        if isinstance(verdict, NeedsApproval) and not may_approve(verdict.by):
            named = ", ".join(verdict.by)
            raise Forbidden(f"the rule {verdict.rule_name} wants the edited arguments to be approved by {named}")
        return verdict.rule_digest if isinstance(verdict, NeedsApproval) else None
