"""The fold of a job's log against simple models."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.domain import ErrorFacts, Event, Recorded
from overnight.jobs.positions import Position, enclosing
from overnight.jobs.replay.history import ANSWERS, FAILURES, FROM_OUTSIDE, History, ReplayedAnswer, fold
from overnight.jobs.replay.retry_plan import RetryPlan, stale_for_retry, stale_in_step

segments = st.lists(st.tuples(st.sampled_from("/#"), st.integers(0, 12)), max_size=6)


def path_of(parts: list[tuple[str, int]]) -> str:
    return "".join(f"{mark}{number}" for mark, number in parts)


@given(segments)
def test_enclosing_steps_of_a_path(parts: list[tuple[str, int]]) -> None:
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
    """(entries, answers): the last event of each kind at each position, without what was dropped after it was written. What
    others write counts once, and only where that was asked."""
    entries: dict[Position, int] = {}
    answers: dict[Position, int] = {}
    for event in events:
        if event.facts.event == "answers_dropped":
            dropped = (event.facts.detail or {})["seqs"]
            for kept in (entries, answers):
                for place in [place for place, seq in kept.items() if seq in dropped]:
                    del kept[place]
        elif event.path is not None and event.ordinal is not None:
            place = event.path, event.ordinal
            if event.facts.event in FROM_OUTSIDE:
                asked = events[entries[place] - 1].facts.kind if place in entries else event.facts.kind
                answers |= {place: event.seq} if asked == event.facts.kind and place not in answers else {}
            else:
                (answers if event.facts.event in ANSWERS else entries)[place] = event.seq
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
def test_order_is_by_commit_outside_finished_steps(said: list[Any]) -> None:
    history = fold(log_of(said))
    wanted = [
        answer.seq
        for place, answer in history.answers.items()
        if not any(step in history.answers for step in enclosing(place[0]))
    ]
    assert [answer.seq for answer in history.order] == sorted(wanted)


# ── retries ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def with_event(events: list[Recorded], event: str, place: Position | None = None, **detail: Any) -> list[Recorded]:
    further = Recorded("job", len(events) + 1, 0, Event(event, detail=detail), *(place or (None, None)))
    return [*events, further]


def retried_step(events: list[Recorded], step: Position, unhandled: set[int] | None = None) -> list[Recorded]:
    history = fold(events)
    seqs = stale_in_step(history, step, {*failures_of(history)} if unhandled is None else unhandled)
    at = {"path": step[0], "ordinal": step[1]}
    return with_event(events, "answers_dropped", seqs=seqs, since=0, position=at)


def retried_job(events: list[Recorded]) -> list[Recorded]:
    drop = stale_for_retry(fold(events))
    return with_event(events, "answers_dropped", seqs=drop.seqs, loose=drop.loose)


def failures_of(history: History) -> list[int]:
    return [answer.seq for answer in history.answers.values() if failed(answer)]


@given(logs, paths, st.integers(0, 2), st.sets(st.integers(1, 25)))
def test_retried_step_keeps_its_effects(said: list[Any], path: str, ordinal: int, unhandled: set[int]) -> None:
    """Up to the last thing it has done a step's answers are retained, but for what it failed of; after it nothing does."""
    events = log_of(said)
    before, step = fold(events), (path, ordinal)
    unhandled &= {*failures_of(before)}
    after = fold(retried_step(events, step, unhandled))
    inside = {place: answer for place, answer in before.answers.items() if step in enclosing(place[0])}
    last = max((answer.seq for answer in inside.values() if done(answer)), default=0)
    assert after.answers == {place: answer for place, answer in before.answers.items() if place not in inside}
    stand = {place: answer for place, answer in inside.items() if answer.seq <= last and answer.seq not in unhandled}
    assert {place: each.answer for place, each in after.retained.items() if each.answer} == stand
    outside = {place: entry for place, entry in before.entries.items() if step not in enclosing(place[0])}
    assert after.entries == outside


@given(logs, st.sets(st.integers(1, 25)))
def test_retried_job_re_runs_its_failures(said: list[Any], unhandled: set[int]) -> None:
    events = with_event(log_of(said), "failed", unhandled=sorted(unhandled))
    before = fold(events)
    failures = [answer for answer in before.order if failed(answer)]
    wanted = [answer for answer in failures if answer.seq in unhandled] or failures[-1:]
    drop = stale_for_retry(before)
    assert drop.seqs == sorted(set(drop.seqs))
    assert {answer.seq for answer in wanted} == {answer.seq for answer in before.order} & {*drop.seqs}
    after = fold(retried_job(events))
    anew = {(answer.path, answer.ordinal) for answer in wanted}
    assert after.answers == {
        place: answer
        for place, answer in before.answers.items()
        if place not in anew and not anew & {*enclosing(place[0])}
    }
    assert after.entries.keys() <= after.answers.keys()
    assert list(after.loose) == list(
        range(min((answer.seq for answer in wanted), default=len(events) + 1), len(events) + 1)
    )
    for place, known in before.known().items():
        assert known.answer is None or not done(known.answer) or after.at(place).answer is known.answer
        if known.answer is None and known.entry is not None and known.entry.facts.kind in {"child", "effect"}:
            assert after.retained[place].entry is known.entry, "what an earlier attempt began outside is known"


@given(logs, st.integers(1, 26))
def test_unreached_answers_are_retained(said: list[Any], since: int) -> None:
    """What is replayed is what stood before, so that the code comes there as it did."""
    events = log_of(said)
    before = fold(events)
    after = fold(with_event(events, "answers_dropped", seqs=[], since=since))
    late = {place for place, answer in before.answers.items() if answer.seq >= since}
    stay = {place for place in before.answers if place not in late and not late & {*enclosing(place[0])}}
    assert after.answers.keys() == stay
    assert all(after.retained[place].answer is before.answers[place] for place in before.answers.keys() - stay)


@given(logs, paths, st.integers(0, 2))
def test_replayed_answer_keeps_its_age(said: list[Any], path: str, ordinal: int) -> None:
    """A step that is tried a third time knows what its first try led up to, though the second gave it again in another order."""
    step = (path, ordinal)
    second = retried_step(log_of(said), step)
    stand = {place: each.answer for place, each in fold(second).retained.items() if each.answer is not None}
    third = second
    for place in sorted(stand, reverse=True):
        third = with_event(third, "boundary_kept", place, of=stand[place].seq)
    again = fold(third)
    for event in third[len(second) :]:
        place = (event.path or "", event.ordinal or 0)
        answer = again.answers[place]
        assert isinstance(answer, ReplayedAnswer)
        assert (answer.seq, answer.first, answer.facts) == (event.seq, stand[place].seq, stand[place].facts)
    assert not {answer.seq for answer in again.answers.values() if isinstance(answer, ReplayedAnswer)} & {
        *stale_in_step(again, step, ())
    }


def done(answer: Recorded) -> bool:
    return answer.facts.event == "tool_succeeded" or (answer.facts.detail or {}).get("state") == "succeeded"


def failed(answer: Recorded) -> bool:
    return answer.facts.event in FAILURES or (answer.facts.detail or {}).get("state") == "failed"


def plain(*said: tuple[str, str, int]) -> list[Recorded]:
    return log_of(list(said))


Said = list[tuple[str, str, int]]
RETRIES: dict[str, tuple[Said, list[int], RetryPlan]] = {
    "the failed step, nothing else": (
        [("step_committed", "", 0), ("step_failed", "", 1)],
        [2],
        RetryPlan([2], 2),
    ),
    "a failure that the code went on from stays": (
        [("step_failed", "", 0), ("step_committed", "", 1), ("step_failed", "", 2)],
        [3],
        RetryPlan([3], 3),
    ),
    "all that failed side by side": (
        [("step_failed", "/0", 0), ("step_committed", "/1", 0), ("step_failed", "/2", 0)],
        [1, 3],
        RetryPlan([1, 3], 1),
    ),
    "the last failure, where the code raised by itself": (
        [("step_failed", "", 0), ("step_committed", "", 1), ("tool_failed", "", 2), ("step_committed", "", 3)],
        [],
        RetryPlan([3], 3),
    ),
    "inside the step, from its last effect on": (
        [
            ("step_started", "", 0),
            ("model_succeeded", "#0", 0),
            ("tool_succeeded", "#0", 1),
            ("model_succeeded", "#0", 2),
            ("step_failed", "", 0),
        ],
        [5],
        RetryPlan([1, 4, 5], 5),
    ),
    "inside the step, all of it when it had no effect": (
        [("step_started", "", 0), ("model_succeeded", "#0", 0), ("value_recorded", "#0", 1), ("step_failed", "", 0)],
        [4],
        RetryPlan([1, 2, 3, 4], 4),
    ),
    "inside the step, nothing that a child job has led to": (
        [
            ("step_started", "", 0),
            ("child_started", "#0", 0),
            ("model_succeeded", "#0", 1),
            ("child_finished", "#0", 0),
            ("model_succeeded", "#0", 2),
            ("step_failed", "", 0),
        ],
        [6],
        RetryPlan([1, 5, 6], 6),
    ),
    "a child that failed, but not that it was started": (
        [("step_committed", "", 0), ("child_started", "", 1), ("child_finished", "", 1)],
        [3],
        RetryPlan([3], 3),
    ),
    "nothing without a failure": ([("step_committed", "", 0), ("tool_succeeded", "", 1)], [], RetryPlan([], 4)),
}


@pytest.mark.parametrize("what", RETRIES)
def test_answers_that_a_retry_re_runs(what: str) -> None:
    said, unhandled, drop = RETRIES[what]
    assert stale_for_retry(fold(with_event(log_of(said), "failed", unhandled=unhandled))) == drop


@given(logs, st.integers(0, 25))
def test_incremental_fold_equals_full_fold(said: list[Any], cut: int) -> None:
    """Nothing in the fold depends on when it is done."""
    events = log_of(said)
    whole, again = fold(events), fold(iter(list(events)))
    assert (seqs(whole.answers), seqs(whole.entries)) == (seqs(again.answers), seqs(again.entries))
    early = fold(events[:cut])
    untouched = {place for place, seq in seqs(early.answers).items() if seqs(whole.answers).get(place) == seq}
    for event in events[cut:]:
        if event.facts.event in ANSWERS - FROM_OUTSIDE and event.path is not None:
            assert (event.path, event.ordinal) not in untouched


# ── retained boundaries ────────────────────────────────────────────────────────────────────────────────────────────────

ASKED = {"kind": "step", "name": "x"}


def retried() -> list[Recorded]:
    """A step that ended at 2, a child job and a question that were begun; and a retry that could not come to the step."""
    events = log_of([("step_started", "/1", 0), ("step_committed", "/1", 0), ("child_started", "/2", 0)])
    events = with_event(events, "review_requested", ("/3", 0), review_id="rev")
    events[2].facts.detail, events[3].facts.kind = {"child_job_id": "one"}, "approval"
    return with_event(events, "answers_dropped", seqs=[], since=2)


def test_retained_answer_serves_the_same_request() -> None:
    events = retried()
    history = fold(events)
    assert (history.answers, history.entries) == ({}, {})
    assert history.recall(("/1", 0), ASKED) is events[1]
    assert history.recall(("/1", 0), ASKED | {"name": "y"}) is None
    assert ("/1", 0) not in history.retained, "asked otherwise it is forgotten"
    kept = fold(with_event(events, "boundary_kept", ("/1", 0), of=2))
    assert (kept.answers["/1", 0].seq, kept.answers["/1", 0].facts) == (6, events[1].facts)


def test_end_of_an_earlier_entry_answers_it() -> None:
    """A child that ends before the retry has come to it answers nothing yet: the code may not come there this time."""
    events = with_event(retried(), "child_finished", ("/2", 0), child_job_id="one", state="succeeded")
    events[-1].facts.kind = "child"
    history = fold(events)
    assert ("/2", 0) not in history.answers
    assert history.retained["/2", 0].answer is events[-1]
    begun = fold(with_event(events, "boundary_kept", ("/2", 0)))
    assert (begun.answers["/2", 0], begun.entries["/2", 0]) == (events[-1], events[2])


@pytest.mark.parametrize(("place", "kind"), [(("/2", 0), "child"), (("/3", 0), "approval")])
def test_event_without_waiting_boundary_is_ignored(place: Position, kind: str) -> None:
    ended = {"child": "child_finished", "approval": "review_decided"}[kind]
    events = with_event(retried(), ended, place, child_job_id="another", review_id="another")
    events[-1].facts.kind = kind
    history = fold(events)
    assert place not in history.answers
    assert history.retained[place].answer is None


def test_boundary_has_one_answer() -> None:
    """A failed child that somebody resumes after its parent went on from that tells it in vain."""
    events = with_event(log_of([("child_started", "", 0), ("child_finished", "", 0)]), "child_finished", ("", 0))
    events[-1].facts.kind = "child"
    assert fold(events).answers["", 0] is events[1]
