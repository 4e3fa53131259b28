"""Effects under kills, stops and network faults, judged by the vendor's own record: the bounded form of `make effect-storm`."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from effect_judge import RULES, EffectEvidence, EffectRecord, broken_rules

EFFECTS = 150


@pytest.mark.timeout(280)
def test_effects_survive_a_storm(store_url: str, tmp_path: Path) -> None:
    """One gateway on SQLite, two on PostgreSQL. A violation is printed with its rule."""
    gateways = 2 if store_url.startswith("postgres") else 1
    command = [
        sys.executable,
        "-m",
        "tests.crash.effect_storm",
        "--url",
        store_url,
        "--folder",
        str(tmp_path / "storm"),
    ]
    command += ["--effects", str(EFFECTS), "--kills", "14", "--stops", "1", "--programs", "4", "--seed", "4"]
    command += ["--gateways", str(gateways), "--settle-s", "90"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["violations"] == 0


# ── the judge itself ─────────────────────────────────────────────────────────────────────────────────────────────────

CALLED: tuple[str, dict[str, Any]] = ("tool_called", {})
DONE: tuple[str, dict[str, Any]] = ("tool_succeeded", {})
UNKNOWN: tuple[str, dict[str, Any]] = ("tool_unknown", {})


def _evidence() -> EffectEvidence:
    """One blind effect in a job, done once."""
    effect = EffectRecord(
        effect_id="eff_1",
        effect_key="k",
        job_id="job_1",
        tool="blind",
        subject="job-0/blind",
        state="committed",
        provider_id="done_1",
        over_http=False,
        events=[CALLED, DONE],
    )
    facts = {"account": "blind", "subject": "job-0/blind", "key": "k", "caller": 7}
    return EffectEvidence(
        subjects=["job-0/blind"],
        effects=[effect],
        arrivals=[{"arrival": 1, **facts, "said": "done_1", "behaviour": "works"}],
        deeds=[{"deed": 1, "id": "done_1", "by": 1, **facts}],
        ended={"job-0/blind": "done"},
        inbox=[],
        unknown_then=set(),
        receipts=[{"effect_id": "eff_1", "state": "committed", "provider_id": "done_1", "found_by": "executed"}],
    )


def test_judge_finds_nothing_wrong_with_one_deed() -> None:
    assert broken_rules(_evidence()) == []


def _second_deed(evidence: EffectEvidence) -> None:
    evidence.deeds.append(evidence.deeds[0] | {"deed": 2, "id": "done_2"})


def _second_arrival(evidence: EffectEvidence) -> None:
    evidence.arrivals.append(evidence.arrivals[0] | {"arrival": 2, "behaviour": "resets_before"})


def _blind_repeat(evidence: EffectEvidence) -> None:
    evidence.effects[0].events = [CALLED, UNKNOWN, CALLED, DONE]


def _unclaimed_arrival(evidence: EffectEvidence) -> None:
    evidence.arrivals.append(evidence.arrivals[0] | {"arrival": 2, "key": "other"})


def _second_effect(evidence: EffectEvidence) -> None:
    evidence.effects.append(dataclasses.replace(evidence.effects[0], effect_id="eff_2", effect_key="k2"))


def _unknown_without_card(evidence: EffectEvidence) -> None:
    evidence.unknown_then.add("eff_1")


def _card_without_unknown(evidence: EffectEvidence) -> None:
    evidence.inbox.append({"effect_id": "eff_1", "job_id": "job_1", "kind": "quarantine"})


def _left_unknown(evidence: EffectEvidence) -> None:
    evidence.effects[0].state = "unknown"


def _lost_program(evidence: EffectEvidence) -> None:
    evidence.ended.clear()


def _invented_deed(evidence: EffectEvidence) -> None:
    evidence.deeds.clear()
    evidence.arrivals[0]["said"] = None


def _denied_deed(evidence: EffectEvidence) -> None:
    evidence.effects[0].state = "failed"


def _wrong_word(evidence: EffectEvidence) -> None:
    evidence.ended["job-0/blind"] = "failed"


def _missing_receipt(evidence: EffectEvidence) -> None:
    evidence.receipts.clear()


def _wrong_source(evidence: EffectEvidence) -> None:
    evidence.receipts[0]["found_by"] = "reported"


def _fault(evidence: EffectEvidence) -> None:
    evidence.faults.append("a worker ended by itself")


WRONGS = {
    "nothing_is_done_twice": [_second_deed],
    "nothing_is_repeated_blindly": [_second_arrival, _blind_repeat],
    "every_arrival_has_a_claim": [_unclaimed_arrival],
    "one_intention_is_one_effect": [_second_effect],
    "every_unknown_is_in_the_inbox": [_unknown_without_card, _card_without_unknown],
    "every_effect_is_settled": [_left_unknown, _lost_program],
    "states_agree_with_the_vendor": [_invented_deed, _denied_deed, _wrong_word],
    "receipts_agree": [_missing_receipt, _wrong_source],
    "nothing_went_wrong_on_the_way": [_fault],
}


def test_judge_finds_every_kind_of_wrong() -> None:
    assert WRONGS.keys() == {rule.__name__ for rule in RULES}
    for rule, changes in WRONGS.items():
        for change in changes:
            evidence = _evidence()
            change(evidence)
            assert any(each.startswith(rule) for each in broken_rules(evidence)), (rule, change.__name__)
