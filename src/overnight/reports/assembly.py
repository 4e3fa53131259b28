"""A receipt is assembled from rows, reviews and events, which are read one page at a time. Pure."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, cast

import msgspec

from overnight.domain import FINISHED, Recorded
from overnight.effects import EffectRow
from overnight.ledger import JobRow

from .claims import ClaimChecker
from .entries import (
    ReviewFacts,
    TreeJob,
    add_event,
    add_review,
    arguments_in,
    entry_of,
    key_in,
    refused_entry,
    review_entry,
)
from .records import OPEN, EffectEntry, Receipt, ReviewEntry, UnexecutedCall
from .unexecuted import ToolUse

MAX_LISTED = 1_000


class ReceiptAssembly:
    """Takes what is known of the effects of a job tree, and gives the receipt.

    - `counts`: (state, source, number) of all effects. `rows`: those that are listed.
    - `asked`: the names of tools that models asked for. `checker`: the statements of the final answer.
    """

    def __init__(
        self,
        jobs: Sequence[TreeJob],
        counts: Iterable[tuple[str, str | None, int]],
        rows: Iterable[EffectRow],
        *,
        checker: ClaimChecker,
        asked: Collection[str] = (),
    ) -> None:
        self._jobs = {job.job_id: job for job in jobs}
        self._counts, self._found_by = Counter[str](), Counter[str]()
        for state, source, number in counts:
            self._counts[state] += number
            if state == "committed":
                self._found_by[source or "executed"] += number
        self._entries: dict[str, EffectEntry] = {}
        self._by_review: dict[str, EffectEntry] = {}
        for row in rows:
            entry = self._entries[row.effect_key] = entry_of(row, self._jobs.get(row.job_id))
            if row.review_id:
                self._by_review[row.review_id] = entry
        self._checker, self._asked = checker, frozenset(asked)
        self._without_row: list[EffectEntry] = []  # refused calls, and effects of other jobs
        self._reviews: list[ReviewEntry] = []
        self._uses: dict[object, ToolUse] = {}
        self._other_keys: dict[str, Recorded] = {}
        self._order: dict[str, int] = {}  # effects of one transaction have the same time
        self._others: dict[str, EffectEntry] = {}
        self._listed = sum(self._counts.values()) <= len(self._entries)

    def add_review(self, review: ReviewFacts) -> None:
        """Take a review of the tree; the oldest first."""
        key = key_in(review)
        entry = self._by_review.get(review.review_id) or self._entries.get(key or "")
        if entry is not None:
            add_review(entry, review)
        elif key is None and len(self._reviews) < MAX_LISTED:
            self._reviews.append(review_entry(review))
        if key is not None and entry is not None and entry.tool in self._checker.tools:
            arguments = arguments_in(review)
            if isinstance(arguments, dict):
                self._checker.add(key, entry.tool, cast(dict[str, Any], arguments))

    def add_event(self, event: Recorded) -> None:
        """Take an event about a tool; those of a job in their order."""
        facts = event.facts
        key, tool = facts.idempotency_key, facts.name or ""
        if tool in self._asked:
            place = key or (event.job_id, event.seq)
            self._uses.setdefault(place, ToolUse(tool=tool, call_id=facts.call_id, at=event.at))
        if facts.event == "tool_refused":
            self._counts["refused"] += 1
            if len(self._without_row) < MAX_LISTED:
                self._without_row.append(refused_entry(event))
            return
        if key is None:
            return
        if facts.event == "tool_called" and tool in self._checker.tools:
            self._checker.add(key, tool, _arguments(event))
        if (entry := self._entries.get(key)) is not None:
            self._order.setdefault(key, len(self._order))
            add_event(entry, event)
        elif len(self._other_keys) < MAX_LISTED and (self._listed or (facts.detail or {}).get("replayed")):
            self._other_keys[key] = event

    def uses(self) -> list[ToolUse]:
        """Effects and refused calls of the tools in `asked`."""
        waiting = [entry for entry in self._entries.values() if entry.tool in self._asked]
        for entry in waiting:
            self._uses.setdefault(entry.effect_key, ToolUse(tool=entry.tool, call_id=None, at=entry.since))
        return list(self._uses.values())

    def missing_keys(self) -> list[str]:
        """The keys of effects whose rows belong to other jobs, or were too many to list."""
        return [*self._other_keys, *(key for key in self._checker.candidates() if key not in self._entries)]

    def add_other_rows(self, rows: Iterable[EffectRow]) -> None:
        """Take the rows of `missing_keys`: of another job, whose result was replayed, or beyond the list."""
        for row in rows:
            event = self._other_keys.get(row.effect_key)
            entry = entry_of(row, self._jobs.get(row.job_id))
            if event is not None and row.job_id not in self._jobs:
                entry.replayed, entry.about, entry.at = True, event.facts.about, event.at
                self._counts["replayed"] += 1
                self._without_row.append(entry)
            self._others[row.effect_key] = entry

    def receipt(self, job: JobRow, unexecuted: list[UnexecutedCall], *, tool_results: int, is_partial: bool) -> Receipt:
        effects = sorted(
            [*self._entries.values(), *self._without_row],
            key=lambda entry: (entry.since, self._order.get(entry.effect_key or "", 0)),
        )
        if self._listed:
            known = Counter(entry.found_by for entry in self._entries.values())
            self._found_by = Counter({source: number for source, number in known.items() if source is not None})
        open_effects = sum(self._counts[state] for state in OPEN)
        return Receipt(
            job_id=job.job_id,
            name=job.name,
            state=job.state,
            tenant_id=job.tenant_id,
            runtime=job.runtime,
            external_id=job.external_id,
            counts={state: number for state, number in sorted(self._counts.items()) if number},
            found_by=dict(sorted(self._found_by.items())),
            settled=open_effects == 0 and all(each.state in FINISHED for each in self._jobs.values()),
            effects=effects,
            unexecuted=unexecuted,
            claims=self._checker.verdicts({**self._others, **self._entries}),
            reviews=self._reviews,
            more=max(0, sum(self._counts.values()) - len(effects)),
            tool_results=tool_results,
            jobs=len(self._jobs),
            is_partial=is_partial,
        )


def _arguments(event: Recorded) -> dict[str, Any]:
    try:
        value: Any = msgspec.json.decode(event.content or b"{}")
    except (msgspec.DecodeError, RecursionError):
        return {}
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}
