"""Job code receives the same value live and in a replay; values without a JSON form are rejected."""

import asyncio
import enum
import math
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any

import msgspec
import pytest

import overnight
from job_runs import overnight_decision, rest, run, working
from overnight.jobs import Operations
from overnight.ledger import Ledger
from overnight.store import Store


class Colour(enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    BIG = 3


@overnight.step
async def a_float() -> float:
    return 0


@overnight.step
async def maybe_a_float() -> float | None:
    return 0


@overnight.step
async def an_int() -> int:
    return 2.0  # type: ignore[return-value]


@overnight.step
async def a_decimal() -> Decimal:
    return 5  # type: ignore[return-value]


@overnight.step
async def a_day() -> date:
    return "2026-01-31"  # type: ignore[return-value]


@overnight.step
async def a_colour() -> Colour:
    return "red"  # type: ignore[return-value]


@overnight.step
async def a_size() -> Size:
    return 3  # type: ignore[return-value]


@overnight.step
async def unannotated():  # type: ignore[no-untyped-def]
    return Size.BIG, Colour.RED, Decimal("1.10"), date(2026, 1, 31)


@overnight.step
async def half_a_character() -> str:
    return "hi \ud83d"


@overnight.effect
async def half_in_an_effect(text: str = "hi \ud83d") -> dict[str, str]:
    return {"text": text}


@overnight.effect
async def sent() -> float:
    return 0


@overnight.job
async def child() -> float:
    return 0


@overnight.step
async def takes(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"


KINDS: dict[str, tuple[Any, str]] = {
    "float": (a_float, "float 0.0"),
    "float or none": (maybe_a_float, "float 0.0"),
    "int": (an_int, "float 2.0"),
    "decimal": (a_decimal, "Decimal Decimal('5')"),
    "date": (a_day, "date datetime.date(2026, 1, 31)"),
    "enum": (a_colour, "Colour <Colour.RED: 'red'>"),
    "int enum": (a_size, "Size <Size.BIG: 3>"),
    "unannotated": (unannotated, "list [3, 'red', '1.10', '2026-01-31']"),
    "effect": (sent, "float 0.0"),
    "half of a surrogate pair": (half_a_character, "str 'hi \\ud83d'"),
    "half of a surrogate pair in an effect": (half_in_an_effect, "dict {'text': 'hi \\ud83d'}"),
    "child": (child, "float 0.0"),
}


@overnight.job
async def uses(kind: str) -> list[str]:
    before = await KINDS[kind][0]()
    told = await takes(before)
    await overnight.approval("go on?")
    return [told, await takes(before)]


@pytest.mark.parametrize("kind", KINDS)
async def test_replay_returns_the_live_value(store: Store, kind: str) -> None:
    job = await run(store, uses, kind)
    if job.waits[0]["for"] == "child":
        async with working(store):
            while (job := await Ledger(store).job(job.job_id)).waits[:1] == [] or job.waits[0]["for"] == "child":
                await asyncio.sleep(0.01)
    await Operations(store).decide(job.waits[0]["review_id"], overnight_decision(answer="approve"))
    async with working(store):
        job = await rest(store, job.job_id)
    assert (job.state, job.waits) == ("succeeded", [])
    expected = KINDS[kind][1]
    assert job.result == msgspec.json.encode([expected, expected])


# ── what JSON cannot hold ────────────────────────────────────────────────────────────────────────────────────────────


class Rates(enum.Enum):
    NONE = math.nan


BAD: dict[str, Callable[[], Any]] = {
    "nan": lambda: math.nan,
    "infinity": lambda: math.inf,
    "in a list": lambda: {"rates": [1.0, (-math.inf, None)]},
    "a key": lambda: {math.inf: 1},
    "an enum": lambda: Rates.NONE,
    "a decimal": lambda: [Decimal("NaN")],
    "a decimal infinity": lambda: {"x": Decimal("Infinity")},
}


@overnight.step
async def price(kind: str) -> Any:
    return BAD[kind]()


@overnight.job
async def goes_on(kind: str) -> list[str]:
    """Goes on from the refusal, so that a replay must come to it again."""
    try:
        await price(kind)
        said = "kept"
    except overnight.StepFailed as error:
        said = str(error)
    told = await takes(said)
    await overnight.approval("go on?")
    return [said, told]


@pytest.mark.parametrize("kind", BAD)
async def test_nan_and_infinity_are_rejected_at_commit(store: Store, kind: str) -> None:
    job = await run(store, goes_on, kind)
    failed = [event for event in await Ledger(store).events(job.job_id) if event.facts.event == "step_failed"]
    assert [event.facts.error.error_class for event in failed if event.facts.error] == ["BadInput"]
    await Operations(store).decide(job.waits[0]["review_id"], overnight_decision(answer="approve"))
    async with working(store):
        job = await rest(store, job.job_id)
    assert (job.state, job.waits) == ("succeeded", [])
    said = (job.result or b"").decode()
    assert "step price: " in said
    assert "JSON has neither NaN nor infinities" in said
    assert any(word in said for word in ("is nan", "is inf", "is -inf", "is NaN", "is Infinity"))


async def test_values_next_to_null_and_nan_words_are_kept(store: Store) -> None:
    job = await run(store, fine)
    assert (job.state, job.result) == ("succeeded", b'[null,{"information":"banana"},0.5,"NaN"]')


@overnight.step
async def fine_step() -> Any:
    return [None, {"information": "banana"}, 0.5, "NaN"]


@overnight.job
async def fine() -> Any:
    return await fine_step()


@overnight.job
async def ends_infinite() -> float:
    return math.inf


async def test_job_returning_infinity_fails_with_its_reason(store: Store) -> None:
    job = await run(store, ends_infinite)
    assert job.state == "failed"
    assert "the result of job ends_infinite: value is inf" in (job.error or "")


@overnight.effect
async def measure() -> float:
    done.append("measured")
    return math.nan


@measure.status_check
async def measured(idempotency_key: str) -> Any:
    return overnight.Done("m-1", 1.5)


done: list[str] = []


@overnight.job
async def measures() -> list[Any]:
    return [await measure()]


async def test_effect_with_unstorable_result_is_not_repeated(store: Store) -> None:
    done.clear()
    job = await run(store, measures)
    assert (job.state, job.result, done) == ("succeeded", b"[1.5]", ["measured"])
    (unknown,) = [event for event in await Ledger(store).events(job.job_id) if event.facts.event == "tool_unknown"]
    assert "the result of effect measure: value is nan" in (unknown.facts.decision or {})["why"]


@overnight.job
async def asks_the_impossible() -> list[str]:
    said: list[str] = []
    for asking in (
        lambda: takes_rate(math.nan),
        lambda: overnight.chat("hi", temperature=math.nan),
        lambda: overnight.approval("?", rate=math.inf),
        lambda: child_of(math.nan),
        lambda: overnight.sleep(math.inf),
    ):
        try:
            await asking()
        except Exception as error:
            said.append(type(error).__name__)
    said.append(await takes("after"))
    await overnight.approval("go on?")
    return said


@overnight.effect
async def takes_rate(rate: float) -> None: ...


@overnight.job
async def child_of(rate: float) -> None: ...


async def test_early_rejection_is_repeated_in_a_replay(store: Store) -> None:
    job = await run(store, asks_the_impossible)
    await Operations(store).decide(job.waits[0]["review_id"], overnight_decision(answer="approve"))
    async with working(store):
        job = await rest(store, job.job_id)
    assert (job.state, job.waits) == ("succeeded", [])
    assert job.result == msgspec.json.encode(["BadInput"] * 5 + ["str 'after'"])
