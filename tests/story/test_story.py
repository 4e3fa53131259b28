"""The timeline of jobs with a real gateway and a scripted provider, and of rare events."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import overnight
from overnight.app import App, open_app
from overnight.domain import EVENT_NAMES, ErrorFacts, Event, Recorded
from overnight.jobs import Complete, CreateJob, JobFunction, Operations
from overnight.ledger import Append, JobRow, NewJob
from overnight.settings import Settings
from overnight.story import (
    JobTree,
    Line,
    Timeline,
    build_timeline,
    clean,
    cost_text,
    load_job_tree,
    public_timeline,
    span_text,
    tree_costs,
)
from overnight.testing import SpawnedProvider

SECOND = 1_000_000
RULES = """
rules:
  - match: {model: claude-opus-4.6, user_contains: busy}
    fault: {status: 529, retry_after_ms: 1}
  - match: {user_contains: look it up}
    answer: {tool_calls: [{name: find_order, arguments: {id: 7}}, {name: find_customer, arguments: {}}]}
"""
ROUTING = """
default_model: gpt-5.4-mini
routes: {draft: claude-opus-4.6}
budgets: {max_llm_calls_per_job: 6}
fallbacks: [{from: claude-opus-4.6, to: gpt-5.4}]
retries: {max_attempts: 2, backoff_ms: 1}
"""


@pytest.fixture
def provider(provider: SpawnedProvider) -> SpawnedProvider:
    provider.set_rules(RULES)
    return provider


@pytest.fixture
async def app(store_url: str, tmp_path: Path, provider: SpawnedProvider) -> AsyncIterator[App]:
    brain = tmp_path / "brain"
    brain.mkdir()
    (brain / "routing.yaml").write_text(ROUTING)
    chosen = Settings(tmp_path, store_url, brain)
    async with open_app(chosen, offline_base_url=provider.base_url) as opened:
        yield opened


async def play(app: App, function: JobFunction[..., Any], *args: Any) -> JobRow:
    job = await Operations(app.store).create(function, args, actor="anna")
    return await app.operations.work_until_rest(job.job_id)


async def told(app: App, job: JobRow, **options: bool) -> Timeline:
    job = await app.ledger.job(job.job_id)
    chapter = await load_job_tree(app.ledger, job, **options)
    return build_timeline(chapter, app.store.clock(), **options)


def texts(story: Timeline) -> list[str]:
    return ["  " * line.depth + line.text for line in story.lines]


def line(story: Timeline, beginning: str) -> Line:
    found = [each for each in story.lines if each.text.startswith(beginning)]
    assert found, f"no line begins with {beginning!r} in:\n" + "\n".join(texts(story))
    return found[0]


# ── steps, branches, children ────────────────────────────────────────────────────────────────────────────────────────

tries: list[int] = []


@overnight.step(retry=overnight.Retry(attempts=2, backoff_s=0.01))
async def fetch(secret: str) -> str:
    tries.append(1)
    if len(tries) == 1:
        raise ConnectionError("the shop answered 502")
    inner = await deeper(secret)
    return inner + secret


@overnight.step
async def deeper(secret: str) -> str:
    return secret


@overnight.job
async def part(number: int) -> int:
    await deeper("part")
    return number


@overnight.job
async def whole() -> str:
    got = await fetch("s3cret")
    await asyncio.gather(two(), deeper("b"))
    assert await part(1) == 1
    return got


async def two() -> None:
    await deeper("a1")
    await deeper("a2")


async def test_events_are_shown_at_their_place(app: App) -> None:
    tries.clear()
    story = await told(app, await play(app, whole))
    shown = texts(story)
    assert shown[0].startswith("started by worker …")
    at = shown.index("step fetch: done at attempt 2")
    assert shown[at + 1] == "  attempt 1 of fetch failed: ConnectionError: the shop answered 502; retry after 10 ms"
    assert shown[at + 2] == "  step deeper"
    branch = shown.index("branch 1")
    assert shown[branch : branch + 4] == ["branch 1", "  step deeper", "  step deeper", "step deeper"]
    assert story.lines[branch + 3].facts[-1] == "branch 2"
    child = shown.index("child job part: succeeded")
    assert shown[child + 1] == "  step deeper"
    assert shown[-1] == "succeeded"
    header = story.header
    assert (header.state, header.steps, header.retries, header.child_jobs, header.crashes) == ("succeeded", 6, 1, 1, 0)
    assert story.advice == []


async def test_content_is_shown_on_request_only(app: App) -> None:
    tries[:] = [1]
    job = await play(app, whole)
    chapter = await load_job_tree(app.ledger, job)
    story = build_timeline(chapter, app.store.clock())
    silent = msgspec.json.encode(public_timeline(chapter, story, app.store.clock())).decode()
    assert "s3cret" not in silent
    story = await told(app, job, with_content=True)
    assert [shown.text for shown in line(story, "step fetch").content] == ["s3crets3cret"]
    assert line(story, "succeeded").content[0].what == "result"


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@overnight.job
async def asks(questions: list[str]) -> str:
    for question in questions:
        await overnight.chat(question, task="draft")
    return ""


async def test_call_line_shows_the_decision_and_reason(app: App, provider: SpawnedProvider) -> None:
    story = await told(app, await play(app, asks, ["hello", "look it up", "busy today"]))
    first, second, third = (each for each in story.lines if each.kind == "model")
    assert first.text == "model draft → claude-opus-4.6: answered in text"
    assert first.why == "x-task draft matches the route"
    assert any(fact.endswith("out") for fact in first.facts)
    assert "scripted, offline" in first.facts
    assert second.text == "model draft → claude-opus-4.6: requested 2 tools: find_order, find_customer"
    assert second.why == "", "the reason is told once"
    assert third.text == "model draft → gpt-5.4: answered in text"
    shown = texts(story)
    at = shown.index(third.text)
    assert shown[at + 1].startswith("  failed at claude-opus-4.6: overloaded")
    assert "2 times" in story.lines[at + 1].facts
    assert shown[at + 2] == "  fallback from claude-opus-4.6 to gpt-5.4"
    assert story.lines[at + 2].why.startswith("overloaded")
    header = story.header
    assert (header.model_calls, header.paid_calls, header.retries, header.fallbacks) == (5, 3, 1, 1)
    assert header.cost_microusd > 0
    assert (await tree_costs(app.ledger, [header.job_id]))[header.job_id] == (3, header.cost_microusd, 0)


async def test_prompts_and_answers_are_shown_with_content(app: App) -> None:
    job = await play(app, asks, ["hello"])
    quiet = await told(app, job)
    assert "hello" not in "".join(texts(quiet))
    model = line(await told(app, job, with_content=True), "model draft")
    assert [shown.what for shown in model.content] == ["prompt", "answer"]
    assert "hello" in model.content[0].text


async def test_budget_stop_is_shown_with_instructions(app: App) -> None:
    story = await told(app, await play(app, asks, list("1234567")))
    assert story.header.state == "parked"
    stop = line(story, "budget limit reached")
    assert "6 of 6 model calls" in stop.text
    assert story.header.waiting[0].startswith("budget: ")
    top_up, resume = story.advice[0].commands
    assert top_up.startswith(f"overnight budget top-up job {story.header.job_id} --calls ")
    assert resume == f"overnight resume {story.header.job_id}"
    assert "max_llm_calls_per_job" in story.advice[0].text


async def test_budget_stop_between_attempts_is_shown_at_its_call(app: App) -> None:
    story = await told(app, await play(app, asks, ["1", "2", "3", "4", "busy"]))
    shown = texts(story)
    at = next(at for at, text in enumerate(shown) if text.startswith("  failed at claude-opus-4.6"))
    assert shown[at + 1].startswith("  fallback from") or shown[at + 1].startswith("  budget limit reached")
    assert any(text.startswith("  budget limit reached: ") for text in shown[at:])


async def test_cost_of_a_job_includes_its_children(app: App) -> None:
    job = await play(app, parent_of_asks)
    story = await told(app, job)
    assert story.header.model_calls == 2
    assert (await tree_costs(app.ledger, [job.job_id]))[job.job_id] == (2, story.header.cost_microusd, 0)


@overnight.job
async def parent_of_asks() -> None:
    await overnight.chat("mine")
    await asks(["my child's"])


# ── people and effects ───────────────────────────────────────────────────────────────────────────────────────────────


@overnight.effect
def transfer(amount: int) -> str:
    raise TimeoutError("the bank did not answer")


@overnight.job
async def pays() -> str:
    decided = await overnight.approval("Pay the refund?", amount=40)
    if not decided.approved:
        return "kept"
    return await transfer(40)


async def test_reviews_and_decisions_are_shown(app: App) -> None:
    job = await play(app, pays)
    story = await told(app, job)
    review = job.waits[0]["review_id"]
    assert line(story, "review requested: Pay the refund?").facts == [review]
    assert story.lines[-1].text == f"parked: waits for approval ({review})"
    assert story.advice[0].commands == (f"overnight reviews approve {review}", f"overnight reviews reject {review}")

    await app.operations.decide_review(review, "approve", "berta", "checked it")
    job = await app.operations.work_until_rest(job.job_id)
    story = await told(app, job)
    decision = line(story, "berta approved: Pay the refund?")
    assert decision.why == "“checked it”"
    assert line(story, "resumed by").text.endswith("replayed 1 recorded answer at no cost")
    tool = texts(story).index("tool transfer")
    assert story.lines[tool].status == "unknown"
    assert "TimeoutError: the bank did not answer" in story.lines[tool + 1].text
    review = job.waits[0]["review_id"]
    assert f"overnight reviews approve {review} --not-done" in story.advice[0].commands

    await app.operations.decide_review(review, "done", "carla", provider_id="BANK-7", result=b'"paid"')
    job = await app.operations.work_until_rest(job.job_id)
    story = await told(app, job)
    settled = [each for each in story.lines if each.text == "tool transfer: done"]
    assert settled[-1].facts == ["provider id BANK-7"]
    assert settled[-1].why == "confirmed by carla"
    assert (story.header.state, story.header.human_decisions) == ("succeeded", 2)


@overnight.job
async def fails() -> None:
    await deeper("x")
    raise RuntimeError("a bad night\x1b[31m")


async def test_failed_job_shows_instructions(app: App) -> None:
    job = await play(app, fails)
    story = await told(app, job)
    assert story.header.error == "RuntimeError: a bad night�[31m"
    assert story.lines[-1].text == "failed: RuntimeError: a bad night�[31m"
    assert story.advice[0].commands == (f"overnight resume {job.job_id}",)
    await app.operations.resume(job.job_id, "dora")
    story = await told(app, job)
    assert line(story, "attempt 2 by dora")
    assert story.header.state == "queued"
    assert f"overnight resume {job.job_id}" in story.advice[0].commands
    assert story.header.retries == 1


@overnight.step
async def wobbles() -> str:
    tries.append(1)
    if len(tries) < 2:
        raise ConnectionError("the shop answered 502")
    return "found"


@overnight.job
async def searches() -> str:
    await deeper("before")
    return await wobbles()


@overnight.job
async def asks_a_child() -> str:
    await deeper("beside")
    return await searches()


async def test_retried_child_is_shown_once_per_attempt(app: App) -> None:
    tries.clear()
    job = await play(app, asks_a_child)
    await app.operations.resume(job.job_id, "dora")
    await app.operations.work_until_rest(job.job_id)
    story = await told(app, job)
    error = "ConnectionError: the shop answered 502"
    assert [text.split(" by worker")[0] for text in texts(story)] == [
        "started",
        "step deeper",
        f"child job searches: failed: StepFailed: {error}",
        "  step deeper",
        f"  step wobbles: {error}",
        f"  failed: StepFailed: {error}",
        f"failed: JobFailed: child job searches failed: {error}",
        "attempt 2 by dora: retries the failed part",
        "resumed",
        "child job searches is retried with its parent: succeeded",
        "  attempt 2 with its parent: retries the failed part",
        "  resumed",
        "  step wobbles",
        "succeeded",
    ]
    assert (story.header.state, story.header.child_jobs, story.header.steps) == ("succeeded", 1, 3)


@overnight.job
async def naps() -> None:
    await overnight.sleep(3600)


async def test_timer_requires_no_person(app: App) -> None:
    job = await Operations(app.store).create(naps)
    async with app.working():
        async with asyncio.timeout(10):
            while (job := await app.ledger.job(job.job_id)).state != "parked":
                await asyncio.sleep(0.01)
    story = await told(app, job)
    assert line(story, "sleeps 1 h, until ").status == "waiting"
    assert story.header.waiting[0].startswith("a timer: ")
    assert story.advice[0].commands == ()
    assert story.header.parked_us > 0


# ── what other rooms and other processes write ───────────────────────────────────────────────────────────────────────


def history(*events: Event, job: dict[str, Any] | None = None, every_us: int = 1000) -> JobTree:
    """The chapter of a job whose log is these events; a detail `path` or `ordinal` in `trace_id` is its position."""
    row = JobRow(
        *("job_01", "default", None, None, "job_01", "python", "made", None, None, None, None, None, None, None, None),
        *("running", "[]", 1, 1, "worker", 2**60, None, 0, len(events), None, None, None, 0, SECOND, SECOND, None),
        *(SECOND, None),
    )
    row = msgspec.structs.replace(row, **(job or {}))
    recorded: list[Recorded] = []
    for number, event in enumerate(events, 1):
        path, _, ordinal = (event.trace_id or "").rpartition(":")
        place = (path, int(ordinal)) if event.trace_id else (None, None)
        recorded.append(Recorded("job_01", number, SECOND + number * every_us, event, *place))
    return JobTree(row, recorded)


def begun(*events: Event) -> list[Event]:
    return [Event("created", actor="anna"), Event("started", actor="worker"), *events]


KEPT = [
    Event("answers_dropped", detail={"seqs": [], "since": 4}),
    Event("boundary_kept", name="read", kind="step", detail={"of": 4}, trace_id=":1"),
    Event("boundary_kept", name="go on?", kind="approval", trace_id=":2"),
    Event("review_decided", name="go on?", kind="approval", actor="carla", decision={"approved": True}, trace_id=":2"),
    Event(
        "boundary_kept", name="part", kind="child", detail={"child_job_id": "job_02", "state": "running"}, trace_id=":3"
    ),
]


def test_answers_kept_by_a_retry_are_marked() -> None:
    story = build_timeline(history(*begun(*KEPT)), 10 * SECOND)
    assert texts(story) == [
        "started by worker",
        "answers from event 4 on are replayed only where the code requests them again",
        "step read: replayed",
        "review requested: go on?: started by an earlier attempt",
        "carla approved: go on?",
        "child job part is awaited again",
    ]
    assert [each.status for each in story.lines[2:4]] == ["replayed", "done"]


CRASH = [
    Event("worker_lost", actor="worker", detail={"recoveries": 1}),
    Event("resumed", actor="other", decision={"why": "recovery: its worker was lost"}),
    Event("replay_ended", detail={"answers": 3}),
]


def test_crash_is_shown_with_interrupted_and_replayed_work() -> None:
    story = build_timeline(
        history(
            *begun(Event("step_started", name="slow", trace_id=":0"), Event("tool_called", name="send", trace_id=":1")),
            *CRASH,
            Event("tool_unknown", name="send", trace_id=":1", decision={"why": "its worker was lost"}),
            Event(
                "tool_succeeded", name="send", detail={"provider_id": "M1"}, decision={"why": "found"}, trace_id=":1"
            ),
        ),
        10 * SECOND,
    )
    assert texts(story) == [
        "started by worker",
        "step slow: in progress when the worker was lost",
        "tool send: in progress when the worker was lost",
        "worker lost: its process ended, or its lease expired",
        "resumed after the crash by other: replayed 3 recorded answers at no cost",
        "tool send: done",
        "  outcome unknown: its worker was lost",
        "  found",
    ]
    assert story.lines[5].facts == ["provider id M1"]
    assert (story.header.crashes, story.header.tool_calls) == (1, 1)


def test_lost_model_call_is_shown_with_its_booked_cost() -> None:
    story = build_timeline(
        history(
            *begun(Event("model_called", name="draft", model="gpt-5.4", call_id="c1", trace_id=":0")),
            *CRASH,
            Event("model_lost", model="gpt-5.4", call_id="c1", cost_microusd=12_300, decision={"why": "lost"}),
            Event("model_called", name="draft", model="gpt-5.4", call_id="c2", trace_id=":0"),
            Event("model_succeeded", name="draft", model="gpt-5.4", call_id="c2", cost_microusd=100, trace_id=":0"),
        ),
        10 * SECOND,
    )
    assert (
        line(story, "model draft → gpt-5.4: response lost in the crash, booked at an upper bound of $0.0123").why
        == "lost"
    )
    header = story.header
    assert (header.model_calls, header.lost_calls, header.bound_microusd) == (2, 1, 12_300)
    assert header.cost_microusd == 100


def test_gaps_are_shown() -> None:
    chapter = history(*begun(Event("completed")), every_us=252 * SECOND)
    gaps = [each.text for each in build_timeline(chapter, 10_000 * SECOND).lines if each.kind == "gap"]
    assert gaps == ["… 4 min 12 s later"]
    assert not [
        each for each in build_timeline(history(*begun(Event("completed"))), SECOND).lines if each.kind == "gap"
    ]


def test_long_step_is_no_gap() -> None:
    chapter = history(
        *begun(Event("step_started", name="long", trace_id=":0"), Event("step_committed", name="long", trace_id=":0")),
        every_us=60 * SECOND,
    )
    assert [each.kind for each in build_timeline(chapter, 1000 * SECOND).lines] == ["start", "gap", "step"]


def test_divergence_shows_both_sides() -> None:
    changed = {"position": {"path": "", "ordinal": 2}, "changed": {"name": {"recorded": "read", "asked": "write"}}}
    wait = msgspec.json.encode([{"for": "divergence", **changed}]).decode()
    chapter = history(*begun(Event("diverged", detail=changed)), job={"state": "parked", "waiting": wait})
    story = build_timeline(chapter, 2 * SECOND)
    assert line(story, "diverged at boundary 2").why == "name: recorded read, now write"
    assert story.advice[0].commands == ("overnight resume job_01", "overnight cancel job_01")


def test_unknown_event_is_named() -> None:
    story = build_timeline(
        history(*begun(Event("budget_settled", name="gpt", decision={"why": "60 a minute"}))), SECOND
    )
    assert line(story, "budget_settled gpt").why == "60 a minute"


async def test_restarted_external_program_is_shown_as_lost(app: App) -> None:
    new = NewJob("job_" + "f" * 32, "default", "foreign", "n8n night", external_id="x1", state="running")
    await app.store.commit(CreateJob(new))
    again = Event("attempt_started", attempt=2, actor="pid 7", detail={"mode": "recover"})
    await app.store.commit(Append(new.job_id, again))
    await app.store.commit(Append(new.job_id, Event("model_replayed", model="gpt-5.4", detail={"of": 2})))
    await app.store.commit(Complete(new.job_id, "failed", error=ErrorFacts("Boom", "it broke")))
    story = await told(app, await app.ledger.job("x1"))
    assert texts(story)[1:4] == [
        "external program lost: reconnected without having finished",
        "attempt 2 announced by pid 7: the previous attempt is blocked; recorded answers are replayed",
        "model gpt-5.4: replayed from event 2 at no cost",
    ]
    assert (story.header.crashes, story.header.replayed_calls, story.header.error) == (1, 1, "Boom: it broke")
    assert "Start its program again" in story.advice[0].text


PATHS = st.sampled_from([None, "", "/0", "/1", "#0", "/0#1", "#0/2", "/1#2/0"])
DETAILS: list[dict[str, Any] | None] = [
    None,
    {"review_id": "r", "review": "approval"},
    {"try": 2},
    {"child_job_id": "job_02", "state": "failed"},
    {"position": {"path": "#0", "ordinal": 1}, "retry_in_ms": 5},
    {"waiting": [{"for": "child"}]},
    {"seqs": [1]},
    {"due_at": 9 * SECOND},
    {"mode": "recover"},
    {"answers": 2},
    {"changed": {"name": {"asked": "x"}}},
]
EVENTS = st.builds(
    Event,
    event=st.sampled_from(sorted(EVENT_NAMES)),
    name=st.sampled_from([None, "a", "sleep", "timeout", "\x1b[2J\n"]),
    call_id=st.sampled_from([None, "c1", "c2"]),
    idempotency_key=st.sampled_from([None, "k1", "k2"]),
    model=st.sampled_from([None, "m"]),
    cost_microusd=st.sampled_from([None, 0, 7]),
    latency_ms=st.sampled_from([None, 0.0, 1.5]),
    input_ref=st.sampled_from([None, "blob://202601/chain/sha256/00"]),
    actor=st.sampled_from([None, "anna"]),
    error=st.sampled_from([None, ErrorFacts("E", "m", "c")]),
    decision=st.sampled_from(
        [None, {"why": "w"}, {"approved": True, "note": "n"}, {"from": "a", "to": "b", "why": "w"}]
    ),
    detail=st.sampled_from(DETAILS),
    kind=st.sampled_from([None, "approval", "effect"]),
    attempt=st.sampled_from([None, 1, 2]),
    trace_id=st.builds(lambda path, ordinal: path and f"{path}:{ordinal}", PATHS, st.integers(0, 3)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=30), st.sampled_from(["python", "foreign"]), st.sampled_from(["running", "failed"]))
def test_any_order_of_events_is_rendered(events: list[Event], runtime: str, state: str) -> None:
    story = build_timeline(history(*events, job={"runtime": runtime, "state": state}), 10 * SECOND, with_content=True)
    assert all(each.text.isprintable() and each.depth >= 0 for each in story.lines)
    header = story.header
    assert min(header.retries, header.crashes, header.model_calls, header.span_us, header.parked_us) >= 0
    known = {event.seq for event in history(*events).events}
    assert {seq for each in story.lines for seq in each.seqs} <= known


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("span_us", "text"),
    [
        (0, "0 ms"),
        (120, "<1 ms"),
        (812_000, "812 ms"),
        (999_700, "1.0 s"),
        (3_240_000, "3.2 s"),
        (59_960_000, "1 min"),
        (252 * SECOND, "4 min 12 s"),
        (3600 * SECOND, "1 h"),
        (11_100 * SECOND, "3 h 5 min"),
        (187_200 * SECOND, "2 d 4 h"),
    ],
)
def test_durations_are_readable(span_us: int, text: str) -> None:
    assert span_text(span_us) == text


def test_small_costs_are_not_shown_as_zero() -> None:
    assert [cost_text(cost) for cost in (0, 7, 1234, 2_500_000)] == ["$0", "<$0.0001", "$0.0012", "$2.50"]


@given(st.text())
def test_external_text_is_one_printable_line(text: str) -> None:
    assert clean(text).isprintable()
    assert len(clean(text * 50)) <= 300


def test_first_few_of_many_waits_are_shown() -> None:
    waits = [{"for": "child", "child_job_id": f"job_{number}"} for number in range(300)]
    waiting = msgspec.json.encode(waits).decode()
    story = build_timeline(history(*begun(), job={"state": "parked", "waiting": waiting}), 2 * SECOND)
    assert story.header.waiting == [*(f"child job job_{number}" for number in range(3)), "297 more child waits"]
    assert len(story.advice) == 7
    assert "294 further waits" in story.advice[-1].text
