"""Jobs for the storm with every kind of boundary, and results that can be computed without a run.

A *subject* names one intention (one prompt, one deed) and stands in one place of one job only, so that whoever counts outside
can tell a repetition from a second intention.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Callable, Collection
from typing import Any

import msgspec

import overnight


class Case(msgspec.Struct, frozen=True):
    """One job of the storm. `name` is unique in it."""

    name: str
    number: int


class NotYet(Exception):
    """What a step raises that succeeds only at its third try."""


# ── the outside world ────────────────────────────────────────────────────────────────────────────────────────────────


async def ask_outside(**question: Any) -> dict[str, Any]:
    """One question to the harness, which plays the world outside."""
    host, _, port = os.environ["CRASH_OUTSIDE"].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(json.dumps(question).encode() + b"\n")
        await writer.drain()
        return json.loads(await reader.readline())
    finally:
        writer.close()


def _deed(subject: str, value: str, key: str) -> dict[str, Any]:
    return {"op": "do", "subject": subject, "value": value, "key": key, "pid": os.getpid()}


def _done(answer: dict[str, Any], subject: str, value: str) -> overnight.Done:
    if answer["refused"]:
        raise overnight.NotDone(f"{subject}: the other side is busy")
    return overnight.Done(str(answer["id"]), value)


@overnight.effect(timeout_s=20, settle_after_s=0.3)
def post(subject: str, value: str, idempotency_key: str) -> str:
    """In a thread, and sent in the same breath: nothing but the check of the lease stands between its claim and its arrival."""
    host, _, port = os.environ["CRASH_OUTSIDE"].rpartition(":")
    with socket.create_connection((host, int(port))) as connection, connection.makefile("rwb") as line:
        line.write(json.dumps(_deed(subject, value, idempotency_key)).encode() + b"\n")
        line.flush()
        answer = json.loads(line.readline())
    return _done(answer, subject, value)  # type: ignore[return-value]


@post.status_check
async def find_post(idempotency_key: str, value: str, **_: Any) -> object:
    found = (await ask_outside(op="look", key=idempotency_key))["id"]
    return overnight.NOT_DONE if found is None else overnight.Done(str(found), value)


@overnight.effect(timeout_s=20)
async def post_blind(subject: str, value: str, idempotency_key: str) -> str:
    """Nobody can ask what became of it."""
    answer = await ask_outside(**_deed(subject, value, idempotency_key))
    return _done(answer, subject, value)  # type: ignore[return-value]


async def post_moody(subject: str, value: str) -> str:
    """The other side refuses a subject that ends in /moody once; then it is asked for again, as another effect."""
    try:
        return await post(subject, value)
    except overnight.EffectFailed:
        return await post(subject, value)


async def blind(subject: str, value: str) -> str:
    try:
        return await post_blind(subject, value)
    except overnight.EffectFailed:
        return "rejected"


async def say(subject: str, task: str | None = None) -> str:
    return (await overnight.chat(f"say {subject}", task=task)).text


# ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@overnight.step
async def add(left: int, right: int) -> int:
    await asyncio.sleep(0.002)
    return left + right


@overnight.step
async def inside(case: Case, subject: str) -> list[Any]:
    """Steps, a model call and an effect inside of a step."""
    first = await add(case.number, 1)
    said = await say(subject)
    await post(subject, said)
    return [await add(first, 1), said]


@overnight.step(retry=overnight.Retry(attempts=40, backoff_s=0.02, max_backoff_s=0.02))
async def third_time(subject: str) -> str:
    """What lies before its last committed effect must not be asked or done again by a retry."""
    said = await say(subject)
    await post(subject, said)
    if (await ask_outside(op="try", name=subject))["nth"] < 3:
        raise NotYet(subject)
    return said


# ── jobs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@overnight.job
async def sequence(case: Case) -> list[Any]:
    values = [overnight.now().isoformat(), overnight.random(), overnight.uuid()]
    total = 0
    for number in range(4):
        total = await add(total, case.number + number)
    said = await say(f"{case.name}/first")
    await post(f"{case.name}/first", json.dumps(values))
    nested = await inside(case, f"{case.name}/nested")
    await post_moody(f"{case.name}/moody", str(values[2]))
    values.append(overnight.uuid())
    await post(f"{case.name}/last", json.dumps(values))
    return [values, total, said, nested]


async def _lane(case: Case, lane: str) -> list[Any]:
    subject = f"{case.name}/{lane}"
    first = await add(case.number, len(lane))
    said = await say(subject)
    mark = overnight.uuid()
    await post(subject, mark)
    return [await add(first, 1), said]


@overnight.job
async def branches(case: Case) -> list[Any]:
    async with asyncio.TaskGroup() as group:
        shaky = [group.create_task(say(f"{case.name}/shaky-{n}", task="shaky")) for n in range(2)]
        lanes = await asyncio.gather(*(_lane(case, "x" * n) for n in range(1, 5)), inside(case, f"{case.name}/in"))
    pairs = await asyncio.gather(*(asyncio.gather(add(n, 1), add(n, 2)) for n in range(2)))
    return [lanes, [task.result() for task in shaky], [list(pair) for pair in pairs]]


@overnight.job
async def child(case: Case) -> list[Any]:
    if case.number < 0:
        await add(1, 1)
        raise ValueError(f"{case.name} was asked to fail")
    lane = await _lane(case, "child")
    grand = await child(Case(f"{case.name}/grand", case.number - 1)) if case.number % 2 else []
    return [lane, grand]


async def _failing(case: Case) -> str:
    try:
        await child(Case(f"{case.name}/bad", -1))
    except overnight.JobFailed:
        return "failed"
    return "succeeded"


@overnight.job
async def family(case: Case) -> list[Any]:
    children = [child(Case(f"{case.name}/{n}", n)) for n in range(2)]
    return list(await asyncio.gather(*children, _failing(case), _lane(case, "own")))


async def _approved(case: Case, label: str) -> str:
    answer = await overnight.approval(f"{case.name}/{label}")
    return await post(f"{case.name}/{label}", "approved") if answer.approved else "refused"


async def _slept(case: Case) -> int:
    await overnight.sleep(0.2)
    first = await add(case.number, 0)
    await overnight.sleep(1.3)
    return await add(first, 1)


@overnight.job
async def waits(case: Case) -> list[Any]:
    done = await asyncio.gather(_approved(case, "ask"), _slept(case), blind(f"{case.name}/blind", "b"))
    return [*done, await _approved(case, "again")]


@overnight.job
async def stubborn(case: Case) -> list[Any]:
    return list(await asyncio.gather(third_time(f"{case.name}/left"), third_time(f"{case.name}/right")))


@overnight.job
async def unseen(case: Case) -> list[Any]:
    """Effects that only a person can tell about, in branches that go on while one of them waits."""
    hidden = [blind(f"{case.name}/hidden-{n}", str(n)) for n in range(3)]
    return list(await asyncio.gather(*hidden, _lane(case, "seen"), inside(case, f"{case.name}/in")))


@overnight.job
async def timed(case: Case) -> list[Any]:
    try:
        async with overnight.timeout(0.3):
            await overnight.sleep(3600)
        first = "slept"
    except TimeoutError:
        first = "timed out"
    async with overnight.timeout(600):
        second = await say(f"{case.name}/second")
    try:
        async with overnight.timeout(0.17):
            race = await say(f"{case.name}/slow")
    except TimeoutError:
        race = "timed out"
    # The arguments of an effect are compared: had a recovery raced to another end, this job would diverge.
    await post(f"{case.name}/race", race)
    try:
        async with overnight.timeout(0.05):
            await post(f"{case.name}/cancelled", "c")
        late = "in time"
    except TimeoutError:
        late = "too late"
    with contextlib.suppress(TimeoutError):
        async with overnight.timeout(0.05):
            await blind(f"{case.name}/cancelled-blind", "c")
    await post(f"{case.name}/late", late)
    return [first, second, race, late]


# ── what must come out ───────────────────────────────────────────────────────────────────────────────────────────────

ANY = "(whatever was recorded)"


def approves(question: str) -> bool:
    """How the storm's person answers; one question in three is refused."""
    return hashlib.sha256(question.encode()).digest()[0] % 3 > 0


def rejects(subject: str) -> bool:
    """Whether that person forbids a deed that is found not to have been done, instead of having it done."""
    return hashlib.sha256(subject.encode()).digest()[1] % 3 == 0


def _heard(subject: str) -> str:
    return f"heard say {subject}"


def _expected_lane(case: Case, lane: str) -> list[Any]:
    return [case.number + len(lane) + 1, _heard(f"{case.name}/{lane}")]


def _expected_child(case: Case) -> list[Any]:
    grand = _expected_child(Case(f"{case.name}/grand", case.number - 1)) if case.number % 2 else []
    return [_expected_lane(case, "child"), grand]


def _expected_approval(case: Case, label: str) -> str:
    return "approved" if approves(f"{case.name}/{label}") else "refused"


def _expected_inside(case: Case, label: str) -> list[Any]:
    return [case.number + 2, _heard(f"{case.name}/{label}")]


def _expected_blind(case: Case, label: str, value: str, rejected: Collection[str]) -> str:
    return "rejected" if f"{case.name}/{label}" in rejected else value


Expect = Callable[[Case, Collection[str]], list[Any]]
EXPECTED: dict[str, Expect] = {
    "sequence": lambda case, _: [
        [ANY] * 4,
        4 * case.number + 6,
        _heard(f"{case.name}/first"),
        _expected_inside(case, "nested"),
    ],
    "branches": lambda case, _: [
        [*(_expected_lane(case, "x" * n) for n in range(1, 5)), _expected_inside(case, "in")],
        [_heard(f"{case.name}/shaky-{n}") for n in range(2)],
        [[1, 2], [2, 3]],
    ],
    "family": lambda case, _: [
        *(_expected_child(Case(f"{case.name}/{n}", n)) for n in range(2)),
        "failed",
        _expected_lane(case, "own"),
    ],
    "waits": lambda case, rejected: [
        _expected_approval(case, "ask"),
        case.number + 1,
        _expected_blind(case, "blind", "b", rejected),
        _expected_approval(case, "again"),
    ],
    "stubborn": lambda case, _: [_heard(f"{case.name}/left"), _heard(f"{case.name}/right")],
    "unseen": lambda case, rejected: [
        *(_expected_blind(case, f"hidden-{n}", str(n), rejected) for n in range(3)),
        _expected_lane(case, "seen"),
        _expected_inside(case, "in"),
    ],
    "timed": lambda case, _: ["timed out", _heard(f"{case.name}/second"), ANY, ANY],
}
JOBS = {"sequence": sequence, "branches": branches, "family": family, "waits": waits}
JOBS |= {"stubborn": stubborn, "unseen": unseen, "timed": timed}


def same(expected: Any, found: Any) -> bool:
    """Whether a result is the expected one; ANY stands for a value that only the run itself knows."""
    if expected == ANY:
        return found is not None
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(same, expected, found))
    return expected == found


def deeds(kind: str, case: Case, rejected: Collection[str]) -> tuple[set[str], set[str]]:
    """The subjects that must be done exactly once by a finished job, and those that may be done at most once."""
    name = case.name
    must: set[str] = set()
    if kind == "sequence":
        must = {"first", "nested", "moody", "last"}
    elif kind == "branches":
        must = {"x", "xx", "xxx", "xxxx", "in"}
    elif kind == "family":
        must = {"0/child", "1/child", "1/grand/child", "own"}
    elif kind == "waits":
        must = {"blind"} | {label for label in ("ask", "again") if approves(f"{name}/{label}")}
    elif kind == "stubborn":
        must = {"left", "right"}
    elif kind == "unseen":
        must = {"hidden-0", "hidden-1", "hidden-2", "seen", "in"}
    elif kind == "timed":
        must = {"race", "late"}
    may = {"cancelled", "cancelled-blind"} if kind == "timed" else set[str]()
    return {f"{name}/{label}" for label in must} - set(rejected), {f"{name}/{label}" for label in may}
