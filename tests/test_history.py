"""The fold of a job's log, which is pure, against trivial models."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.domain import ErrorFacts, Event, Recorded
from overnight.jobs.history import ANSWERS, FAILURES, History, fold, stale_for_retry, stale_in_step
from overnight.jobs.positions import Position, enclosing

segments = st.lists(st.tuples(st.sampled_from("/#"), st.integers(0, 12)), max_size=6)


def path_of(parts: list[tuple[str, int]]) -> str:
    return "".join(f"{mark}{number}" for mark, number in parts)


@given(segments)
def test_the_steps_a_path_lies_in(parts: list[tuple[str, int]]) -> None:
    wanted = [(path_of(parts[:n]), number) for n, (mark, number) in enumerate(parts) if mark == "#"]
    assert enclosing(path_of(parts)) == wanted[::-1]


# ── the fold ─────────────────────────────────────────────────────────────────────────────────────────────────────────

paths = st.sampled_from(["", "/0", "/1", "#0", "#0/0", "#0/1", "#1", "/0#0", "#0#0", "#0#0/2"])
NAMES = {
    "step_started": "step",
    "step_committed": "step",
    "step_failed": "step",
    "tool_called": "effect",
    "tool_succeeded": "effect",
    "tool_failed": "effect",
    "tool_unknown": "effect",
    "model_succeeded": "model",
    "model_failed": "model",
    "timer_set": "timer",
    "timer_fired": "timer",
    "value_recorded": "value",
    "review_requested": "approval",
    "review_decided": "approval",
    "child_started": "child",
    "child_finished": "child",
}
facts = st.one_of(
    st.tuples(st.sampled_from(sorted(NAMES)), paths, st.integers(0, 2)),
    st.tuples(st.sampled_from(sorted(NAMES)), paths, st.integers(0, 2)),
    st.tuples(st.just("answers_dropped"), st.lists(st.integers(1, 25), max_size=4), st.just(0)),
    st.tuples(st.sampled_from(["parked", "resumed", "replay_ended", "worker_lost"]), st.none(), st.just(0)),
)
logs = st.lists(facts, max_size=25)


def log_of(said: list[Any]) -> list[Recorded]:
    events: list[Recorded] = []
    for number, (name, where, ordinal) in enumerate(said, 1):
        event = Event(name, kind=NAMES.get(name), name="x")
        place: tuple[str | None, int | None] = (where, ordinal) if isinstance(where, str) else (None, None)
        if name == "answers_dropped":
            event.detail = {"seqs": where}
        if name == "child_finished":
            event.detail = {"state": "failed" if number % 2 else "succeeded"}
        if name in FAILURES:
            event.error = ErrorFacts("E", "x")
        events.append(Recorded("job", number, 0, event, *place))
    return events


def model(events: list[Recorded]) -> tuple[dict[Position, int], dict[Position, int]]:
    """(entries, answers): the last event of each kind at each position, without what was dropped after it was written."""
    entries: dict[Position, int] = {}
    answers: dict[Position, int] = {}
    for event in events:
        if event.facts.event == "answers_dropped":
            dropped = (event.facts.detail or {})["seqs"]
            for kept in (entries, answers):
                for place in [place for place, seq in kept.items() if seq in dropped]:
                    del kept[place]
        elif event.path is not None and event.ordinal is not None:
            kept = answers if event.facts.event in ANSWERS else entries
            kept[event.path, event.ordinal] = event.seq
    return entries, answers


def seqs(kept: dict[Position, Recorded]) -> dict[Position, int]:
    return {place: event.seq for place, event in kept.items()}


@given(logs)
def test_the_fold_keeps_the_last_of_each_position(said: list[Any]) -> None:
    events = log_of(said)
    history = fold(events)
    assert (seqs(history.entries), seqs(history.answers)) == model(events)
    assert history.last_seq == len(events)


@given(logs)
def test_the_order_is_that_of_the_commits_outside_of_finished_steps(said: list[Any]) -> None:
    history = fold(log_of(said))
    wanted = [
        answer.seq
        for place, answer in history.answers.items()
        if not any(step in history.answers for step in enclosing(place[0]))
    ]
    assert [answer.seq for answer in history.order] == sorted(wanted)


# ── retries ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def with_drop(events: list[Recorded], dropped: list[int]) -> History:
    event = Event("answers_dropped", detail={"seqs": dropped})
    return fold([*events, Recorded("job", len(events) + 1, 0, event)])


@given(logs, paths, st.integers(0, 2))
def test_a_retried_step_keeps_what_it_has_done(said: list[Any], path: str, ordinal: int) -> None:
    """Up to its last committed effect a step's answers stay, failures excepted; after it nothing stays; outside all stays."""
    events = log_of(said)
    before, step = fold(events), (path, ordinal)
    after = with_drop(events, stale_in_step(before, step))
    inside = {place: answer for place, answer in before.answers.items() if step in enclosing(place[0])}
    last = max((answer.seq for answer in inside.values() if answer.facts.event == "tool_succeeded"), default=0)
    for place, answer in before.answers.items():
        if place not in inside or answer.facts.event == "tool_succeeded":
            assert after.answers[place] is answer
        elif answer.seq > last or failed(answer):
            assert place not in after.answers
        else:
            assert after.answers[place] is answer
    outside = {place for place in before.entries if step not in enclosing(place[0])}
    assert outside <= after.entries.keys()


@given(logs)
def test_a_retried_job_never_forgets_what_it_has_done(said: list[Any]) -> None:
    events = log_of(said)
    before = fold(events)
    dropped = stale_for_retry(before)
    assert dropped == sorted(set(dropped))
    after = with_drop(events, dropped)
    for place, answer in before.answers.items():
        if answer.facts.event == "tool_succeeded":
            assert after.answers[place] is answer
    failures = [answer.seq for answer in before.order if failed(answer)]
    if failures:
        assert failures[-1] in dropped, "what the job failed of is asked afresh"
    else:
        assert dropped == []


def failed(answer: Recorded) -> bool:
    return answer.facts.event in FAILURES or (answer.facts.detail or {}).get("state") == "failed"


def plain(*said: tuple[str, str, int]) -> list[Recorded]:
    return log_of(list(said))


RETRIES: dict[str, tuple[list[tuple[str, str, int]], list[int]]] = {
    "the failed step, nothing else": (
        [("step_committed", "", 0), ("step_failed", "", 1)],
        [2],
    ),
    "a caught failure stays": (
        [("step_failed", "", 0), ("step_committed", "", 1), ("step_failed", "", 2)],
        [3],
    ),
    "a caught failure of a branch stays": (
        [("step_failed", "/0", 0), ("step_committed", "/1", 0), ("step_committed", "", 0), ("step_failed", "", 1)],
        [4],
    ),
    "all that failed side by side": (
        [("step_failed", "/0", 0), ("step_committed", "/1", 0), ("step_failed", "/2", 0)],
        [1, 3],
    ),
    "inside the step, from its last effect on": (
        [
            ("step_started", "", 0),
            ("model_succeeded", "#0", 0),
            ("tool_succeeded", "#0", 1),
            ("model_succeeded", "#0", 2),
            ("step_failed", "", 0),
        ],
        [1, 4, 5],
    ),
    "inside the step, all of it when it had no effect": (
        [("step_started", "", 0), ("model_succeeded", "#0", 0), ("value_recorded", "#0", 1), ("step_failed", "", 0)],
        [1, 2, 3, 4],
    ),
    "nothing without a failure": ([("step_committed", "", 0), ("tool_succeeded", "", 1)], []),
}


@pytest.mark.parametrize("what", RETRIES)
def test_what_a_retry_asks_afresh(what: str) -> None:
    said, dropped = RETRIES[what]
    assert stale_for_retry(fold(plain(*said))) == dropped


@given(logs, st.integers(0, 25))
def test_a_log_that_grew_is_folded_as_one(said: list[Any], cut: int) -> None:
    """Nothing in the fold depends on when it is done."""
    events = log_of(said)
    whole, again = fold(events), fold(iter(list(events)))
    assert (seqs(whole.answers), seqs(whole.entries)) == (seqs(again.answers), seqs(again.entries))
    early = fold(events[:cut])
    untouched = {place for place, seq in seqs(early.answers).items() if seqs(whole.answers).get(place) == seq}
    for event in events[cut:]:
        if event.facts.event in ANSWERS and event.path is not None:
            assert (event.path, event.ordinal) not in untouched
