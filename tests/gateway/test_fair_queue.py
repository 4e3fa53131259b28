"""Fair queueing: tenants take turns, and each tenant is served first come, first served."""

import asyncio
from collections import defaultdict, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine_parts import examples
from overnight.gateway.admission.admission_queue import AdmissionQueue, QueuePosition

ROW = ("", "target", "model")
OTHER = ("", "target", "other model")


def soon(seconds: float = 20.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def served_in_order(arrivals: list[str], leavers: set[int]) -> list[int]:
    """Everybody gets in line; some leave while they wait; the others are served one by one. The order in which they are."""
    lines, order = AdmissionQueue(), list[int]()
    turns = [lines.join(ROW, tenant) for tenant in arrivals]
    for number in sorted(leavers):
        turns[number].leave()

    async def serve(number: int, turn: QueuePosition) -> None:
        await turn.reach_front(soon())
        order.append(number)
        await asyncio.sleep(0)
        turn.leave()

    await asyncio.gather(*(serve(n, turn) for n, turn in enumerate(turns) if n not in leavers))
    assert lines.join_any(lambda: [ROW], "anybody") is None, "an empty line is gone"
    return order


def in_turns(arrivals: list[str], leavers: set[int]) -> list[int]:
    """The same, written down: the first of the line, then tenant after tenant."""
    waiting: dict[str, deque[int]] = defaultdict(deque)
    order: list[int] = []
    front: int | None = None
    rota: deque[str] = deque()
    for number, tenant in enumerate(arrivals):
        if front is None:
            front = number
            continue
        if not waiting[tenant]:
            rota.append(tenant)
        waiting[tenant].append(number)

    def following() -> int | None:
        if not rota:
            return None
        tenant = rota.popleft()
        number = waiting[tenant].popleft()
        if waiting[tenant]:
            rota.append(tenant)
        return number

    for number in sorted(leavers):
        tenant = arrivals[number]
        if number == front:
            front = following()
        else:
            waiting[tenant].remove(number)
            if not waiting[tenant]:
                rota.remove(tenant)
    while front is not None:
        order.append(front)
        front = following()
    return order


@examples(200, 3000)
@given(st.lists(st.sampled_from("abc"), max_size=20), st.sets(st.integers(0, 19)))
def test_tenants_take_turns_in_arrival_order(arrivals: list[str], leavers: set[int]) -> None:
    gone = {number for number in leavers if number < len(arrivals)}
    assert asyncio.run(served_in_order(arrivals, gone)) == in_turns(arrivals, gone)


async def test_settlement_wakes_only_the_front() -> None:
    lines = AdmissionQueue()
    first, second = lines.join(ROW, "a"), lines.join(ROW, "a")
    await first.reach_front(soon())
    hearing = asyncio.create_task(first.wait_for_change(soon(), sleep_s=60))
    behind = asyncio.create_task(second.reach_front(soon()))
    await asyncio.sleep(0.01)
    assert not hearing.done()
    lines.settled(lambda: [OTHER])
    await asyncio.sleep(0.01)
    assert not hearing.done()
    lines.settled(lambda: [ROW])
    await asyncio.wait_for(hearing, 5)
    assert not behind.done()
    first.leave()
    await asyncio.wait_for(behind, 5)
    second.leave()


async def test_settlement_between_two_polls_is_not_missed() -> None:
    lines = AdmissionQueue()
    turn = lines.join(ROW, "a")
    await turn.reach_front(soon())
    lines.notify()  # while the store was being asked
    await asyncio.wait_for(turn.wait_for_change(soon(), sleep_s=60), 1)
    turn.leave()


async def test_front_polls_without_a_settlement() -> None:
    """Another process may have settled."""
    turn = AdmissionQueue().join(ROW, "a")
    await turn.reach_front(soon())
    await asyncio.wait_for(turn.wait_for_change(soon()), 5)
    turn.leave()


@pytest.mark.parametrize("place", ["front", "behind"])
async def test_waiting_ends_at_the_deadline(place: str) -> None:
    lines = AdmissionQueue()
    turns = [lines.join(ROW, "a"), lines.join(ROW, "a")]
    turn = turns[place == "behind"]
    with pytest.raises(TimeoutError):
        await turn.wait_for_change(soon(-1))
    for each in turns:
        each.leave()
    assert lines.join_any(lambda: [ROW], "a") is None


async def test_later_calls_queue_behind_waiting_ones() -> None:
    lines = AdmissionQueue()
    assert lines.join_any(lambda: pytest.fail("nobody waits, so nothing is asked"), "b") is None
    first = lines.join(ROW, "a")
    assert lines.join_any(lambda: [OTHER], "b") is None
    later = lines.join_any(lambda: [OTHER, ROW], "b")
    assert later is not None
    assert later.key == ROW
    later.leave()
    first.leave()
