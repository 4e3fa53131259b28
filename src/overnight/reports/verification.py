"""Status checks of unknown effects, run again for a receipt. They change nothing.

Not part of the package's front: it imports `jobs`, which other readers of receipts do not need.
"""

from collections.abc import Iterable

from overnight.jobs import StatusReport, Unverifiable, check_status

from .records import EffectEntry, Verification

MAX_CHECKED = 100


async def verify_entries(entries: Iterable[EffectEntry], now_us: int) -> dict[str, Verification]:
    """Ask the status checks of unknown effects, at most 100, whose code this process can import. By effect id."""
    unknown = [entry for entry in entries if entry.state == "unknown" and entry.effect_id is not None]
    found: dict[str, Verification] = {}
    for entry in unknown[:MAX_CHECKED]:
        found[entry.effect_id or ""] = await _verified(entry, now_us)
    return found


async def _verified(entry: EffectEntry, now_us: int) -> Verification:
    try:
        report: StatusReport = await check_status(entry.code_ref, entry.tool, entry.effect_key or "", entry.arguments)
    except Unverifiable as error:
        return Verification(outcome="unverifiable", why=str(error))
    is_early = report.outcome == "not_done" and now_us < entry.at + round(report.settle_after_s * 1_000_000)
    return Verification(outcome=report.outcome, provider_id=report.provider_id, is_early=is_early)
